"""Descriptors on their way out, each with the name of its picture: to the screen, .npz, .csv or .jsonl.

with vectors.writer(out, embedder) as write:
    write(name, f)
"""

import csv
import json
from contextlib import contextmanager

import numpy as np

from reid.files import replacing
from reid.problem import Problem


def writer(out, embedder):
    """A file holds nothing, or all that was written until the end of the block."""
    if out is None:
        return to_screen()
    if out.suffix not in WRITERS:
        raise Problem(f'--out {out}: a name that ends with {", ".join(WRITERS)} is expected')
    if not out.parent.is_dir():
        raise Problem(f'--out {out}: there is no folder {out.parent}')
    return WRITERS[out.suffix](out, embedder)


@contextmanager
def to_screen():
    yield lambda name, f: print(f'{name}: [{", ".join(f"{value:.6f}" for value in f)}]')


@contextmanager
def to_csv(out, embedder):
    """name, 0, 1, 2, ...: a row for each picture."""
    with replacing(out) as temporary, temporary.open('w', encoding='utf-8', errors=ODD, newline='') as file:
        table = csv.writer(file)
        table.writerow(['name', *range(embedder.dim)])
        yield lambda name, f: table.writerow([name, *(f'{value:.9g}' for value in f)])


@contextmanager
def to_lines(out, embedder):
    """{"name": ..., "feature": [...]}: a line for each picture."""
    with replacing(out) as temporary, temporary.open('w', encoding='utf-8', errors=ODD) as file:

        def write(name, f):
            values = [float(f'{value:.9g}') for value in f]
            file.write(json.dumps({'name': name, 'feature': values}, ensure_ascii=False) + '\n')

        yield write


@contextmanager
def to_arrays(out, embedder):
    """names (N,), features (N, D) float32, and about: JSON that says whose features they are."""
    names, features = [], []
    with replacing(out) as temporary:
        yield lambda name, f: (names.append(name), features.append(f))
        f = np.stack(features) if features else np.empty((0, embedder.dim), np.float32)
        with temporary.open('wb') as file:
            np.savez(file, names=np.array(names, dtype=str), features=f, about=json.dumps(embedder.about))


ODD = 'surrogateescape'  # names of files that are no text stay what they are
WRITERS = {'.npz': to_arrays, '.csv': to_csv, '.jsonl': to_lines}
