"""An index in plain files, against a full sort, a kill, other processes: python -m pytest tests/test_index.py"""

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from test_nearest import features

from reid import index, index_exact, index_files
from reid.index import Entry
from reid.problem import Problem

ABOUT = {
    'run': 'ft',
    'weights': {'file': 'net_last.pth', 'sha256': 'ab'},
    'flip': True,
    'ms': '1',
    'test_feature': None,
}
ODD = [
    "'; drop table entries; --",
    'a "b" \'c\' `d`',
    'zwei\nZeilen\tund ein Zeichen \x01',
    '张伟',
    'عبد الله',
    '🕵🏽‍♀️',
    'e\u0301 is not é',
    '',
    '\0in the middle\0',
    '%_*?[x]',
    os.fsdecode(b'caf\xe9.jpg') if os.name != 'nt' else '\udce9',
    '\ud83d\ude00',  # two halves of a pair, which are not the whole
    'C:\\Users\\u0041\\x',
]


def unit(f):
    return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)


def vectors_of(numbers):
    """Everybody has their own, which anybody can tell."""
    return unit(np.stack([np.random.default_rng(number).standard_normal(8) for number in numbers]))


@pytest.fixture
def made(tmp_path):
    with index.create(tmp_path / 'people', 8, ABOUT) as own:
        yield own


# ---------------------------------------------------------------------------------------------------------------------
# 1. the search


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 300),
    k=st.integers(1, 25),
    dim=st.sampled_from([3, 64]),
    kind=st.sampled_from(['any', 'equal', 'close', 'opposite']),
    share=st.sampled_from([0, 0.05, 0.5, 1]),
    tile=st.sampled_from([7, 100, 2**15]),
)
def test_equals_a_full_sort(seed, n, k, dim, kind, share, tile):
    rng = np.random.default_rng(seed)
    f, queries = features(rng, n, dim, kind), features(rng, 9, dim, 'any' if kind == 'opposite' else kind)
    rows = np.flatnonzero(rng.random(n) < 0.8)  # the others were removed
    places = np.flatnonzero(rng.random(len(rows)) < share)
    now = index_files.State('', '', f, rows, rows, rows, rows, 0, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index_exact, 'TILE', tile)
        patch.setattr(index_exact, 'QUERIES', 4)
        found = index_exact.search(now, places, queries, k)
    q, g = (np.rint(f.astype(np.float64) * 2**26) / 2**26 for f in (queries, f[rows[places]]))
    for scores, (those, found_scores) in zip(q @ g.T, found, strict=True):
        order = np.argsort(-scores, kind='stable')[:k]
        np.testing.assert_array_equal(those, places[order])
        np.testing.assert_array_equal(found_scores, scores[order])


def test_a_score_does_not_depend_on_company(made):
    rng = np.random.default_rng(0)
    f = features(rng, 400, 8, 'close')
    made.add([{}] * 3, f[:3])
    alone = made.query(f[:1], 3)[0]
    made.add([{}] * 397, f[3:])
    many = made.query(f, 400)
    assert {e.id: s for s, e in many[0] if e.id < 4} == {e.id: s for s, e in alone}
    for i in (0, 1, 399):
        assert made.query(f[i : i + 1], 400)[0] == many[i]
        assert {e.id: s for s, e in many[i]}[1] == {e.id: s for s, e in many[0]}[i + 1]  # from either side


# ---------------------------------------------------------------------------------------------------------------------
# 2. what is kept


def test_odd_texts_come_back_as_they_went_in(made):
    ids = made.add([{'name': text, 'path': text} for text in ODD], vectors_of(range(len(ODD))))
    with index.open(made.folder) as again:
        assert [(e.name, e.path) for e in again.find()] == [(text, text) for text in ODD]
        for i, text in zip(ids, ODD, strict=True):
            assert [e.id for e in again.find(name=text)] == [e.id for e in again.find(path=text)] == [i]
            ((_, hit),) = again.query(vectors_of([99]), 5, name=text)[0]
            assert hit == Entry(i, text, -1, None, text, None)
        assert made.add([{'path': text} for text in ODD], vectors_of(range(len(ODD)))) == [i + len(ODD) for i in ids]
        assert again.stats()['entries'] == len(ODD)


