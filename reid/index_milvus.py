"""An index (reid.index) in Milvus: pip install "pymilvus[milvus-lite]".

    people.db              Milvus Lite, embedded: a folder, which one process at a time has open
    http://host:19530      a server, which many may write to; its token from the environment variable MILVUS_TOKEN

Every vector is looked at (FLAT), and what may be among the best is scored again, exactly. What was acknowledged is
seen by everybody (consistency Strong). Two things are weaker than in files, as Milvus knows no transactions: in add(),
those whose path is there already are removed after the new ones have come; whoever asks between sees both, and if the
process ends there, so it stays until the path comes again. And of many entries, thousands at a time come at once.

Filters hold numbers and hexadecimal digests alone, so no name can be taken for a part of them. (Templates, which
servers offer for that, are not known to Milvus Lite.)
"""

import hashlib
import json
import logging
import os
import re
import threading
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from reid import product
from reid.index_entries import Entry, cleaned, unit
from reid.index_exact import best, exact
from reid.problem import Problem

ENTRIES, SETTINGS = 'reid', 'reid_settings'  # collections
FORMAT = 1
MOST = 16384  # hits, or entries, that Milvus gives at once
SOME = 1000  # ids or digests in a filter
NUMBERS = 2**21  # of vectors, that are sent at once: servers take 64 MB
LONGEST = 65535  # bytes of a text
FIELDS = list(Entry._fields)

opened = Counter()  # Milvus Lite, by path: all of a process share one


def create(where, dim, about, timeout=60):
    with told(where):
        client = connect(where, timeout)
        try:
            if client.has_collection(ENTRIES) or client.has_collection(SETTINGS):
                raise Problem(f'{where} holds an index already: open it, or make the new one elsewhere')
            text = {'max_length': LONGEST}
            columns = [
                ('vector', 'FLOAT_VECTOR', {'dim': int(dim)}),
                ('name', 'VARCHAR', text),
                ('camera', 'INT64', {}),
            ]
            columns += [('time', 'DOUBLE', {'nullable': True}), ('path', 'VARCHAR', text | {'nullable': True})]
            columns += [('box', 'VARCHAR', text | {'nullable': True})]
            columns += [(f'{of}_digest', 'VARCHAR', {'max_length': 64}) for of in ('name', 'path')]
            make(client, ENTRIES, columns)
            make(client, SETTINGS, [('vector', 'FLOAT_VECTOR', {'dim': 2}), ('settings', 'VARCHAR', text)])
            settings = json.dumps({'format': FORMAT, 'dim': int(dim), 'about': about or {}})
            client.insert(SETTINGS, [{'vector': [1.0, 0.0], 'settings': settings}])  # last: now it is whole
            return Index(where, client)
        except BaseException:
            disconnect(where, client)
            raise


def make(client, name, columns):
    from pymilvus import DataType

    schema = client.create_schema(auto_id=True, enable_dynamic_field=False)
    schema.add_field('id', DataType.INT64, is_primary=True)
    for column, kind, how in columns:
        schema.add_field(column, DataType[kind], **how)
    params = client.prepare_index_params()
    params.add_index('vector', index_type='FLAT', metric_type='IP')
    client.create_collection(name, schema=schema, index_params=params, consistency_level='Strong')


def open(where, timeout=60):
    if is_local(where) and not (Path(where) / 'collections').is_dir():
        raise Problem(f'{where}: there is no such index of Milvus Lite, which is a folder')
    with told(where):
        client = connect(where, timeout)
        try:
            return Index(where, client)
        except BaseException:
            disconnect(where, client)
            raise


