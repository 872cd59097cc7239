"""Batches of P identities x K pictures: python -m pytest tests/test_samplers.py"""

import itertools
import math
from collections import Counter
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from reid import processes
from reid.problem import Problem
from reid.samplers import PK, deal


@st.composite
def crowds(draw):
    """A training set in any order, and a P and K that suit it: (labels, cams, p, k)."""
    counts = [draw(st.integers(2, 14)), *draw(st.lists(st.integers(1, 14), min_size=1, max_size=9))]
    names = draw(st.lists(st.integers(-5, 2000), min_size=len(counts), max_size=len(counts), unique=True))
    labels = draw(st.permutations([name for name, n in zip(names, counts, strict=True) for _ in range(n)]))
    cams = draw(st.lists(st.integers(-1, 3), min_size=len(labels), max_size=len(labels)))
    return labels, cams, draw(st.integers(2, len(counts))), draw(st.integers(2, max(counts)))


def crowd(*counts):
    """Labels 0, 1, ... with so many pictures each."""
    return [i for i, n in enumerate(counts) for _ in range(n)]


def hands(sampler, labels):
    """An epoch, taken apart again: for each batch a list of (identity, its K positions)."""
    epoch = []
    for batch in sampler:
        assert all(type(i) is int for i in batch)
        parts = [batch[i : i + sampler.k] for i in range(0, len(batch), sampler.k)]
        assert all(len({labels[i] for i in part}) == 1 for part in parts)  # K in a row are of one identity
        epoch.append([(labels[part[0]], part) for part in parts])
    return epoch


# ---------------------------------------------------------------------------------------------------------------------
# 1. an epoch


@settings(deadline=None, max_examples=300)
@given(crowds(), st.integers(0, 5), st.booleans())
def test_an_epoch_is_what_its_docstring_says(people, epoch, balanced):
    labels, cams, p, k = people
    sampler = PK(labels, p, k, seed=3, cams=cams if balanced else None)
    sampler.set_epoch(epoch)
    batches = hands(sampler, labels)

    groups = {name: math.ceil(n / k) for name, n in Counter(labels).items()}
    assert len(batches) == len(sampler) == max(math.ceil(sum(groups.values()) / p), *groups.values())
    for batch in batches:
        assert len(batch) == p == len({name for name, _ in batch})  # never the same identity twice
        assert all(len(part) == k for _, part in batch)

    for name, needed in groups.items():
        mine = {i for i, label in enumerate(labels) if label == name}
        parts = [part for batch in batches for who, part in batch if who == name]
        assert set(sum(parts[:needed], [])) == mine  # all of its pictures, before it comes again to fill up
        for part in parts:
            times = [part.count(i) for i in mine]
            assert max(times) - min(times) <= 1  # no picture again before each was there


@settings(deadline=None)
@given(st.integers(2, 5), st.integers(2, 5), st.integers(1, 4), st.integers(1, 3))
def test_where_nothing_is_missing_every_picture_comes_once(p, k, groups, times):
    labels = crowd(*[k * groups] * (p * times))
    assert sorted(sum(PK(labels, p, k), [])) == list(range(len(labels)))


def test_a_few_pictures_are_repeated_and_many_are_not():
    labels = crowd(1, 3, 5)
    for epoch in range(20):
        sampler = PK(labels, 3, 5)
        sampler.set_epoch(epoch)
        [batch] = hands(sampler, labels)
        times = {name: sorted(Counter(part).values()) for name, part in batch}
        assert times == {0: [5], 1: [1, 2, 2], 2: [1, 1, 1, 1, 1]}


def test_the_last_group_is_filled_up_with_other_pictures():
    labels = crowd(7, 7)
    for epoch in range(20):
        sampler = PK(labels, 2, 4)
        sampler.set_epoch(epoch)
        assert len(sampler) == 2
        for parts in zip(*[sorted(batch) for batch in hands(sampler, labels)], strict=True):
            assert all(len(set(part)) == 4 for _, part in parts)
            assert sorted(Counter(sum([part for _, part in parts], [])).values()) == [1, 1, 1, 1, 1, 1, 2]


def test_the_last_batch_is_filled_up_with_other_identities():
    labels = crowd(2, 2, 2, 2, 2)
    first, second = hands(PK(labels, 3, 2), labels)
    names = Counter(name for name, _ in first + second)
    assert sorted(names.values()) == [1, 1, 1, 1, 2]


def test_an_identity_of_very_many_pictures_is_in_every_batch():
    labels = crowd(12, 2, 2, 2)
    batches = hands(PK(labels, 2, 2), labels)
    assert len(batches) == 6  # not (6 + 3) / 2
    assert all(0 in dict(batch) for batch in batches)
    assert {name for batch in batches for name, _ in batch} == {0, 1, 2, 3}