def test_all_that_is_known_of_an_entry(made):
    entry = {
        'name': 'Ann',
        'camera': np.int64(3),
        'time': 1767225600.123456,
        'path': Path('a.jpg'),
        'box': [1.5, 2, 3, 4],
    }
    (one, other) = made.add([entry, {}], vectors_of([0, 1]))
    assert made.find() == [
        Entry(one, 'Ann', 3, 1767225600.123456, 'a.jpg', [1.5, 2, 3, 4]),
        Entry(other, '', -1, *[None] * 3),
    ]
    np.testing.assert_array_equal(made.vectors([other, one, other]), vectors_of([1, 0, 1]))
    assert made.vectors([]).shape == (0, 8)
    with pytest.raises(Problem, match='no entry'):
        made.vectors([one, 77])


def test_a_path_is_there_once_and_an_id_is_given_once(made):
    first = made.add([{'name': 'a', 'path': 'x'}, {'name': 'b'}, {'name': 'c'}], vectors_of([1, 2, 3]))
    second = made.add(
        [{'name': 'd', 'path': 'x'}, {'name': 'e', 'path': 'y'}, {'name': 'f', 'path': 'y'}], vectors_of([4, 5, 6])
    )
    assert [e.name for e in made.find()] == ['b', 'c', 'd', 'f']
    np.testing.assert_array_equal(made.vectors(second[:1]), vectors_of([4]))
    assert made.remove([*first, *second, 99]) == 4
    made.compact()
    with index.open(made.folder) as again:
        assert min(again.add([{}], vectors_of([1]))) > max(second) > max(first)


def test_spans_are_half_open_and_know_who_has_no_time(made):
    made.add([{'time': t, 'camera': c} for t, c in [(10, 1), (20, 1), (30, -1), (None, 2)]], vectors_of(range(4)))
    for which in (
        {'since': 10, 'until': 30},
        {'since': 30},
        {'until': 10},
        {'until': 1e12},
        {'camera': -1},
        {'camera': 2},
    ):
        times = {json.dumps(which): [e.time for e in made.find(**which)]}
        assert times == {
            json.dumps(which): sorted((e.time for _, e in made.query(vectors_of([0]), 9, **which)[0]), key=str)
        }
        assert (
            times[json.dumps(which)]
            == {
                '{"since": 10, "until": 30}': [10, 20],
                '{"since": 30}': [30],
                '{"until": 10}': [],
                '{"until": 1000000000000.0}': [10, 20, 30],
                '{"camera": -1}': [30],
                '{"camera": 2}': [None],
            }[json.dumps(which)]
        )
    assert [e.time for e in made.find(ids=[4, 1, 9], limit=1)] == [10]
    assert [e.time for e in made.find(after=1, limit=2)] == [20, 30]
    assert [e.time for e in made.find(ids=[4, 1, 9], after=1)] == [None]


def test_stats(made):
    made.add([{'name': n, 'camera': c} for n, c in [('a', 1), ('a', 2), ('b', 2), ('c', -1)]], vectors_of(range(4)))
    made.remove([4])
    stats = made.stats()
    size = sum(file.stat().st_size for file in made.folder.iterdir() if not file.name.endswith('-shm'))
    expected = {'engine': 'exact', 'dim': 8, 'about': ABOUT, 'entries': 3, 'names': 2, 'cameras': [1, 2], 'bytes': size}
    assert stats == {**expected, 'dead': 1}


# ---------------------------------------------------------------------------------------------------------------------
# 3. removed rows are written over


def files(folder):
    return sorted(file.name for file in folder.iterdir() if file.suffix == '.f32')


