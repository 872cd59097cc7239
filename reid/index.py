"""A gallery that changes: descriptors, and what is known of each, kept by an engine that finds the nearest.

    index = create('people', dim=512, about=embedder.about)        # later: open('people')
    ids = index.add([{'name': 'Ann', 'camera': 2, 'time': 1767225600.0, 'path': 'a.jpg'}], f)
    hits = index.query(f, k=10, camera=2)                          # for each row of f [(score, Entry), ...]
    index.remove(ids)

    exact    plain files in a folder, all of them looked at: index_files.py. The default, no package is needed
    faiss    the same folder, for large galleries: index_faiss.py. pip install faiss-cpu
    milvus   Milvus, a server (http://host:19530) or embedded (a path that ends in .db): index_milvus.py

All of them have

    add(entries, vectors)  dicts with any of name, camera, time, path, box; (N, D) float32 of unit length -> their ids,
                           ascending, none given twice. Of those with one path the last stays
    remove(ids)            -> how many of them there were
    find(name, camera, since, until, path, ids, after, limit)  -> [Entry] that are all that is asked for, in order of
                           ids: those behind the id `after`, at most `limit`
    query(vectors, k, name, camera, since, until)       -> for each vector [(score, Entry)], the k best of those that
                           are all that is asked for (or fewer), the best first, equal scores in order of ids
    vectors(ids)           -> (N, D) float32
    stats()                -> dict: engine, dim, about, entries, names (how many), cameras (which), bytes, dead (rows
                           that take up space); None for what an engine does not know
    compact(), close(), .about, .dim, .engine; and `with open(...) as index:`

    since <= time < until; an entry without a time is in no such span. camera -1 is one that is not known.

A score is the same number whatever else is in the index, however many are asked for at once, and in all engines: it is
exact (reid.product). What was added or removed is seen by every query that begins after add() or remove() has returned,
in any thread or process. Several threads may share an index.
"""

from pathlib import Path

from reid import index_exact, index_files
from reid.index_entries import Entry
from reid.problem import Problem

__all__ = ['ENGINES', 'Entry', 'create', 'open', 'same_network']
ENGINES = ('exact', 'faiss', 'milvus')
MADE_FROM = ('weights', 'flip', 'ms', 'test_feature')  # what makes descriptors comparable


def create(where, dim, about, engine=None, timeout=60):
    """A new index for descriptors of `dim` numbers. about (JSON) says whose they are; timeout (seconds), how long a
    writer waits for another one."""
    engine = chosen(where, engine)
    if engine == 'milvus':
        from reid import index_milvus

        return index_milvus.create(str(where), dim, about, timeout)
    search = searcher(Path(where), engine)  # a package that is not there is told before anything is made
    index = index_files.create(Path(where), dim, about, engine, timeout)
    index.search = search
    return index


def open(where, engine=None, timeout=60):
    """One that is there. It knows its engine; another one for the same folder may be given, exact or faiss."""
    engine = chosen(where, engine) if engine or is_milvus(where) else None
    if engine == 'milvus':
        from reid import index_milvus

        return index_milvus.open(str(where), timeout)
    index = index_files.open(Path(where), timeout)
    try:
        index.engine = engine or index.engine
        index.search = searcher(index.folder, index.engine)
    except BaseException:
        index.close()
        raise
    return index


def is_milvus(where):
    return str(where).startswith(('http://', 'https://')) or str(where).endswith('.db')


def chosen(where, engine):
    engine = engine or ('milvus' if is_milvus(where) else 'exact')
    if engine not in ENGINES:
        raise Problem(f'engine {engine}: one of {", ".join(ENGINES)} is expected')
    if (engine == 'milvus') != is_milvus(where):
        raise Problem(
            f'{where}, engine {engine}: exact and faiss take a folder, milvus the address of a server '
            '(http://host:19530) or a path that ends in .db'
        )
    return engine


def searcher(folder, engine):
    if engine == 'faiss':
        from reid import index_faiss

        return index_faiss.Search(folder)
    return index_exact.search


def same_network(where, about, other):
    """Descriptors of another network, or made in another way, have nothing to do with those that are there: a
    sentence that names what differs."""

    def of(given, name):
        value = given.get(name)
        return value.get('sha256') if name == 'weights' and isinstance(value, dict) else value

    for name in MADE_FROM:
        ours, theirs = of(about, name), of(other, name)
        if ours != theirs:
            whose = f'of {about.get("run")}' if about.get('run') else 'kept'
            raise Problem(
                f'{where}: the descriptors {whose} there were made with {name} {ours!s:.12}, and these '
                f'({other.get("run")}) with {theirs!s:.12}. Use that network, or make an index of its own for this one'
            )
