"""The protocol against plain loops and hand-made cases: python -m pytest tests/test_ranking.py"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid import counting, ranking
from reid.problem import Problem
from reid.results import Features


def by_loops(query, gallery):
    """The protocol of Market-1501, written out for one query at a time with nothing but a sort and counting.

    A score is the sum of the products of features that are rounded to multiples of 2^-26; fsum adds without error.
    """
    cmc, trapezoid, standard, inp = np.zeros(max(10, len(gallery.ids))), [], [], []
    snapped = (np.rint(gallery.f.astype(float) * 2**26) / 2**26).tolist()
    for f, person, cam in zip(query.f, query.ids, query.cams, strict=True):
        f = (np.rint(f.astype(float) * 2**26) / 2**26).tolist()
        scores = [math.fsum(a * b for a, b in zip(f, g, strict=True)) for g in snapped]
        order = sorted(range(len(scores)), key=lambda j: (-scores[j], j))
        hits = []
        for j in order:
            if gallery.ids[j] == -1:
                continue
            if gallery.ids[j] == person and gallery.cams[j] == cam and cam != -1:
                continue
            hits.append(gallery.ids[j] == person)
        n, found, area, precision_sum = sum(hits), 0, 0.0, 0.0
        if n == 0:
            trapezoid.append(0.0)
            continue
        for rank, hit in enumerate(hits):
            if hit:
                old_precision = found / rank if rank else 1.0
                found += 1
                precision = found / (rank + 1)
                area += (old_precision + precision) / 2 / n
                precision_sum += precision
                last = rank
        cmc[hits.index(True) :] += 1
        trapezoid.append(area)
        standard.append(precision_sum / n)
        inp.append(n / (last + 1))
    cmc = cmc / len(query.ids)
    if not standard:
        return None
    return {
        'rank1': cmc[0],
        'rank5': cmc[4],
        'rank10': cmc[9],
        'map_trapezoid': np.mean(trapezoid),
        'map_standard': np.mean(standard),
        'minp': np.mean(inp),
        'queries': len(query.ids),
        'queries_without_good': len(trapezoid) - len(standard),
    }


def people(rng, n, ids, dim=8, kinds=None, cams=(1, 2, 3)):
    """n features of unit length; of `kinds` kinds only, so that many scores are equal; or nearly all the same."""
    f = rng.standard_normal((n if not kinds or kinds == 'one' else kinds, dim))
    if kinds == 'one':
        f = 1 + 1e-6 * f
    f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)
    if kinds and kinds != 'one':
        f = f[rng.integers(0, kinds, n)]
    return Features(f, rng.choice(ids, n), rng.choice(cams, n), None)


def same_as_loops(query, gallery):
    expected = by_loops(query, gallery)
    if expected is None:
        with pytest.raises(Problem, match='no query has a good image'):
            ranking.evaluate(query, gallery)
    else:
        assert ranking.evaluate(query, gallery) == pytest.approx(expected, abs=1e-12)


# Each way to count: quick scores with exact ones in doubt, and what a GPU does, on the CPU.
PATHS = {'quickly': counting.above_quickly, 'exactly': counting.above_exactly}


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n_query=st.integers(1, 12),
    n_gallery=st.integers(1, 40),
    kinds=st.sampled_from([None, 2, 5, 'one']),
    cams=st.sampled_from([(1, 2, 3), (1, 2, -1), (-1,)]),
    block=st.sampled_from([1, 3, 256]),
    tile=st.sampled_from([1, 60, 2**24]),
    many=st.sampled_from([0, 100, 2**20]),
    few=st.sampled_from([0, 2**17]),
    path=st.sampled_from(sorted(PATHS)),
)
def test_equals_plain_loops(seed, n_query, n_gallery, kinds, cams, block, tile, many, few, path):
    """Ties, junk, distractors, cameras that are not known, people who are not in the gallery, any size of piece."""
    rng = np.random.default_rng(seed)
    query = people(rng, n_query, [-1, 1, 2, 3, 99], kinds=kinds, cams=cams)
    gallery = people(rng, n_gallery, [-1, 0, 1, 2, 3], kinds=kinds, cams=cams)
    if kinds in (2, 5):
        query = query._replace(f=gallery.f[rng.integers(0, n_gallery, n_query)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, 'BLOCK', block)
        patch.setattr(counting, 'MANY', many)
        patch.setattr(counting, 'FEW', few)
        patch.setattr(counting, 'TILE', tile)
        patch.setattr(counting, 'above_quickly', PATHS[path])
        same_as_loops(query, gallery)


@pytest.mark.parametrize('path', PATHS)
@pytest.mark.parametrize('kinds', [None, 30, 'one'])
@pytest.mark.parametrize(('few', 'many'), [(2**17, 2**20), (0, 2**20), (0, 0)])
def test_a_larger_gallery(path, kinds, few, many, monkeypatch):
    monkeypatch.setattr(counting, 'FEW', few)
    monkeypatch.setattr(counting, 'MANY', many)
    monkeypatch.setattr(counting, 'above_quickly', PATHS[path])
    monkeypatch.setattr(counting, 'TILE', 64 * 900)
    rng = np.random.default_rng(1)
    query, gallery = (people(rng, n, list(range(-1, 20)), dim=64, kinds=kinds) for n in (40, 2000))
    same_as_loops(query, gallery)


def test_features_may_be_float16_and_mapped_from_a_file(tmp_path):
    rng = np.random.default_rng(2)
    query, gallery = (people(rng, n, [-1, 0, 1, 2, 3], dim=16) for n in (20, 300))
    np.save(tmp_path / 'g.npy', gallery.f.astype(np.float16))
    mapped = gallery._replace(f=np.load(tmp_path / 'g.npy', mmap_mode='r'))
    same_as_loops(query, mapped)
    np.save(tmp_path / 'q.npy', query.f)
    assert ranking.evaluate(query._replace(f=np.load(tmp_path / 'q.npy', mmap_mode='r')), mapped) == (
        ranking.evaluate(query, mapped)
    )


def test_features_of_float64_are_taken_as_float32():
    rng = np.random.default_rng(2)
    query, gallery = (people(rng, n, [-1, 0, 1, 2, 3], dim=16, kinds=30) for n in (20, 300))
    finer = [part._replace(f=part.f + rng.uniform(-1e-9, 1e-9, part.f.shape)) for part in (query, gallery)]
    expected = [part._replace(f=part.f.astype(np.float32)) for part in finer]
    assert ranking.evaluate(*finer) == ranking.evaluate(*expected)


def test_features_that_are_tiny_or_huge():
    rng = np.random.default_rng(4)
    query, gallery = (people(rng, n, [0, 1, 2, 3]) for n in (20, 100))
    expected = ranking.evaluate(query, gallery)
    for factor in (2.0**-60, 2.0**60):
        scaled = [part._replace(f=part.f * np.float32(factor)) for part in (query, gallery)]
        assert ranking.evaluate(scaled[0], gallery) == expected
        assert ranking.evaluate(query, scaled[1]) == expected


def test_many_images_of_an_identity_at_chance(monkeypatch):
    rng = np.random.default_rng(5)
    query, gallery = (people(rng, n, [1, 2, 3], dim=4) for n in (5, 3000))
    expected = ranking.evaluate(query, gallery)
    monkeypatch.setattr(counting, 'MANY', 0)
    assert ranking.evaluate(query, gallery) == expected


def test_the_length_of_features_changes_nothing():
    rng = np.random.default_rng(3)
    query, gallery = (people(rng, n, [0, 1, 2, 3], kinds=9) for n in (20, 100))
    longer = query._replace(f=query.f * 32), gallery._replace(f=gallery.f * 128)
    assert ranking.evaluate(*longer) == ranking.evaluate(query, gallery)


def ranks_of(scores, ids, cams, person=1, cam=1):
    query = Features(np.ones((1, 1)), np.array([person]), np.array([cam]), None)
    gallery = Features(np.ones((len(ids), 1)), np.array(ids), np.array(cams), None)
    return ranking.ranks_in([(0, np.array([scores], np.float32))], query, gallery)[0].tolist()


def test_junk_is_taken_out_before_ranking():
    assert ranks_of([0.9, 0.8, 0.7, 0.6], [-1, 1, 2, 1], [2, 1, 2, 2]) == [1]


def test_equal_scores_rank_in_gallery_order():
    assert ranks_of([0.5] * 5, [2, 1, 2, 1, 2], [2] * 5) == [1, 3]
    assert ranks_of([0.5, 0.5, 0.9], [1, 2, 2], [2] * 3) == [1]
    assert ranks_of([0.5] * 4, [1, 1, 2, 1], [1, 2, 2, 2]) == [0, 2]


def test_one_gallery_image():
    assert ranks_of([-0.3], [1], [2]) == [0]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from([2, 5, 1000]), many=st.sampled_from([0, 2**20]))
def test_ranks_in_given_scores(seed, levels, many):
    rng = np.random.default_rng(seed)
    query, gallery = people(rng, 6, [1, 2, 3]), people(rng, 30, [-1, 0, 1, 2, 3])
    scores = (rng.integers(0, levels, (6, 30)) / 8).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(counting, 'MANY', many)
        found = ranking.ranks_in([(0, scores[:4].copy()), (4, scores[4:].copy())], query, gallery)
    for i in range(6):
        good, junk = ranking.judge(query.ids[i], query.cams[i], gallery.ids, gallery.cams)
        order = [j for j in sorted(range(30), key=lambda j: (-scores[i, j], j)) if not junk[j]]
        assert found[i].tolist() == [rank for rank, j in enumerate(order) if good[j]]


def test_one_good_image_at_rank_1_of_0():
    """The published example of how far the two averages are apart."""
    found = ranking.figures([np.array([1])])
    assert (found['map_trapezoid'], found['map_standard'], found['rank1'], found['rank5']) == (0.25, 0.5, 0, 1)


def test_without_a_good_image():
    found = ranking.figures([np.array([0]), np.array([], int)])
    assert found['queries_without_good'] == 1
    assert found['rank1'] == found['map_trapezoid'] == 0.5  # of all queries
    assert found['map_standard'] == found['minp'] == 1  # of those that can be answered


def test_all_junk_is_a_sentence():
    rng = np.random.default_rng(0)
    gallery = people(rng, 20, [-1])
    with pytest.raises(Problem, match='no query has a good image'):
        ranking.evaluate(people(rng, 3, [1]), gallery)


def test_an_empty_gallery_is_a_sentence():
    rng = np.random.default_rng(0)
    with pytest.raises(Problem, match='nothing to rank: 3 queries and 0 gallery images'):
        ranking.evaluate(people(rng, 3, [1]), people(rng, 0, [1]))


@pytest.mark.parametrize(('value', 'words'), [(np.nan, 'feature 4 holds nan'), (0, 'feature 4 is all zeros')])
def test_broken_features_are_a_sentence(value, words):
    rng = np.random.default_rng(0)
    query, gallery = people(rng, 3, [1]), people(rng, 20, [1])
    gallery.f[4] = value
    with pytest.raises(Problem, match=words):
        ranking.evaluate(query, gallery)