@pytest.mark.parametrize('way', ['by itself', 'asked for', 'by an update'])
def test_space_of_removed_rows_comes_back(made, way, monkeypatch):
    monkeypatch.setattr(index_files, 'MANY', 10)
    monkeypatch.setattr(index_files, 'PIECE', 4)
    ids = made.add([{'name': str(n), 'path': str(n)} for n in range(30)], vectors_of(range(30)))
    with index.open(made.folder) as reader:
        assert len(reader.find()) == 30
        (made.folder / 'vectors-99.f32').write_bytes(b'of one who was killed while writing it')
        if way == 'asked for':
            made.remove(ids[:5])
            made.compact()
            left = range(5, 30)
        elif way == 'by itself':
            assert made.remove(ids[::2]) == 15
            assert files(made.folder) == ['vectors-99.f32', 'vectors.f32']  # half are not more than half
            made.remove(ids[1:2])
            left = range(3, 30, 2)
        else:
            made.add([{'name': str(n), 'path': str(n)} for n in range(30)], vectors_of(range(30)))
            made.add([{'name': '0', 'path': '0'}], vectors_of([0]))
            left = [*range(1, 30), 0]
        assert made.stats()['dead'] == 0
        if os.name != 'nt':  # there, it has to stay while a reader has it
            assert files(made.folder) == [made.now.file] != ['vectors.f32']
        for one in (made, reader):
            found = one.find()
            assert [e.name for e in found] == [str(n) for n in left]
            np.testing.assert_array_equal(one.vectors([e.id for e in found]), vectors_of(left))
            assert one.query(vectors_of(left), 1)[0][0][1].name == str(left[0])
        again = made.add([{'name': 'new'}], vectors_of([77]))
        assert reader.query(vectors_of([77]), 1)[0][0][1].id == again[0] > max(ids)
    made.compact()
    state = made.stats()
    made.compact()
    assert made.stats()['dead'] == state['dead'] == 0


def test_nothing_left_is_an_index_too(made):
    assert made.query(vectors_of([1]), 3) == [[]]
    assert made.query(np.empty((0, 8), np.float32), 3) == []
    assert made.add([], np.empty((0, 8), np.float32)) == []
    made.remove(made.add([{}, {}], vectors_of([1, 2])))
    made.compact()
    assert made.query(vectors_of([1]), 3) == [[]]
    assert made.find() == []
    made.add([{}], vectors_of([1]))
    assert len(made.query(vectors_of([1]), 3)[0]) == 1


# ---------------------------------------------------------------------------------------------------------------------
# 4. other processes

BEGIN = """
import random, sys
import numpy as np
sys.path.insert(0, sys.argv[2])
from reid import index, index_files

def vectors_of(numbers):
    f = np.stack([np.random.default_rng(number).standard_normal(8) for number in numbers])
    return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)

def say(*words):
    with open(sys.argv[-1], 'a') as log:
        print(*words, file=log)

index_files.MANY = 30
own = index.open(sys.argv[1])
say('ready')
"""

# Batches, of which names tell the size, the camera the number. Some are removed; some take the paths of an older one.
WRITER = """
kept = []
for turn in range(int(sys.argv[3]), int(sys.argv[4])):
    size = random.randint(1, 7)
    numbers, paths = [10 * turn + i for i in range(size)], [f'{turn} {i}.jpg' for i in range(size)]
    same = [batch for batch in kept if len(batch[0]) == size]
    if turn % 3 == 2 and same:
        kept.remove(same[0])
        paths = same[0][0]
        say('leaving', *same[0][1])
    entries = [{'name': f'{size} {n}', 'camera': turn, 'path': path} for n, path in zip(numbers, paths)]
    ids = own.add(entries, vectors_of(numbers))
    say('added', *ids)
    kept.append((paths, ids))
    if len(kept) > 8:
        _, ids = kept.pop(0)
        say('leaving', *ids)
        own.remove(ids)
        say('left', *ids)
"""


@contextmanager
def process(folder, script, *words):
    """-> the process, and a function: what it has said until now, as {word: set of ids}."""
    with TemporaryDirectory() as temporary:
        log = Path(temporary) / 'said'
        command = [sys.executable, '-c', BEGIN + script, folder, ROOT, *words, log]
        child = subprocess.Popen([str(word) for word in command])

        def said():
            ids = {'ready': set(), 'added': set(), 'leaving': set(), 'left': set()}
            for word, *some in map(str.split, log.read_text().split('\n')[:-1] if log.exists() else []):
                assert not (word == 'added' and ids[word] & set(map(int, some)))
                ids[word] |= {0} if word == 'ready' else set(map(int, some))
            return ids

        try:
            yield child, said
        finally:
            child.kill()
            child.wait()