def test_chance_leaves_nobody_out():
    """Over many epochs all identities meet, all pictures meet and all fill up; no place in a batch belongs to anybody
    (or one process would always get the large identities)."""
    labels = crowd(3, 3, 9, 3, 3, 7)
    sampler, names, pictures, again, places = PK(labels, 2, 3), set(), set(), set(), Counter()
    for epoch in range(300):
        sampler.set_epoch(epoch)
        batches = hands(sampler, labels)
        assert len(batches) == 5
        for batch in batches:
            names.add(frozenset(name for name, _ in batch))
            pictures |= {pair for _, part in batch for pair in itertools.combinations(sorted(part), 2)}
            places.update((name, place) for place, (name, _) in enumerate(batch))
        times = Counter(i for batch in batches for _, part in batch for i in part)
        again |= {i for i in times if labels[i] == 5 and times[i] > 1}
    assert len(names) == math.comb(6, 2)
    assert len(pictures) == 4 * math.comb(3, 2) + math.comb(9, 2) + math.comb(7, 2)
    assert len(again) == 7
    assert all(0.75 < places[name, 0] / places[name, 1] < 1.33 for name in range(6))


def test_large_identities_are_spread_over_the_epoch():
    """One with a third of all groups is in 20 of 30 batches: in about 10 of either half, not all at the end."""
    labels = crowd(40, *[2] * 40)
    sampler, early = PK(labels, 2, 2), []
    for epoch in range(30):
        sampler.set_epoch(epoch)
        present = [0 in dict(batch) for batch in hands(sampler, labels)]
        assert sum(present) == 20
        early.append(sum(present[:15]))
    assert 8 < np.mean(early) < 12


# ---------------------------------------------------------------------------------------------------------------------
# 2. epochs and processes


@settings(deadline=None)
@given(crowds(), st.integers(-3, 2**40), st.integers(0, 100))
def test_an_epoch_is_the_same_again(people, seed, epoch):
    labels, cams, p, k = people
    one, other = (PK(labels, p, k, seed, cams) for _ in range(2))
    list(other)  # an epoch that a resumed run has not seen
    for sampler in (one, other):
        sampler.set_epoch(epoch)
    assert list(one) == list(other) == list(one)


