"""Who is trained on, and who is kept out to be ranked: of one prepared tree, or of several put together."""

from pathlib import Path

import numpy as np

from reid import data
from reid.data import People
from reid.datasets import split_queries
from reid.problem import Problem


def split(roots, part, holdout=0):
    """The pictures of `part` to train on and those of val, in trees without the last `holdout` identities of each."""
    train, val = [], []
    for root in roots:
        mine = data.people(root, part)
        own = set(mine.ids) - kept_out(mine.ids, holdout)  # who has a single picture may be in val alone
        for found, people in ((train, mine), (val, data.people(root, 'val', least=0))):
            found.append(data.choose(people, [i for i, name in enumerate(people.ids) if name in own]))
    return join(train), join(val)


def held_out(roots, part, holdout):
    """The identities that `split` leaves out, with all of their pictures, as (query, gallery)."""
    others = []
    for root in roots:
        out = kept_out(data.people(root, part).ids, holdout)
        everyone = data.people(data.tree(root, ['train_all']), 'train_all')
        others.append(data.choose(everyone, [i for i, name in enumerate(everyone.ids) if name in out]))
    others = join(others)
    query, gallery = split_queries(list(zip(*others, strict=True)))
    if not query:
        raise Problem(f'--holdout {holdout}: none of these identities was seen by two cameras; keep out more')
    return data.choose(others, query), data.choose(others, gallery)


def kept_out(ids, holdout):
    """The last `holdout` identities by name, of those of a tree."""
    names = sorted(set(ids))
    if not 0 <= holdout <= len(names) - 2:
        raise Problem(f'--holdout {holdout}: of {len(names)} identities, 0 to {len(names) - 2} can be kept out')
    return set(names[len(names) - holdout :])


def join(trees):
    """People of several trees as one: there, identities or cameras of the same name are not the same."""
    if len(trees) == 1:
        return trees[0]
    return People(
        [path for people in trees for path in people.paths],
        [f'{i}-{name}' for i, people in enumerate(trees, 1) for name in people.ids],
        np.concatenate([numbered(people.cams, i) for i, people in enumerate(trees)]),
    )


def numbered(cams, i):
    """The cameras of the i-th of several trees, where those of all trees are told apart."""
    return np.where(cams < 0, -1, cams + 1000 * i)


def cameras(people):
    """The numbers of those that pictures are from, for --camera_embedding."""
    found = sorted(set(people.cams.tolist()) - {-1})
    if not found:
        raise Problem(
            '--camera_embedding: a camera in the names of pictures is expected, such as c1 in 0002_c1s1_000451_01.jpg, '
            f'found none, as in {Path(people.paths[0]).name}: leave it out, or see --rule of prepare.py'
        )
    return found


def as_in_training(cams, root, trained_on):
    """Cameras of the pictures of a tree, by the numbers that they had in training: it may be one of several then, or
    another, of which no camera is known. A single one may have moved: its numbers are taken as they are."""
    if len(trained_on) == 1:
        return cams
    places = [Path(tree).expanduser().resolve() for tree in trained_on]
    found = [i for i, place in enumerate(places) if root.resolve() in (place, place / 'pytorch')]
    return numbered(cams, found[0]) if found else np.full(len(cams), -1)