def check(own, entries, vectors=True):
    """Each has the vector that belongs to its name, and of each batch all are there."""
    numbers, batches = [int(e.name.split()[1]) for e in entries], {}
    if entries and vectors:
        np.testing.assert_array_equal(own.vectors([e.id for e in entries]), vectors_of(numbers))
    for e in entries:
        batches.setdefault(e.camera, []).append(e)
    assert {e.camera for e in entries} == {number // 10 for number in numbers}
    for batch in batches.values():
        assert len(batch) == int(batch[0].name.split()[0])


def test_what_was_acknowledged_outlives_a_kill(made):
    rng, first, added, leaving, left = np.random.default_rng(0), 0, set(), set(), set()
    for _ in range(3):
        with process(made.folder, WRITER, first, 2**31) as (child, said):
            enough = rng.integers(1, 200)
            while len(said()['added']) < enough:
                assert child.poll() is None
                time.sleep(0.01)
            child.kill()  # wherever it is just now
            child.wait()
            added, leaving, left = added | said()['added'], leaving | said()['leaving'], left | said()['left']
        with index.open(made.folder) as own:
            entries = own.find()
            check(own, entries)
        assert made.find() == entries
        ids = {e.id for e in entries}
        assert added - leaving <= ids
        assert not left & ids
        first = max((e.camera for e in entries), default=first) + 1
    assert len(left) > 30
    assert 'vectors.f32' not in files(made.folder) or os.name == 'nt'  # so it was written anew on the way


def test_readers_see_one_moment_while_another_process_writes(made):
    written = set()
    with process(made.folder, WRITER, 0, 150) as (child, said):
        while child.poll() is None:
            before = said()
            hits = [entry for _, entry in made.query(vectors_of([1]), 10**6)[0]]
            after = said()
            ids = {e.id for e in hits}
            assert before['added'] - after['leaving'] <= ids
            assert not before['left'] & ids
            check(made, hits, vectors=False)
            written.add(made.now.file)
        assert child.returncode == 0
        check(made, made.find())
        assert {e.id for e in made.find()} == said()['added'] - said()['leaving']
    assert len(written) > 2


def test_two_processes_may_write_at_once(made):
    with process(made.folder, WRITER, 0, 40) as (one, said), process(made.folder, WRITER, 1000, 1040) as (two, also):
        assert one.wait() == two.wait() == 0
        assert not said()['added'] & also()['added']
        expected = (said()['added'] | also()['added']) - (said()['leaving'] | also()['leaving'])
    check(made, made.find())
    assert {e.id for e in made.find()} == expected


def test_a_writer_waits_and_then_says_so(made):
    with index.open(made.folder, timeout=0.1) as other:
        with made.writing():
            with pytest.raises(Problem, match='being written to by another process'):
                other.add([{}], vectors_of([1]))
            assert other.query(vectors_of([1]), 1) == [[]]
        other.add([{}], vectors_of([1]))
    assert len(made.find()) == 1


def test_threads_share_one(made, monkeypatch):
    monkeypatch.setattr(index_files, 'MANY', 20)
    wrong = []

    def work(first):
        try:
            for turn in range(first, first + 40):
                numbers = [10 * turn, 10 * turn + 1]
                ids = made.add([{'name': f'2 {n}', 'camera': turn} for n in numbers], vectors_of(numbers))
                ((score, entry),) = made.query(vectors_of(numbers[:1]), 1)[0]
                assert entry.id == ids[0] and score > 0.999999
                if turn % 2:
                    assert made.remove(ids) == 2
                    assert made.find(ids=ids) == []
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(first,)) for first in (0, 1000, 2000, 3000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    check(made, made.find())
    assert len(made.find()) == 4 * 40


# ---------------------------------------------------------------------------------------------------------------------
# 5. sentences


def test_nothing_of_a_failed_call_is_there(made):
    """The second path cannot be stored: SQLite takes no text of this length here."""
    made.writer.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2000) if sys.version_info >= (3, 11) else pytest.skip('3.11')
    with pytest.raises(Exception, match='too big|string or blob'):
        made.add([{'name': 'a'}, {'name': 'b' * 3000}], vectors_of([1, 2]))
    assert made.find() == []
    made.add([{'name': 'c'}], vectors_of([3]))
    assert made.query(vectors_of([3]), 5)[0][0][1].name == 'c'


@pytest.mark.parametrize(
    'entry, words',
    [
        ({'nom': 'x'}, "entry 0: 'nom' is no field"),
        ({'name': 3}, 'name 3 is not a text'),
        ({'camera': 1.5}, "'float' object"),
        ({'camera': 2**40}, 'more than 32 bits'),
        ({'time': float('nan')}, 'time nan'),
        ({'time': 'noon'}, 'noon'),
        ({'box': [1, 2, 3]}, 'four'),
        ({'box': [1, 2, 3, float('inf')]}, 'four'),
        ({'path': 3}, 'PathLike'),
    ],
)
def test_what_no_index_takes(made, entry, words):
    with pytest.raises(Problem, match=words):
        made.add([entry], vectors_of([1]))
    assert made.find() == []