def test_epochs_and_seeds_differ():
    labels = crowd(*[8] * 10)

    def draw(seed, epoch):
        sampler = PK(labels, 4, 4, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert len({str(draw(seed, 0)) for seed in range(10)}) == 10
    assert len({str(draw(0, epoch)) for epoch in range(10)}) == 10
    assert draw(3, 4) == draw(4, 3)  # seed + epoch, as the DistributedSampler of torch has it


@contextmanager
def as_if(rank, world):
    """As if this were one of several processes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (('together', world > 1), ('rank', rank), ('count', world)):
            patch.setattr(processes, name, lambda value=value: value)
        yield


@settings(deadline=None)
@given(crowds(), st.integers(0, 5), st.data())
def test_all_processes_together_are_one(people, epoch, data):
    labels, cams, p, k = people
    world = data.draw(st.sampled_from([n for n in range(1, p + 1) if p % n == 0]))
    alone, ranks = PK(labels, p, k, 1, cams), []
    alone.set_epoch(epoch)
    for rank in range(world):
        with as_if(rank, world):
            ranks.append(list(processes.own(alone)))
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert sum(parts, []) == whole
        assert {len(part) for part in parts} == {len(whole) // world}
        names = [{labels[i] for i in part} for part in parts]
        assert sum(map(len, names)) == p == len(set.union(*names))  # an identity is never split


# ---------------------------------------------------------------------------------------------------------------------
# 3. cameras


def best(counts, k):
    """Every way to put all pictures into ceil(n / k) groups of k, by trying: the most cameras, added over the groups,
    and the least sum of squares (the evenest way). counts: how many pictures each camera has."""
    parts = [part for part in itertools.product(*(range(min(n, k) + 1) for n in counts)) if sum(part) == k]
    ways = {tuple(0 for _ in counts): (0, 0)}  # pictures used so far -> (cameras, minus the squares), each at its best
    for _ in range(math.ceil(sum(counts) / k)):
        longer = {}
        for used, (cameras, squares) in ways.items():
            for part in parts:
                now = tuple(min(a + b, n) for a, b, n in zip(used, part, counts, strict=True))
                c, s = longer.get(now, (0, -math.inf))
                c, s = max(c, cameras + sum(b > 0 for b in part)), max(s, squares - sum(b * b for b in part))
                longer[now] = c, s
        ways = longer
    cameras, squares = ways[tuple(counts)]
    return cameras, -squares


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(2, 5), st.integers(0, 1000))
def test_no_other_way_to_deal_has_more_cameras_or_is_more_even(counts, k, seed):
    cams = np.repeat(np.arange(len(counts)) - 1, counts)
    groups = deal(cams, k, np.random.default_rng(seed))
    shares = [Counter(cams[part].tolist()) for part in groups]
    if sum(counts) < k:  # everything, and again: nothing to choose
        assert [len(share) for share in shares] == [len(counts)]
        return
    cameras, squares = best(counts, k)
    assert sum(len(share) for share in shares) == cameras
    assert sum(n * n for share in shares for n in share.values()) == squares


def shares(cams, k=4):
    """Pictures from each camera, for all groups of identity 0, in some epochs."""
    labels = crowd(len(cams), k)
    sampler = PK(labels, 2, k, cams=[*cams, *[1] * k])
    for epoch in range(10):
        sampler.set_epoch(epoch)
        for batch in hands(sampler, labels):
            yield Counter(cams[i] for i in dict(batch)[0])


def test_each_group_has_as_many_cameras_as_it_can():
    assert all(share == {1: 1, 2: 1, 3: 1, 6: 1} for share in shares([1] * 3 + [2] * 3 + [3] * 3 + [6] * 3))
    assert all(share == {1: 2, 2: 2} for share in shares([1] * 6 + [2] * 6))
    assert all(share == {1: 3, 2: 1} for share in shares([1] * 9 + [2] * 3))
    assert all(len(share) == 4 for share in shares([1, 2, 3, 4, 5, 6] * 2))


def test_an_unknown_camera_is_one_like_any_other():
    assert all(share == {-1: 2, 5: 2} for share in shares([-1] * 4 + [5] * 4))


def test_a_rare_camera_fills_up():
    assert all(share == {1: 3, 2: 1} for share in shares([1, 1, 1, 1, 1, 1, 2]))  # its only picture is in both groups


def test_the_groups_of_an_identity_come_in_any_order():
    firsts = list(shares([1, 1, 1, 2], k=2))[::2]
    assert {len(share) for share in firsts} == {1, 2}  # with the rare camera, or without


def test_without_cams_chance_alone_decides():
    labels, cams = crowd(8, 8), [1, 2] * 8
    sampler, found = PK(labels, 2, 4), set()
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for _, part in sum(hands(sampler, labels), []):
            found.add(sum(cams[i] == 1 for i in part))
    assert {1, 2, 3} <= found


# ---------------------------------------------------------------------------------------------------------------------
# 4. in use


@pytest.mark.parametrize('workers', [0, 2])
def test_a_loader_takes_its_batches(workers):
    labels = torch.tensor(crowd(5, 2, 9, 4, 1, 6))
    cams = np.arange(len(labels)) % 3
    sampler = PK(labels, 4, 3, cams=cams)
    pictures = TensorDataset(torch.arange(len(labels)), labels)
    loader = DataLoader(pictures, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)
    seen = []
    for epoch in (1, 2):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == len(loader) == len(sampler)
        assert [x.tolist() for x, _ in batches] == list(sampler)
        for _, y in batches:
            assert y.shape == (12,)
            assert y.view(4, 3).unique(dim=1).shape == (4, 1)
        seen.append([x.tolist() for x, _ in batches])
    assert seen[0] != seen[1]


def test_identities_may_have_names_and_any_kind_of_sequence():
    for labels in (('b', 'a', 'b', 'a'), np.array([7, -1, 7, -1]), torch.tensor([1, 0, 1, 0])):
        assert sorted(sum(PK(labels, 2, 2), [])) == [0, 1, 2, 3]


ONE = {'rank': 0, 'world': 1}


@pytest.mark.parametrize(
    ('p', 'k', 'place', 'sentence'),
    [
        (4, 2, ONE, '--pk 4 2: a batch of 4 identities is expected, found 3'),
        (1, 2, ONE, '--pk 1 2: P and K of 2 or more'),
        (2, 1, ONE, '--pk 2 1: P and K of 2 or more'),
        (0, 0, ONE, '--pk 0 0: P and K of 2 or more'),
        (2, 6, ONE, '--pk 2 6: K is larger than any identity has, 5 pictures at most'),
        (3, 2, {'rank': 1, 'world': 2}, '--pk 3 2: 2 processes .* multiple of 2'),
        (2, 2, {'rank': 3, 'world': 4}, '--pk 2 2: 4 processes .* multiple of 4'),
    ],
)
def test_what_does_not_suit_is_a_sentence(p, k, place, sentence):
    with as_if(**place), pytest.raises(Problem, match=sentence):
        PK(crowd(5, 1, 2), p, k)


def test_no_pictures_are_a_sentence_too():
    with pytest.raises(Problem, match='found 0 in all'):
        PK([], 2, 2)


def test_k_may_be_as_large_as_the_largest_identity():
    assert len(PK(crowd(5, 1, 2), 2, 5)) == 2


def test_cameras_of_other_pictures_are_a_mistake():
    with pytest.raises(ValueError, match='4 labels and 5 cameras'):
        PK(crowd(2, 2), 2, 2, cams=[1, 2, 3, 4, 5])
