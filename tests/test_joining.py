"""Who is whom in several videos: python -m pytest tests/test_joining.py"""

import itertools

import numpy as np

from reid import joining
from reid.joining import Track, together


def of(angle, source=0, spans=((0, 1),), name=None):
    return Track(source, spans, np.array([np.cos(angle), np.sin(angle)], np.float32) * 3, name)


def test_who_looks_alike_in_several_videos_is_one_person():
    tracks = [of(0, 0), of(2, 0), of(0.1, 1), of(2.1, 1), of(1, 2)]
    assert together(tracks, np.cos(0.2)) == [[0, 2], [1, 3], [4]]
    assert together(tracks, None) == [[0], [1], [2], [3], [4]]
    assert together(tracks, 0.9999) == [[0], [1], [2], [3], [4]]
    assert together([], 0.5) == []
    assert together(tracks[:1], 0.5) == [[0]]


def test_the_mean_decides_of_groups():
    """Against plain loops."""
    random = np.random.default_rng(0)
    for _ in range(20):
        tracks = [of(angle, source) for source, angle in enumerate(random.uniform(0, 3, 12))]
        groups, least = [[place] for place in range(12)], np.cos(0.4)
        unit = [track.vector / np.linalg.norm(track.vector) for track in tracks]
        while True:
            pairs = [(np.mean([unit[i] @ unit[j] for i in a for j in b]), a, b)
                     for a, b in itertools.combinations(groups, 2)]  # fmt: skip
            best, a, b = max(pairs, key=lambda one: one[0])
            if best < least:
                break
            groups = [group for group in groups if group not in (a, b)] + [a + b]
            if len(groups) == 1:
                break
        assert together(tracks, least) == sorted(map(sorted, groups))


def test_who_is_seen_at_once_is_two_people():
    together_there = [of(0, 0, [(0, 5)]), of(0, 0, [(4, 9)]), of(0, 1, [(0, 9)])]
    groups = together(together_there, 0.9)
    assert [0, 1] not in groups and len(groups) == 2
    apart = [of(0, 0, [(0, 5), (20, 21)]), of(0, 0, [(5, 9)]), of(0, 0, [(10, 11)])]
    assert together(apart, 0.9) == [[0, 1, 2]]


def test_names_join_and_part():
    tracks = [of(0, 0, name='Ann'), of(3, 1, name='Ann'), of(0, 2, name='Bo'), of(0.01, 3)]
    assert together(tracks, 0.9) == [[0, 1], [2, 3]]
    both = [of(0, 0, [(0, 5)], 'Ann'), of(0, 0, [(1, 2)], 'Ann')]  # one of them is somebody else
    assert together(both, 0.9) == [[0], [1]]


def test_there_is_an_end_to_it(monkeypatch):
    monkeypatch.setattr(joining, 'MOST', 2)
    assert together([of(0, 0), of(0, 1), of(0, 2)], 0.5) == [[0], [1], [2]]
    named = [of(0, 0, name='Ann'), of(0, 1), of(2, 1, [(0, 5)], 'Ann'), of(2, 1, [(4, 9)], 'Ann'), of(0, 2, name='Bo'),
             of(3, 3, name='Ann'), of(0, 4)]  # fmt: skip
    assert together(named, 0.5) == [[0, 2, 5], [1], [3], [4], [6]]  # names still join, but not who is seen at once
    assert together(named, None) == [[place] for place in range(7)]