@pytest.mark.parametrize(
    'vectors, words',
    [
        (np.ones((1, 8)), 'length of vector 0 is 2.8'),
        (np.full((1, 8), np.nan), 'length of vector 0 is nan'),
        (vectors_of([1])[:, :7], r'\(1, 8\) are expected, found \(1, 7\)'),
        (vectors_of([1])[0], r'found \(8,\)'),
        (vectors_of([1, 2]), r'found \(2, 8\)'),
    ],
)
def test_vectors_that_no_index_takes(made, vectors, words):
    with pytest.raises(Problem, match=words):
        made.add([{}], vectors)
    if len(vectors) == 1 or vectors.ndim == 1:
        with pytest.raises(Problem):
            made.query(vectors, 1)
    with pytest.raises(Problem, match='0 nearest'):
        made.query(vectors_of([1]), 0)


@pytest.mark.parametrize(
    'other, words',
    [
        ({'weights': {'file': 'net_last.pth', 'sha256': 'cd'}}, 'made with weights ab, .* with cd'),
        ({'flip': False}, 'flip True, .* with False'),
        ({'ms': '1,1.1'}, 'ms 1, '),
        ({'test_feature': 'after'}, 'test_feature None'),
    ],
)
def test_another_network(made, other, words):
    index.same_network(made.folder, made.about, ABOUT | {'run': 'the same by another name', 'which_epoch': 3})
    with pytest.raises(Problem, match=words):
        index.same_network(made.folder, made.about, ABOUT | other)


def test_what_is_no_index(tmp_path):
    with pytest.raises(Problem, match='no index'):
        index.open(tmp_path)
    with pytest.raises(Problem, match='no index'):
        index.open(tmp_path / 'nothing')
    (tmp_path / 'x').touch()
    with pytest.raises(Problem, match='folder of its own'):
        index.create(tmp_path, 8, {})
    with pytest.raises(Problem, match='folder of its own'):
        index.create(tmp_path / 'x', 8, {})
    index.create(tmp_path / 'y', 8, {}).close()
    with pytest.raises(Problem, match='folder of its own'):
        index.create(tmp_path / 'y', 8, {})
    with pytest.raises(Problem, match='engine annoy: one of exact'):
        index.create(tmp_path / 'z', 8, {}, engine='annoy')
    with pytest.raises(Problem, match='ends in .db'):
        index.create(tmp_path / 'z', 8, {}, engine='milvus')
    with pytest.raises(Problem, match='take a folder'):
        index.create(tmp_path / 'z.db', 8, {}, engine='exact')


def test_damaged_files(made):
    made.add([{'name': str(n)} for n in range(9)], vectors_of(range(9)))
    made.close()
    vectors, entries = made.folder / 'vectors.f32', made.folder / 'entries.db'
    whole = vectors.read_bytes()
    vectors.write_bytes(whole[:-1])
    with index.open(made.folder) as own:
        with pytest.raises(Problem, match='damaged: 288 bytes are expected, found 287'):
            own.query(vectors_of([1]), 1)
        with pytest.raises(Problem, match='damaged'):
            own.add([{}], vectors_of([1]))
    vectors.unlink()
    with index.open(made.folder) as own:
        with pytest.raises(Problem, match='no vectors.f32'):
            own.query(vectors_of([1]), 1)
        with pytest.raises(Problem, match='vectors.f32'):
            own.add([{}], vectors_of([1]))
    vectors.write_bytes(whole + b'rows of one who was killed')
    with index.open(made.folder) as own:
        assert own.query(vectors_of([3]), 1)[0][0][1].name == '3'
        own.add([{'name': 'new'}], vectors_of([9]))
        np.testing.assert_array_equal(own.vectors(range(1, 11)), vectors_of(range(10)))
    base = sqlite3.connect(entries)
    base.execute("update settings set value = '9' where key = 'format'")
    base.commit()
    base.close()
    with pytest.raises(Problem, match='another version'):
        index.open(made.folder)
    entries.write_bytes(b'x' * 5000)
    with pytest.raises(Problem, match='not a database'):
        index.open(made.folder)
    entries.write_bytes(b'')  # as one leaves it who is killed in create()
    with pytest.raises(Problem, match='no such table'):
        index.open(made.folder)
