"""Every engine of an index against plain loops: python -m pytest tests/test_index_engines.py"""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT

from reid import index, index_exact, index_faiss
from reid.problem import Problem

DIM = 16
ENGINES = {'exact': 'people', 'faiss': 'people', 'milvus': 'people.db'}


def needed(engine):
    if engine == 'faiss':
        pytest.importorskip('faiss').omp_set_num_threads(1)
    if engine == 'milvus':
        pytest.importorskip('pymilvus')
        pytest.importorskip('milvus_lite')


@pytest.fixture(params=ENGINES)
def engine(request):
    needed(request.param)
    return request.param


@pytest.fixture
def milvus(tmp_path):
    needed('milvus')
    return tmp_path / 'people.db'


def unit(f):
    return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)


class Oracle:
    """What an index is to do, in lists and loops."""

    def __init__(self):
        self.there = {}  # id: (entry, vector)

    def add(self, ids, entries, vectors):
        for i, entry, f in zip(ids, entries, vectors, strict=True):
            path = entry.get('path')
            self.there = {j: old for j, old in self.there.items() if path is None or old[0].path != path}
            rest = entry.get('time'), path, entry.get('box')
            self.there[i] = index.Entry(i, entry.get('name', ''), entry.get('camera', -1), *rest), f

    def remove(self, ids):
        before = len(self.there)
        for i in ids:
            self.there.pop(i, None)
        return before - len(self.there)

    def find(self, name=None, camera=None, since=None, until=None):
        found = []
        for i in sorted(self.there):
            entry = self.there[i][0]
            if (
                (name is None or entry.name == name)
                and (camera is None or entry.camera == camera)
                and (since is None or (entry.time is not None and entry.time >= since))
                and (until is None or (entry.time is not None and entry.time < until))
            ):
                found.append(entry)
        return found

    def query(self, f, k, **which):
        hits = [(self.score(f, self.there[entry.id][1]), entry) for entry in self.find(**which)]
        return sorted(hits, key=lambda hit: (-hit[0], hit[1].id))[:k]

    @staticmethod
    def score(one, other):
        """In whole numbers, as they are rounded to 2^-26: Python has no others that are exact at any size."""
        return sum(round(float(a) * 2**26) * round(float(b) * 2**26) for a, b in zip(one, other, strict=True)) / 2**52


def some(dice, rng, centres, n):
    """Entries and vectors: some alike, some equal, some with a path that is there already."""
    entries = []
    for _ in range(n):
        entry = {'name': f'person {dice.randint(0, 4)} "\'\\', 'camera': dice.randint(-1, 3)}
        entry['time'] = dice.choice([None, dice.randint(0, 40) / 4])
        entry['path'] = dice.choice([None, f'{dice.randint(0, 60)}.jpg'])
        entry['box'] = dice.choice([None, [1.5, 2, dice.random(), 4]])
        entries.append({key: value for key, value in entry.items() if value is not None})
    f = centres[rng.integers(0, len(centres), n)] + rng.choice([0, 1e-7, 0.3], (n, 1)) * rng.standard_normal((n, DIM))
    return entries, unit(f)


