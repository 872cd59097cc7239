"""An index (reid.index) in plain files, searched exactly:

    <folder>/vectors.f32    rows of float32, little-endian, one after the other: appended, never changed
    <folder>/entries.db     SQLite: entries (what is known of each row), removed, settings

What was acknowledged is there, whatever ends the process: rows are on the disk before the entries that speak of them
are committed, and rows that no entry speaks of are never looked at. One writes at a time, which SQLite sees to. Others
read meanwhile, each query from the state of one moment. (SQLite's write-ahead log needs a disk of this machine, not
one in the network.)

Threads may share an index: those that read take turns, and so do those that write; neither waits for the other.
"""

import json
import os
import threading
from collections import namedtuple
from contextlib import contextmanager, suppress

import numpy as np

from reid import index_disk as disk
from reid import index_exact
from reid.cli import quote
from reid.index_entries import Entry, cleaned, unit
from reid.problem import Problem

FIELDS = ', '.join(Entry._fields)
AMONG = 'id in (select value from json_each(?))'
MANY = 4096  # removed rows, before it is worth while to write the others anew
PIECE = 2**11  # rows at a time, then

# What readers hold of a moment: entries in order of id, which is the order of their rows as well. The last id and the
# last number of `removed` that were seen: from there on, the next state is read.
State = namedtuple('State', 'number file vectors ids rows cameras times last removed')


def create(folder, dim, about, engine='exact', timeout=60):
    dim = int(dim)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise FileExistsError('it is not empty')
        (folder / disk.VECTORS).open('xb').close()
    except OSError as error:
        raise Problem(f'{folder}: an index begins in a folder of its own ({error})') from None
    base = disk.connect(folder, timeout)
    try:
        with disk.told(folder):
            base.execute('pragma journal_mode = wal')
            base.execute('begin immediate')
            for statement in disk.SCHEMA.split(';\n'):
                base.execute(statement)
            about = json.dumps(about or {})
            disk.keep(base, format=disk.FORMAT, dim=dim, about=about, engine=engine, file=disk.VECTORS, rows=0, state=0)
            base.execute('commit')
    finally:
        base.close()
    disk.synced(folder)
    return Index(folder, timeout)


def open(folder, timeout=60):
    if not (folder / disk.ENTRIES).is_file():
        raise Problem(
            f'{folder} is no index, which is a folder with {disk.ENTRIES} and {disk.VECTORS}. '
            f'python search.py index create {quote(folder)} makes one'
        )
    return Index(folder, timeout)


