"""What test.py hands on: pytorch_result.mat (and multi_query.mat), readable by MATLAB and by the older baselines.

    gallery_f (Ng, D) float32, rows of unit length;  gallery_label, gallery_cam (1, Ng) int64;  the same for query_*
    gallery_path, query_path: the pictures, relative to the tree
    data_dir, which_epoch, ms, no_flip, test_feature: where the tree was, and how test.py has made the features
    mquery_f, mquery_label, mquery_cam in multi_query.mat

A MATLAB 5 file cannot hold a variable of 4 GiB. There, the same keys go to a folder pytorch_result/: an array each in
a file such as gallery_f.npy (paths as UTF-8 bytes), and header.json with the texts, the shapes and the types. Features
are then read from the disk piece by piece (they are memory-mapped), and may be float16.
"""

import json
import shutil
from collections import namedtuple
from collections.abc import Sequence

import numpy as np
from scipy.io import loadmat, savemat

from reid import processes, product, queries, ranking
from reid.files import replacing
from reid.problem import Problem

TEXTS = ('data_dir', 'which_epoch', 'ms', 'no_flip', 'test_feature')
LIMIT = 2**32 - 2**20  # bytes of one variable, with room for its header
HEADER = 'header.json'
MINUTE = 60  # between two files of one test, at most: copies may be made in any order

# f (N, D) float32, ids (N,), cams (N,), paths: N strings or None where they are not known
Features = namedtuple('Features', 'f ids cams paths')

# ---------------------------------------------------------------------------------------------------------------------
# 1. files


def save(folder, stem, about, **parts):
    """Write folder/stem.mat from parts such as query=Features(...) and the texts of `about`. Returns the path."""
    mat, arrays = folder / f'{stem}.mat', folder / stem
    if max(features.f.nbytes for features in parts.values()) >= LIMIT:
        print(f'features of 4 GiB or more do not fit into a .mat file: writing the folder {arrays} instead')
        save_arrays(arrays, about, parts)
        remove(mat)  # of an earlier test: one result a run
        return arrays
    content = dict(about)
    for part, features in parts.items():
        content |= {f'{part}_f': features.f, f'{part}_label': features.ids[None], f'{part}_cam': features.cams[None]}
        if features.paths is not None:
            content |= {f'{part}_path': np.array(list(features.paths), dtype=object)}
    with replacing(mat) as temporary, temporary.open('wb') as file:
        savemat(file, content)
    remove(arrays)
    return mat


def save_arrays(folder, about, parts):
    """The folder that stands in for a .mat file. It takes its name when it is whole."""
    temporary = folder.with_name(f'{folder.name}.part')
    remove(temporary)
    temporary.mkdir(parents=True)
    arrays = {}
    for part, (f, ids, cams, paths) in parts.items():
        content = {'f': f, 'label': ids, 'cam': cams}
        if paths is not None:
            content['path'] = np.array([path.encode('utf-8', 'surrogateescape') for path in paths], dtype=np.bytes_)
        for name, array in content.items():
            np.save(temporary / f'{part}_{name}.npy', array)
            arrays[f'{part}_{name}'] = {'shape': array.shape, 'dtype': str(array.dtype)}
    header = {'what': 'features of a person re-identification network', 'about': about, 'arrays': arrays}
    (temporary / HEADER).write_text(json.dumps(header, indent=2) + '\n', encoding='utf-8')
    remove(folder)
    temporary.rename(folder)