@pytest.mark.parametrize('seed', range(3))
def test_does_what_plain_loops_do(engine, seed, tmp_path, monkeypatch):
    monkeypatch.setattr(index_faiss, 'LARGE', 8)
    monkeypatch.setattr(index_faiss, 'SHARE', 1)  # with all lists looked into, nobody is missed
    monkeypatch.setattr(index.index_files, 'MANY', 25)
    dice, rng, oracle, given = random.Random(seed), np.random.default_rng(seed), Oracle(), []
    centres = rng.standard_normal((6, DIM))
    where = tmp_path / ENGINES[engine]
    own = index.create(where, DIM, {'run': 'x'}, engine=engine)
    try:
        for turn in range(60):
            if turn % 20 == 19:
                own.close()
                own = index.open(where)  # it knows its engine
                assert (own.engine, own.dim, own.about) == (engine, DIM, {'run': 'x'})
            entries, f = some(dice, rng, centres, dice.choice([1, 2, 20]))
            ids = own.add(entries, f)
            assert ids == sorted(ids) and not set(ids) & set(given) and min(ids) > max(given, default=-1)
            given += ids
            oracle.add(ids, entries, f)
            if turn % 3 == 2:
                gone = dice.sample(given, min(len(given), dice.choice([1, 15, 40])))
                assert own.remove(gone) == oracle.remove(gone)
            if turn == 30:
                own.compact()
            which = {}
            if dice.random() < 0.5:
                which['name'] = f'person {dice.randint(0, 5)} "\'\\'
            if dice.random() < 0.3:
                which['camera'] = dice.randint(-1, 4)
            if dice.random() < 0.3:
                which['since'] = dice.randint(0, 10)
            if dice.random() < 0.3:
                which['until'] = dice.randint(0, 10)
            queries = np.concatenate([unit(rng.standard_normal((2, DIM))), unit(centres[:1]), f[:1]])
            k = dice.choice([1, 5, 1000])
            assert own.query(queries, k, **which) == [oracle.query(query, k, **which) for query in queries]
            assert own.find(**which) == oracle.find(**which)
        entries = oracle.find()
        assert own.find() == entries and own.find(limit=7) == entries[:7]
        second = [entry.id for entry in entries[1::2]]
        assert own.find(after=second[1], limit=2) == [entry for entry in entries if entry.id > second[1]][:2]
        assert own.find(ids=second, after=second[0]) == entries[3::2]
        assert own.find(ids=[e.id for e in entries[3:9]] + [10**9]) == entries[3:9]
        assert own.find(path=entries[0].path) == [e for e in entries if entries[0].path in (None, e.path)]
        order = dice.sample([e.id for e in entries], 10)
        np.testing.assert_array_equal(own.vectors(order), [oracle.there[i][1] for i in order])
        stats = own.stats()
        cameras = sorted({e.camera for e in entries})
        assert (stats['entries'], stats['names'], stats['cameras']) == (
            len(entries),
            len({e.name for e in entries}),
            cameras,
        )
        assert stats['bytes'] > 0
    finally:
        own.close()


def test_sentences_are_the_same_for_all(engine, tmp_path):
    where, f = tmp_path / ENGINES[engine], np.eye(DIM, dtype=np.float32)[:1]
    with pytest.raises(Problem, match='no index|no such index'):
        index.open(where)
    with index.create(where, DIM, {}, engine=engine) as own:
        with pytest.raises(Problem, match='unit length'):
            own.add([{}], 2 * f)
        with pytest.raises(Problem, match='another network'):
            own.query(f[:, 1:], 1)
        with pytest.raises(Problem, match="'nom' is no field"):
            own.add([{'nom': 'x'}], f)
        with pytest.raises(Problem, match='no entry'):
            own.vectors([3])
        with pytest.raises(Problem, match='0 nearest'):
            own.query(f, 0)
        assert own.query(f, 1) == [[]] and own.find() == [] and own.remove([1, 2]) == 0
        assert own.add([], f[:0]) == [] and own.query(f[:0], 1) == []
        assert own.stats()['entries'] == 0
    with pytest.raises(Problem, match='folder of its own|holds an index already'):
        index.create(where, DIM, {}, engine=engine)


@pytest.mark.parametrize('engine, package', [('faiss', 'faiss'), ('milvus', 'pymilvus')])
def test_a_package_that_is_not_there(engine, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Problem, match='pip install'):
        index.create(tmp_path / ENGINES[engine], DIM, {}, engine=engine)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------------------
# faiss


