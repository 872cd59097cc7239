"""Who is whom in several videos: tracks that look alike become one person.

    for places in together(tracks, least=0.6):     # of each person, the places among the tracks

Average linkage: two groups are one person as long as the cosines between them are at least `least` in the mean. Who is
seen in two places of one source at a time is two people, and so are those who are known by different names; who is
known by the same name is one, whatever else.
"""

from collections import defaultdict, namedtuple

import numpy as np
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

# source: a number, of a video or a picture. spans: [[from, to]] in seconds of it. vector: (D,). name: or None.
Track = namedtuple('Track', 'source spans vector name')
NEVER = 1e9  # a distance, which no mean makes up for
MOST = 4000  # tracks: beyond, names alone decide, for the table of distances would be too large


def together(tracks, least):
    """-> [[places]], in order of the first of each. Without a threshold, least=None, everybody stays alone."""
    if least is None or len(tracks) < 2:
        return [[place] for place in range(len(tracks))]
    if len(tracks) > MOST:
        return by_name(tracks)
    tree = linkage(squareform(distances(tracks), checks=False), 'average')
    groups = defaultdict(list)
    for place, label in enumerate(fcluster(tree, 1 - least, 'distance')):
        groups[label].append(place)
    return sorted(groups.values())


def by_name(tracks):
    groups, named, apart = [], defaultdict(list), defaultdict(set)
    for one, other in at_once(tracks):
        apart[one].add(other)
        apart[other].add(one)
    for place, track in enumerate(tracks):
        his = [] if track.name is None else named[track.name]
        group = next((group for group in his if group.isdisjoint(apart[place])), None)
        if group is None:
            group = set()
            his.append(group)
            groups.append(group)
        group.add(place)
    return [sorted(group) for group in groups]


def distances(tracks):
    f = np.stack([track.vector for track in tracks]).astype(np.float64)
    f /= np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12)
    far = np.clip(1 - f @ f.T, 0, 2)
    names = {
        name: code for code, name in enumerate(dict.fromkeys(track.name for track in tracks if track.name is not None))
    }
    who = np.array([names.get(track.name, -1) for track in tracks])
    known = who >= 0
    both, same = known[:, None] & known, who[:, None] == who
    far[both & same], far[both & ~same] = 0, NEVER
    for one, other in at_once(tracks):
        far[one, other] = far[other, one] = NEVER
    np.fill_diagonal(far, 0)
    return far


def at_once(tracks):
    """The pairs of places that one source shows at the same time."""
    by_source = defaultdict(list)
    for place, track in enumerate(tracks):
        by_source[track.source] += [(start, end, place) for start, end in track.spans]
    for spans in by_source.values():
        there = []  # who is not gone yet
        for start, end, place in sorted(spans):
            there = [(until, other) for until, other in there if until > start]
            yield from ((place, other) for _, other in there if other != place)
            there.append((end, place))
