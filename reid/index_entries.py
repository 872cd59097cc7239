"""What every engine of an index (reid.index) lets in."""

import math
import operator
import os
from collections import namedtuple

import numpy as np

from reid.problem import Problem

# id, whole and never given twice; name of the person ('': not known); camera (-1: not known); time (seconds since 1970,
# or None); path of the picture (or None); box in it ([left, top, right, bottom], or None).
Entry = namedtuple('Entry', 'id name camera time path box')
AWAY = 1e-3  # how far from it they may be


def cleaned(entries):
    """Dicts of a caller -> [(name, camera, time, path, box)], or a sentence about what no index takes."""
    return [clean(number, dict(entry)) for number, entry in enumerate(entries)]


def clean(number, entry):
    name, camera, time, path, box = (entry.pop(field, None) for field in Entry._fields[1:])
    try:
        if entry:
            raise TypeError(f'{", ".join(map(repr, entry))} is no field of it')
        if not isinstance('' if name is None else name, str):
            raise TypeError(f'name {name!r} is not a text')
        camera = -1 if camera is None else operator.index(camera)
        if not -(2**31) <= camera < 2**31:
            raise ValueError(f'camera {camera} has more than 32 bits')
        time = None if time is None else float(time)
        box = None if box is None else [float(side) for side in box]
        if not all(map(math.isfinite, [time or 0, *(box or ())])) or (box is not None and len(box) != 4):
            raise ValueError(f'time {time} and box {box} are to be a number, and four')
        return name or '', camera, time, None if path is None else os.fsdecode(path), box
    except (TypeError, ValueError) as error:
        raise Problem(
            f'entry {number}: {error}. It may have a name (a text), camera (a whole number), time (seconds since '
            '1970), path and box ([left, top, right, bottom])'
        ) from None


def unit(vectors, dim, count=None):
    """(N, D) float32 of unit length, or a sentence."""
    vectors = np.ascontiguousarray(vectors, '<f4')
    if vectors.ndim != 2 or vectors.shape[1] != dim or count not in (None, len(vectors)):
        expected = f'({"N" if count is None else count}, {dim})'
        raise Problem(f'vectors {expected} are expected, found {vectors.shape}: are they of another network?')
    length = np.linalg.norm(vectors, axis=1)
    odd = np.flatnonzero(~(np.abs(length - 1) <= AWAY))  # nan as well
    if len(odd):
        raise Problem(f'vectors of unit length are expected: the length of vector {odd[0]} is {length[odd[0]]:.6g}')
    return vectors