def remove(path):
    """A result, of either form, or whatever else lies there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def find(folder, stem='pytorch_result'):
    """folder/stem.mat, or the folder in its place, whichever is there, else None."""
    mat, arrays = folder / f'{stem}.mat', folder / stem
    return mat if mat.is_file() else arrays if (arrays / HEADER).is_file() else None


def at(path):
    """The result at a path, which may also be that of a header."""
    path = path.resolve()
    path = path.parent if path.name == HEADER else path
    if not path.exists():
        raise Problem(f'{path}: there is no such file. python test.py --name NAME writes one')
    return path


def load(path, *parts):
    """Read parts such as 'query', 'gallery' of a result -> a list of Features, and the dict `about` of its texts."""
    try:
        content = open_arrays(path) if path.is_dir() else loadmat(path)
    except Problem:
        raise
    except Exception as error:  # what scipy raises on bytes that are no such file is not to be foreseen
        raise Problem(f'{path} cannot be read as a result ({error})') from None

    out = []
    for part in parts:
        missing = [key for key in (f'{part}_f', f'{part}_label', f'{part}_cam') if key not in content]
        if missing:
            there = ', '.join(key for key in content if not key.startswith('__'))
            raise Problem(f'{path}: {", ".join(missing)} expected, found {there or "nothing"}')
        f = content.pop(f'{part}_f')
        if not isinstance(f, np.ndarray) or f.dtype.kind not in 'fiu':
            raise Problem(f'{path}: {part}_f holds no array of numbers')
        if not isinstance(f, np.memmap) or f.dtype not in (np.float32, np.float16):
            f = np.ascontiguousarray(f, np.float32)
        ids, cams = (whole_numbers(content[f'{part}_{key}'], f'{path}: {part}_{key}') for key in ('label', 'cam'))
        if not (f.ndim == 2 and len(f) == len(ids) == len(cams)):
            raise Problem(f'{path}: {part}_f is {f.shape}, with {len(ids)} labels and {len(cams)} cameras')
        if f.size == 0:
            raise Problem(f'{path}: {part}_f is empty')
        paths = content.get(f'{part}_path')
        out.append(Features(of_unit_length(f, f'{path}: {part}'), ids, cams, None if paths is None else Names(paths)))
    if len({features.f.shape[1] for features in out}) > 1:
        raise Problem(f'{path}: {" and ".join(f"{p}_f" for p in parts)} differ in the length of their features')
    texts = {key: np.asarray(content[key]).ravel() for key in TEXTS if key in content}
    return out, {key: str(value[0]) for key, value in texts.items() if value.size}


def open_arrays(folder):
    if not (folder / HEADER).is_file():
        raise Problem(f'{folder} is a folder without a {HEADER}: a result file is expected')
    header = json.loads((folder / HEADER).read_text(encoding='utf-8'))
    content = dict(header['about'])
    for name, is_said in header['arrays'].items():
        if not name.isidentifier():
            raise Problem(f'{folder / HEADER} names an array {name!r}')
        array = np.load(folder / f'{name}.npy', mmap_mode='r', allow_pickle=False)
        if [list(array.shape), str(array.dtype)] != [is_said['shape'], is_said['dtype']]:
            raise Problem(f'{folder}/{name}.npy is {array.shape} {array.dtype}, but {HEADER} says otherwise')
        content[name] = array
    return content


def whole_numbers(array, what):
    """Identities or cameras, whatever type they were stored in -> (N,) int64."""
    array = np.asarray(array).ravel()
    if array.dtype.kind not in 'biuf' or not (np.isfinite(array) & (array == np.floor(array))).all():
        raise Problem(f'{what}: whole numbers are expected')
    return array.astype(np.int64)


class Names(Sequence):
    """Paths, made into strings when they are asked for: there may be a million."""

    def __init__(self, array):
        self.array = np.ravel(array)

    def __len__(self):
        return len(self.array)

    def __getitem__(self, i):
        name = self.array[i]
        return name.decode('utf-8', 'surrogateescape') if isinstance(name, bytes) else str(np.asarray(name).item())


def of_unit_length(f, what):
    """Scores are cosines: features of another length are brought to it, with a word. Broken ones are a sentence."""
    if all((abs(length - 1) < 0.01).all() for _, length in product.lengths(f, what)):
        return f
    print(f'{what}: features of unit length are expected; they are brought to it')
    out = np.empty(f.shape, np.float32)
    for start, length in product.lengths(f, what):
        out[start : start + len(length)] = f[start : start + len(length)] / length[:, None]
    return out


# ---------------------------------------------------------------------------------------------------------------------
# 2. the figures: a line to read, and metrics.json for everything that compares runs

MULTI = {  # how several pictures of a query become one answer
    'mean': lambda query, pool, gallery, device: ranking.ranks(queries.mean_of(query, pool), gallery, device),
    'max': lambda query, pool, gallery, device: ranking.ranks_in(
        queries.best_of(query, pool, gallery, device), query, gallery
    ),
}


def evaluate(path, device, multi='mean'):
    """Print and record the figures of a result, and of the multi_query.mat that belongs to it if there is one.

    Returns query, gallery and the ranks of the good images of each query.
    """
    (query, gallery), _ = load(path, 'query', 'gallery')
    ranks = ranking.ranks(query, gallery, device)
    figures = ranking.figures(ranks)
    print(line(figures))
    without = figures['queries_without_good']
    print(f'{figures["queries"]} queries, {without} of them without a good image; {len(gallery.f)} gallery images')
    record(path, line(figures), **figures)

    pool = pool_of(path, query) if path.stem == 'pytorch_result' else None
    if pool is not None:
        figures = ranking.figures(MULTI[multi](query, pool, gallery, device))
        print(f'multi ({multi}) {line(figures)}')
        record(path, f'multi ({multi}) {line(figures)}', multi=figures | {'by': multi})
    return query, gallery, ranks


def pool_of(path, query):
    """Features of the multi_query.mat beside a result, if there is one of the same test. Other projects leave that of
    an earlier test in place."""
    found = find(path.parent, 'multi_query')
    if found is None:
        return None
    if path.stat().st_mtime - found.stat().st_mtime > MINUTE:
        print(f'{found} is older than {path.name}, and so of another test: left out')
        return None
    (pool,), _ = load(found, 'mquery')
    if pool.f.shape[1] != query.f.shape[1]:
        print(f'{found} holds features of another length, and so of another network: left out')
        return None
    return pool


def line(figures):
    """The figures in one line. Both average precisions, by name."""
    return (
        'Rank@1:{rank1:.6f} Rank@5:{rank5:.6f} Rank@10:{rank10:.6f} mAP:{map_trapezoid:.6f} (trapezoid) '
        'mAP:{map_standard:.6f} (standard) mINP:{minp:.6f}'
    ).format(**figures)


def record(result, text, **figures):
    """Append text to result.txt and merge the figures into metrics.json, both beside the result file.

    A result of another name than pytorch_result has files of its own: the folder may be that of a run.
    """
    if not processes.first():
        return
    before = '' if result.stem == 'pytorch_result' else f'{result.stem}.'
    path = result.with_name(f'{before}metrics.json')
    try:
        with result.with_name(f'{before}result.txt').open('a', encoding='utf-8') as file:
            file.write(text + '\n')
        current = path.is_file() and path.stat().st_mtime >= result.stat().st_mtime  # else it is of an older result
        old = json.loads(path.read_text(encoding='utf-8')) if current else {}
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(old | figures, indent=2) + '\n', encoding='utf-8')
    except (OSError, ValueError, TypeError) as error:  # a folder that is not ours to write to, a file that was edited
        print(f'{path} and result.txt could not be written ({error})')
