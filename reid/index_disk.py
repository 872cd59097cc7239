"""The files of an index (reid.index_files): what is in them, and how they are opened, written and made sure of."""

import json
import os
import sqlite3
from contextlib import contextmanager

import numpy as np

from reid.problem import Problem

ENTRIES, VECTORS = 'entries.db', 'vectors.f32'  # vectors-<state>.f32 after it was written anew
FORMAT = 1
# Texts are kept as UTF-8, a lone surrogate as three bytes: what Python makes of file names that are no text. They are
# passed as bytes therefore, and `cast`.
SCHEMA = """
create table settings (key text primary key, value text not null) without rowid;
create table entries (
    id integer primary key autoincrement,
    row integer not null,
    name text not null,
    camera integer not null,
    time real,
    path text unique,
    box text
);
create index by_name on entries (name);
create table removed (number integer primary key autoincrement, id integer not null);
create trigger remember after delete on entries begin insert into removed (id) values (old.id); end
"""


def connect(folder, timeout):
    with told(folder):
        base = sqlite3.connect(folder / ENTRIES, timeout=timeout, isolation_level=None, check_same_thread=False)
        base.text_factory = lambda text: text.decode('utf-8', 'surrogatepass')
        base.execute('pragma synchronous = full')  # what is committed is on the disk
        return base


def coded(text):
    return text.encode('utf-8', 'surrogatepass')


def listed(ids):
    return json.dumps([int(i) for i in ids])


def settings(base):
    return dict(base.execute('select key, value from settings'))


def keep(base, **values):
    base.executemany('insert or replace into settings values (?, ?)', [(key, str(v)) for key, v in values.items()])


def columns(fresh):
    """[(id, row, camera, time)] -> arrays. A time that is not known is nan."""
    ids, rows, cameras, times = zip(*fresh, strict=True) if fresh else ((), (), (), ())
    return *(np.array(column, np.int64) for column in (ids, rows, cameras)), np.array(times, np.float64)


def mapped(path, rows, dim):
    """The first rows of a file, read as they are needed."""
    found, expected = path.stat().st_size, rows * dim * 4
    if found < expected:
        raise Problem(f'{path} is damaged: {expected} bytes are expected, found {found}. The index is to be made anew')
    return np.memmap(path, '<f4', 'r', shape=(rows, dim)).view(np.ndarray) if rows else np.empty((0, dim), '<f4')


def append(file, first, vectors):
    """Rows to where row `first` begins, on the disk when it returns. What was behind it nobody speaks of."""
    size = first * vectors[0].nbytes if len(vectors) else 0
    if file.seek(0, os.SEEK_END) < size:
        raise Problem(f'{file.name} is damaged: {size} bytes are expected, found {file.tell()}')
    file.seek(size)
    file.write(vectors.tobytes())
    file.flush()
    os.fsync(file.fileno())


def synced(folder):
    """The names of new files are on the disk as well. (Windows sees to it itself.)"""
    if os.name != 'nt':
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def told(folder):
    """What SQLite and the disk complain of, in sentences."""
    try:
        yield
    except sqlite3.OperationalError as error:
        if 'locked' in str(error):
            raise Problem(f'{folder} is being written to by another process: try again when it is done') from None
        raise Problem(f'{folder / ENTRIES} cannot be used ({error}): is it whole, and is the disk full?') from None
    except sqlite3.DatabaseError as error:
        if type(error) is not sqlite3.DatabaseError:  # a mistake of the caller: the index was closed, for example
            raise
        raise Problem(f'{folder / ENTRIES} cannot be read ({error}): the index is to be made anew') from None
    except OSError as error:
        raise Problem(f'{folder} cannot be read or written ({error})') from None