@pytest.fixture
def large(tmp_path, monkeypatch):
    """3000 in 150 clusters, with those who were removed among them."""
    needed('faiss')
    monkeypatch.setattr(index_faiss, 'LARGE', 500)
    rng = np.random.default_rng(0)
    f = unit(rng.standard_normal((150, DIM))[np.arange(3000) % 150] + 0.2 * rng.standard_normal((3000, DIM)))
    index.create(tmp_path / 'people', DIM, {}, engine='faiss').close()
    with index.open(tmp_path / 'people') as own:
        own.add([{'camera': n % 2, 'name': str(n % 150)} for n in range(3000)], f)
        own.remove(range(1, 3000, 7))
        yield own, f


def test_a_part_of_a_large_one_is_looked_at(large, monkeypatch):
    own, f = large
    queries = np.concatenate([f[:100], unit(np.random.default_rng(1).standard_normal((100, DIM)))])
    with index.open(own.folder, engine='exact') as other:
        monkeypatch.setattr(index_exact, 'search', None)  # so it is found by faiss alone
        for which in ({}, {'camera': 1}):
            missed = 0
            for hits, best in zip(own.query(queries, 10, **which), other.query(queries, 10, **which), strict=True):
                assert len(hits) == 10 and hits == sorted(hits, key=lambda hit: (-hit[0], hit[1].id))
                assert all(entry.camera in which.values() or not which for _, entry in hits)
                assert {hit for hit in hits if hit[0] >= best[-1][0]} <= set(best)  # with the very same scores
                missed += len(set(best) - set(hits))
            assert 0 < missed < 500  # of 2000


def test_a_small_selection_and_a_large_k_are_exact(large):
    own, f = large
    with index.open(own.folder, engine='exact') as other:
        assert own.query(f[:9], 10, name='3') == other.query(f[:9], 10, name='3')
        assert own.query(f[:3], 2570) == other.query(f[:3], 2570)


def test_it_keeps_up(large):
    own, f = large
    own.query(f[:1], 1)
    new = unit(np.random.default_rng(1).standard_normal((1, DIM)))
    with index.open(own.folder) as other:
        (i,) = other.add([{'name': 'new'}], new)
        assert own.query(new, 1)[0][0][1].id == other.query(new, 1)[0][0][1].id == i
        other.remove([i])
        assert own.query(new, 1)[0][0][1].id != i
        lists = own.search.lists
        other.compact()
        assert own.query(f[1:2], 1)[0][0][1].id == 2 and own.search.lists is not lists
        count = own.search.lists.nlist
        other.add([{}] * 9000, np.repeat(f, 3, axis=0))
        assert own.query(f[1:2], 1)[0][0][1].id == 2 and own.search.lists.nlist > count


@pytest.mark.parametrize('damage', ['none', 'empty', 'text', 'pickle', 'shape', 'nan'])
def test_centres_that_are_kept(large, damage):
    own, f = large
    expected = own.query(f[:50], 10)
    (path,) = own.folder.glob('centres-*.npy')
    whole = path.read_bytes()
    centres = np.load(path)
    if damage == 'empty':
        path.write_bytes(b'')
    if damage == 'text':
        path.write_text('what is this?')
    if damage == 'pickle':
        np.save(path, np.array([print]), allow_pickle=True)
    if damage == 'shape':
        np.save(path, centres[:, 1:])
    if damage == 'nan':
        np.save(path, np.full_like(centres, np.nan))
    with index.open(own.folder) as other:
        assert other.query(f[:50], 10) == expected
    assert path.read_bytes() == whole


# ---------------------------------------------------------------------------------------------------------------------
# Milvus

ODD = [
    "x' or id > 0 or '",
    'x" or id > 0 or "',
    '\\5c;',
    'a\nb',
    '张伟',
    '🕵🏽‍♀️',
    '',
    os.fsdecode(b'\xe9'),
    '\ud83d\ude00',
    '{name}',
]