class Index:
    """See reid.index. `search` may be replaced: by what looks for the same in another way."""

    def __init__(self, folder, timeout):
        self.folder, self.search = folder, index_exact.search
        self.reads, self.writes = threading.Lock(), threading.Lock()
        self.reader, self.writer = disk.connect(folder, timeout), disk.connect(folder, timeout)
        try:
            with disk.told(folder):
                kept = disk.settings(self.reader)
            if kept.get('format') != str(disk.FORMAT):
                raise Problem(f'{folder} is an index of another version: it is to be made anew')
            self.dim, self.about, self.engine = int(kept['dim']), json.loads(kept['about']), kept['engine']
            self.now = State('', '', None, *disk.columns([]), 0, 0)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        self.reader.close()
        self.writer.close()
        self.now = None

    # -----------------------------------------------------------------------------------------------------------------
    # reading

    @contextmanager
    def reading(self):
        """What there is at this moment. It stays so inside, whatever others write meanwhile."""
        with self.reads, disk.told(self.folder):
            try:
                for _ in range(9):
                    self.reader.execute('begin')
                    try:
                        self.now = self.refreshed(self.now)
                        break
                    except FileNotFoundError:  # written anew between the two looks
                        self.reader.execute('rollback')
                else:
                    raise Problem(f'{self.folder} has no {disk.settings(self.reader)["file"]} any more')
                yield self.now
            finally:
                if self.reader.in_transaction:
                    self.reader.execute('rollback')

    def refreshed(self, now):
        """The state that the reader's transaction sees, from the last one and what has changed since."""
        kept = disk.settings(self.reader)
        if kept['state'] == now.number:
            return now
        vectors = disk.mapped(self.folder / kept['file'], int(kept['rows']), self.dim)
        if kept['file'] != now.file:
            now = State('', '', None, *disk.columns([]), 0, 0)
        fresh = self.reader.execute('select id, row, camera, time from entries where id > ? order by id', (now.last,))
        fresh = disk.columns(fresh.fetchall())
        gone = self.reader.execute('select number, id from removed where number > ?', (now.removed,)).fetchall()
        gone = np.array(gone, np.int64).reshape(-1, 2)
        held = now.ids, now.rows, now.cameras, now.times
        parts = [np.append(old, new) for old, new in zip(held, fresh, strict=True)]
        if len(gone):
            left = ~np.isin(parts[0], gone[:, 1])
            parts = [part[left] for part in parts]
        last = max(now.last, int(fresh[0].max(initial=0)))
        return State(kept['state'], kept['file'], vectors, *parts, last, int(gone[:, 0].max(initial=now.removed)))

    def query(self, vectors, k, name=None, camera=None, since=None, until=None):
        queries = unit(vectors, self.dim)
        if k < 1:
            raise Problem(f'{k} nearest are asked for: at least one is expected')
        with self.reading() as now:
            wanted = np.ones(len(now.ids), bool)
            if name is not None:
                named = self.reader.execute('select id from entries where name = cast(? as text)', (disk.coded(name),))
                wanted = np.isin(now.ids, np.array(named.fetchall(), np.int64))
            if camera is not None:
                wanted &= now.cameras == camera
            if since is not None:
                wanted &= now.times >= since  # never, of one that is not known
            if until is not None:
                wanted &= now.times < until
            found = self.search(now, np.flatnonzero(wanted), queries, k)
            hits = np.unique(np.concatenate([np.empty(0, np.int64), *(places for places, _ in found)]))
            hits = now.ids[hits].tolist()
            entries = {entry.id: entry for entry in self.entries(f'where {AMONG}', json.dumps(hits))}
        return [
            [(float(score), entries[i]) for i, score in zip(now.ids[places].tolist(), scores, strict=True)]
            for places, scores in found
        ]

    def find(self, name=None, camera=None, since=None, until=None, path=None, ids=None, after=None, limit=None):
        asked = {
            'name = cast(? as text)': None if name is None else disk.coded(name),
            'camera = ?': None if camera is None else int(camera),
            'time >= ?': None if since is None else float(since),
            'time < ?': None if until is None else float(until),
            'path = cast(? as text)': None if path is None else disk.coded(os.fsdecode(path)),
            AMONG: None if ids is None else disk.listed(ids),
            'id > ?': None if after is None else int(after),
        }
        asked = {condition: value for condition, value in asked.items() if value is not None}
        where = f'where {" and ".join(asked)}' if asked else ''
        with self.reading():
            return self.entries(f'{where} order by id limit ?', *asked.values(), -1 if limit is None else int(limit))

    def entries(self, which, *values):
        found = self.reader.execute(f'select {FIELDS} from entries {which}', values)
        return [Entry(*fields, box and json.loads(box)) for *fields, box in found]

    def vectors(self, ids):
        ids = np.array(list(ids), np.int64)
        with self.reading() as now:
            places = np.minimum(np.searchsorted(now.ids, ids), len(now.ids) - 1)
            if len(ids) and not (len(now.ids) and (now.ids[places] == ids).all()):
                raise Problem(f'{self.folder} has no entry of some of the ids {ids[:8].tolist()}')
            return now.vectors[now.rows[places]] if len(ids) else np.empty((0, self.dim), np.float32)

    def stats(self):
        with self.reading() as now:
            names = self.reader.execute('select count(distinct name) from entries').fetchone()[0]
            files = [self.folder / name for name in (now.file, disk.ENTRIES, f'{disk.ENTRIES}-wal')]
            return {
                'engine': self.engine,
                'dim': self.dim,
                'about': self.about,
                'entries': len(now.ids),
                'names': names,
                'cameras': np.unique(now.cameras).tolist(),
                'bytes': sum(file.stat().st_size for file in files if file.exists()),
                'dead': len(now.vectors) - len(now.ids),
            }

    # -----------------------------------------------------------------------------------------------------------------
    # writing

    @contextmanager
    def writing(self, anew=False):
        """One transaction: all of it, or nothing. Another writer is waited for. anew: drop what is removed."""
        with self.writes, disk.told(self.folder):
            self.writer.execute('begin immediate')
            try:
                kept = disk.settings(self.writer)
                yield kept
                dead = self.writer.execute('select count(*) from removed').fetchone()[0]
                old = kept['file']
                if anew and dead or dead > MANY and 2 * dead > int(kept['rows']):
                    self.write_anew(kept)
                disk.keep(self.writer, state=int(kept['state']) + 1, rows=kept['rows'], file=kept['file'])
                self.writer.execute('commit')
            finally:
                if self.writer.in_transaction:
                    self.writer.execute('rollback')
            if kept['file'] != old:
                with suppress(OSError):  # held by a reader on Windows: write_anew will try again
                    (self.folder / old).unlink()

    def add(self, entries, vectors):
        entries = cleaned(entries)
        vectors, ids = unit(vectors, self.dim, len(entries)), []
        with self.writing() as kept:
            first = int(kept['rows'])
            with (self.folder / kept['file']).open('r+b') as file:
                disk.append(file, first, vectors)
            for row, (name, camera, time, path, box) in enumerate(entries, first):
                path = None if path is None else disk.coded(path)
                if path is not None:
                    self.writer.execute('delete from entries where path = cast(? as text)', (path,))
                done = self.writer.execute(
                    'insert into entries (row, name, camera, time, path, box) '
                    'values (?, cast(? as text), ?, ?, cast(? as text), ?)',
                    (row, disk.coded(name), camera, time, path, box and json.dumps(box)),
                )
                ids.append(done.lastrowid)
            kept['rows'] = first + len(entries)
        return ids

    def remove(self, ids):
        with self.writing():
            return self.writer.execute(f'delete from entries where {AMONG}', (disk.listed(ids),)).rowcount

    def compact(self):
        with self.writing(anew=True):
            pass

    def write_anew(self, kept):
        """The rows of all entries to another file, which the transaction switches to."""
        for left in self.folder.glob('vectors*.f32'):  # by one that did not come to its end, or could not delete
            if left.name != kept['file']:
                with suppress(OSError):
                    left.unlink()
        live = self.writer.execute('select id, row from entries order by id').fetchall()
        live = np.array(live, np.int64).reshape(-1, 2)
        rows = disk.mapped(self.folder / kept['file'], int(kept['rows']), self.dim)
        kept['file'], kept['rows'] = f'vectors-{int(kept["state"]) + 1}.f32', len(live)
        with (self.folder / kept['file']).open('wb') as file:
            for start in range(0, len(live), PIECE):
                disk.append(file, start, rows[live[start : start + PIECE, 1]])
        disk.synced(self.folder)
        self.writer.executemany('update entries set row = ? where id = ?', enumerate(live[:, 0].tolist()))
        self.writer.execute('delete from removed')