class Index:
    """See reid.index. Those that write in this process take turns."""

    engine = 'milvus'

    def __init__(self, where, client):
        self.folder, self.client, self.writes = where, client, threading.Lock()
        kept = []
        if client.has_collection(SETTINGS):
            client.load_collection(SETTINGS)
            kept = client.query(SETTINGS, filter='id >= 0', output_fields=['settings'], limit=1)
        if not kept:
            raise Problem(f'{where} is no index, or one that was not finished: it is to be made anew')
        settings = json.loads(kept[0]['settings'])
        if settings['format'] != FORMAT:
            raise Problem(f'{where} is an index of another version: it is to be made anew')
        self.dim, self.about = settings['dim'], settings['about']
        client.load_collection(ENTRIES)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        if self.client:
            disconnect(self.folder, self.client)
            self.client = None

    # -----------------------------------------------------------------------------------------------------------------
    # reading

    def query(self, vectors, k, name=None, camera=None, since=None, until=None):
        queries = unit(vectors, self.dim)
        if not 1 <= k <= MOST:
            raise Problem(f'{k} nearest are asked for: 1 to {MOST} are expected')
        which = condition(name, camera, since, until)
        with told(self.folder):
            return [self.nearest(query, k, which) for query in queries]

    def nearest(self, query, k, which):
        """Milvus rounds: so many are asked for that those left out cannot be among the k best."""
        off, limit = 1.01 * product.error(self.dim) + 2.0**-23, min(2 * k + 16, MOST)
        while True:
            (hits,) = self.client.search(
                ENTRIES, [query.tolist()], filter=which, limit=limit, output_fields=[*FIELDS, 'vector']
            )
            hits = sorted(hits, key=lambda hit: hit['id'])
            scores = exact(query, np.array([hit['entity']['vector'] for hit in hits], np.float32).reshape(-1, self.dim))
            order = best(scores, k)
            low = min((hit['distance'] for hit in hits), default=0)
            if len(hits) < limit or limit == MOST or scores[order[-1]] > low + off:
                return [(float(scores[i]), entry_of(hits[i]['entity'])) for i in order]
            limit = min(4 * limit, MOST)

    def find(self, name=None, camera=None, since=None, until=None, path=None, ids=None, after=None, limit=None):
        which = condition(name, camera, since, until, path)
        with told(self.folder):
            if ids is None:
                found = self.pages(which, FIELDS, limit, after)
            else:
                found = sorted(self.among('id', ids, FIELDS, which), key=lambda row: row['id'])
                found = [row for row in found if after is None or row['id'] > after][:limit]
            return [entry_of(row) for row in found]

    def pages(self, which, fields, limit=None, after=None):
        """All that fulfil a condition, in order of ids."""
        found, last = [], -1 if after is None else int(after)
        while limit is None or len(found) < limit:
            size = min(MOST, MOST if limit is None else limit - len(found))
            more = f'{which} and ' if which else ''
            page = self.client.query(ENTRIES, filter=f'{more}id > {last}', output_fields=fields, limit=size)
            found += sorted(page, key=lambda row: row['id'])
            if len(page) < size:
                break
            last = found[-1]['id']
        return found

    def among(self, column, values, fields, which=''):
        """Those with one of the values, which are numbers or digests."""
        values, found = list(dict.fromkeys(values)), []
        for start in range(0, len(values), SOME):
            some = ', '.join(f'"{v}"' if isinstance(v, str) else str(int(v)) for v in values[start : start + SOME])
            found += self.pages(f'{which} and {column} in [{some}]' if which else f'{column} in [{some}]', fields)
        return found

    def vectors(self, ids):
        ids = [int(i) for i in ids]
        with told(self.folder):
            found = {row['id']: row['vector'] for row in self.among('id', ids, ['id', 'vector'])}
        if not set(ids) <= set(found):
            raise Problem(f'{self.folder} has no entry of some of the ids {ids[:8]}')
        return np.array([found[i] for i in ids], np.float32).reshape(-1, self.dim)

    def stats(self):
        """dead is not known to it; bytes, of a server, neither."""
        with told(self.folder):
            rows = self.pages('', ['id', 'name_digest', 'camera'])
        files = [file for file in Path(self.folder).rglob('*') if file.is_file()] if is_local(self.folder) else None
        return {
            'engine': self.engine,
            'dim': self.dim,
            'about': self.about,
            'entries': len(rows),
            'names': len({row['name_digest'] for row in rows}),
            'cameras': sorted({row['camera'] for row in rows}),
            'bytes': None if files is None else sum(file.stat().st_size for file in files),
            'dead': None,
        }

    # -----------------------------------------------------------------------------------------------------------------
    # writing

    def add(self, entries, vectors):
        entries = cleaned(entries)
        vectors, rows, ids = unit(vectors, self.dim, len(entries)), [], []
        for (name, camera, time, path, box), vector in zip(entries, vectors.tolist(), strict=True):
            digests = {'name_digest': digest(name), 'path_digest': '' if path is None else digest(path)}
            texts = {'name': coded(name), 'path': None if path is None else coded(path), 'box': box and json.dumps(box)}
            rows.append({'vector': vector, 'camera': camera, 'time': time, **texts, **digests})
        size = max(1, NUMBERS // self.dim)
        with self.writes, told(self.folder):
            for start in range(0, len(rows), size):
                ids += self.client.insert(ENTRIES, rows[start : start + size])['ids']
            paths = [row['path_digest'] for row in rows if row['path_digest']]
            there = sorted(self.among('path_digest', paths, ['id', 'path_digest']), key=lambda row: row['id'])
            newest = {row['path_digest']: row['id'] for row in there}
            self.delete([row['id'] for row in there if newest[row['path_digest']] != row['id']])
        return ids

    def remove(self, ids):
        with self.writes, told(self.folder):
            there = [row['id'] for row in self.among('id', ids, ['id'])]
            self.delete(there)
        return len(there)

    def delete(self, ids):
        for start in range(0, len(ids), SOME):
            self.client.delete(ENTRIES, ids=ids[start : start + SOME])

    def compact(self):
        with self.writes, told(self.folder):
            self.client.compact(ENTRIES)


# ---------------------------------------------------------------------------------------------------------------------
# what Milvus is told


def condition(name=None, camera=None, since=None, until=None, path=None):
    parts = [] if name is None else [f'name_digest == "{digest(name)}"']
    parts += [] if camera is None else [f'camera == {int(camera)}']
    parts += [] if since is None else [f'time >= {float(since)!r}']
    parts += [] if until is None else [f'time < {float(until)!r}']
    parts += [] if path is None else [f'path_digest == "{digest(os.fsdecode(path))}"']
    return ' and '.join(parts)


def digest(text):
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()


def coded(text):
    r"""Lone surrogates, which Python makes of file names that are no text, cannot be sent: \dce9; and so \5c; for \."""
    return re.sub('[\\\\\ud800-\udfff]', lambda found: f'\\{ord(found[0]):x};', text)


def decoded(text):
    return re.sub(r'\\([0-9a-f]+);', lambda found: chr(int(found[1], 16)), text)


def entry_of(row):
    path, box = row['path'], row['box']
    path, box = None if path is None else decoded(path), None if box is None else json.loads(box)
    return Entry(row['id'], decoded(row['name']), row['camera'], row['time'], path, box)


def is_local(where):
    return not where.startswith(('http://', 'https://'))


def connect(where, timeout):
    try:
        from pymilvus import MilvusClient
    except ImportError:
        raise Problem('the engine milvus is a package: pip install "pymilvus[milvus-lite]"') from None
    for name in ('pymilvus', 'milvus_lite'):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what they complain of is raised as well
    try:
        client = MilvusClient(where, token=os.environ.get('MILVUS_TOKEN', ''), timeout=timeout)
    except Exception as error:
        if is_local(where):
            raise Problem(
                f'{where} cannot be opened: is Milvus Lite there (pip install "pymilvus[milvus-lite]"), and no other '
                'process that has it open? It is for one at a time'
            ) from error
        raise
    opened[key(where)] += 1
    return client


def disconnect(where, client):
    """Milvus Lite goes on behind a client that is closed, and keeps others out."""
    client.close()
    opened[key(where)] -= 1
    if is_local(where) and not opened[key(where)]:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(where)


def key(where):
    return os.path.abspath(where) if is_local(where) else where


@contextmanager
def told(where):
    """What Milvus complains of, in a sentence."""
    try:
        yield
    except Problem:
        raise
    except Exception as error:
        if not type(error).__module__.startswith(('pymilvus', 'grpc', 'milvus_lite')):
            raise
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise Problem(f'{where}: Milvus says {first}') from error