def test_milvus_returns_odd_texts(milvus):
    vectors = unit(np.random.default_rng(0).standard_normal((len(ODD), DIM)))
    with index.create(milvus, DIM, {'run': "ü'"}) as own:
        ids = own.add([{'name': text, 'path': text} for text in ODD], vectors)
        for i, text in zip(ids, ODD, strict=True):
            expected = [index.Entry(i, text, -1, None, text, None)]
            assert own.find(name=text) == own.find(path=text) == expected
            assert [entry for _, entry in own.query(vectors[:1], 9, name=text)[0]] == expected
        assert own.about == {'run': "ü'"}


def test_milvus_ties_beyond_what_is_asked_for(milvus):
    """Scores that differ by less than Milvus rounds them: more are fetched, until none can be missed."""
    rng = np.random.default_rng(0)
    f = unit(np.ones((300, DIM)) + 1e-7 * rng.standard_normal((300, DIM)))
    oracle = Oracle()
    with index.create(milvus, DIM, {}) as own:
        oracle.add(own.add([{}] * 300, f), [{}] * 300, f)
        assert own.query(f[:3], 5) == [oracle.query(query, 5) for query in f[:3]]


def test_milvus_gives_pages(milvus, monkeypatch):
    from reid import index_milvus

    monkeypatch.setattr(index_milvus, 'MOST', 7)
    monkeypatch.setattr(index_milvus, 'SOME', 3)
    monkeypatch.setattr(index_milvus, 'NUMBERS', 5 * DIM)
    f = unit(np.random.default_rng(0).standard_normal((40, DIM)))
    with index.create(milvus, DIM, {}) as own:
        ids = own.add([{'path': str(n)} for n in range(40)], f)
        assert [e.id for e in own.find()] == ids and [e.id for e in own.find(limit=9)] == ids[:9]
        np.testing.assert_array_equal(own.vectors(ids), f)
        ids = own.add([{'path': str(n)} for n in range(40)], f)
        assert [e.id for e in own.find()] == ids
        assert own.remove(ids) == 40


CHILD = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from reid import index
from reid.problem import Problem
try:
    own = index.open(sys.argv[2])
except Problem as problem:
    print(problem)
    sys.exit(2)
for n in range(10**9):
    f = np.random.default_rng(n).standard_normal((1, 16))
    print(*own.add([{'name': str(n)}], f / np.linalg.norm(f)), flush=True)
"""


def test_milvus_lite_is_for_one_process_and_outlives_a_kill(milvus):
    command = [sys.executable, '-c', CHILD, str(ROOT), str(milvus)]
    with index.create(milvus, DIM, {}), index.open(milvus):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2 and 'one at a time' in done.stdout and not done.stderr
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    ids = [int(child.stdout.readline()) for _ in range(20)]
    child.kill()
    ids += [int(line) for line in child.stdout.read().split()]
    child.wait()
    child.stdout.close()
    with index.open(milvus) as own:
        entries = own.find()
        assert {*ids} <= {e.id for e in entries} and len(entries) <= len(ids) + 1
        expected = [unit(np.random.default_rng(int(e.name)).standard_normal((1, DIM)))[0] for e in entries]
        np.testing.assert_allclose(own.vectors([e.id for e in entries]), expected, atol=1e-7)


def test_milvus_over_the_network(milvus, tmp_path):
    """The same as from a server: Milvus Lite speaks like one."""
    needed('milvus')
    from milvus_lite.server_manager import server_manager_instance

    where = server_manager_instance.start_and_get_uri(str(milvus))
    try:
        f = unit(np.random.default_rng(0).standard_normal((5, DIM)))
        with index.create(where, DIM, {'run': 'x'}) as own, index.open(where) as other:
            ids = own.add([{'name': str(n)} for n in range(5)], f)
            assert [other.query(f, 1)[n][0][1].id for n in range(5)] == ids
            assert other.about == {'run': 'x'} and other.stats()['bytes'] is None
    finally:
        server_manager_instance.release_server(str(milvus))
    with pytest.raises(Problem, match='Milvus says'):
        index.open(where, timeout=1)
