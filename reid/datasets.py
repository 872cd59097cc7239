"""The data sets this project knows: where their parts lie, how their file names read, how many pictures there are.

A rule is a regular expression with the groups `id` and `cam`. It is searched in the path of a picture, relative to the
folder of its part, with '/' between folders. One more entry in DATASETS is all that a new data set needs.
"""

import os
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import yaml

from reid.files import holds
from reid.problem import Problem

PICTURES = ('.jpg', '.jpeg', '.png', '.bmp', '.ppm', '.pgm', '.tif', '.tiff', '.webp')
PARTS = ('train_all', 'train', 'val', 'query', 'gallery', 'multi-query')  # of a prepared tree
ABOUT = 'dataset.yaml'  # in a prepared tree: what it is and how its names read
UNKNOWN = -1  # the camera of a picture that tells none


@dataclass(frozen=True)
class Dataset:
    title: str
    rule: str
    folders: tuple  # of layouts {part: raw folder}; the part 'all' means: no official split
    official: tuple = ()  # of counts {part: (identities or None, pictures)}: versions of one data set differ
    lists: dict | None = None  # {part: list files}, where lists and not folders say what belongs to a part
    marker: str = ''  # a file or folder that has to be there as well


class Picture(NamedTuple):
    source: str  # the raw file
    path: str  # relative to the folder of its part, with '/'
    id: str  # as written in the name: '0002', '-1'
    cam: int
    name: str = ''  # in the prepared tree


MARKET = r'^(?P<id>-1|\d+)_c(?P<cam>\d+)s\d+_\d+_\d+[^/]*$'  # 0002_c1s1_000451_03.jpg, -1 is junk, 0000 distractors
DUKE = r'^(?P<id>\d+)_c(?P<cam>\d+)_f\d+[^/]*$'  # 0001_c2_f0046182.jpg
CUHK = r'^(?P<id>\d+)_c(?P<cam>\d+)_\d+\.\w+$'  # 0003_c1_11.png
VERI = r'^(?P<id>\d+)_c(?P<cam>\d+)_\d+_\d+\.\w+$'  # 0001_c001_00016450_0.jpg
# 0000/0000_000_01_0303morning_0015_0.jpg: the identity is the folder; the name alone still tells the camera.
MSMT = r'^(?:(?P<id>\d+)/)?\d+_\d+_(?P<cam>\d+)_[^/]*$'
VIPER = r'^cam_(?P<cam>[ab])/(?P<id>\d+)_\d+\.\w+$'  # cam_a/000_0.bmp

BOXES = {'train_all': 'bounding_box_train', 'query': 'query', 'gallery': 'bounding_box_test', 'multi-query': 'gt_bbox'}
VEHICLES = {'train_all': 'image_train', 'query': 'image_query', 'gallery': 'image_test'}
MSMT_LISTS = {
    'train_all': ('list_train.txt', 'list_val.txt'),
    'query': ('list_query.txt',),
    'gallery': ('list_gallery.txt',),
}


def _msmt(train, test):
    return {'train_all': train, 'query': test, 'gallery': test}


def _counts(ids, train_all, query, gallery, **more):
    return {'train_all': (ids, train_all), 'query': (None, query), 'gallery': (None, gallery), **more}


DATASETS = {
    'toy': Dataset('the toy data', MARKET, (BOXES,), marker='toy.yaml'),
    'market': Dataset(
        'Market-1501', MARKET, (BOXES,), (_counts(751, 12936, 3368, 19732, **{'multi-query': (None, 25259)}),)
    ),
    'duke': Dataset('DukeMTMC-reID', DUKE, (BOXES,), (_counts(702, 16522, 2228, 17661),)),
    'occluded-duke': Dataset('Occluded-Duke', DUKE, (BOXES,), (_counts(702, 15618, 2210, 17661),)),
    'cuhk03-np': Dataset(
        'CUHK03-NP', CUHK, (BOXES,), (_counts(767, 7365, 1400, 5332), _counts(767, 7368, 1400, 5328))
    ),  # detected, labeled
    'msmt17': Dataset(
        'MSMT17',
        MSMT,
        (_msmt('train', 'test'), _msmt('mask_train_v2', 'mask_test_v2')),
        (_counts(1041, 32621, 11659, 82161),),
        lists=MSMT_LISTS,
    ),
    'veri': Dataset('VeRi-776', VERI, (VEHICLES,), (_counts(576, 37778, 1678, 11579),)),
    'viper': Dataset('VIPeR', VIPER, ({'all': '.'},), ({'all': (632, 1264)},), marker='cam_a'),
}


def is_picture(name):
    """By its ending. '._0002.jpg' is what macOS leaves on foreign disks, not a picture."""
    name = os.path.basename(name)
    return name.lower().endswith(PICTURES) and not name.startswith('.')


def walk(folder, skip=()):
    """Each file below `folder` as a relative path with '/', sorted folder by folder; `skip` holds absolute paths."""

    def below(place, before):
        try:
            with os.scandir(place) as entries:
                entries = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            raise Problem(f'{place} cannot be read: {error.strerror}.') from None
        for entry in entries:
            if not entry.is_dir():
                yield before + entry.name
            # The folders of file managers and of network disks (thumbnails and the like) are not the user's.
            elif not entry.name.startswith(('.', '@', '__MACOSX')) and os.path.abspath(entry.path) not in skip:
                yield from below(entry.path, before + entry.name + '/')

    return below(os.path.abspath(folder), '')


def read_list(file):
    """The paths in a list of MSMT17: lines of '0000/0000_000_01_0303morning_0015_0.jpg 0'."""
    with open(file, encoding='utf-8') as lines:
        return [line.rsplit(None, 1)[0].replace('\\', '/') for line in lines if line.strip()]


def read_name(rule, path):
    """Identity and camera as written in `path` -> (str, str or None), or None where the rule does not fit."""
    found = re.search(rule, path)
    if not found or not found['id']:
        return None
    return found['id'], found.groupdict().get('cam')


def numbered(names):
    """{name of an identity: its number}. '0002' is 2, '-1' stays -1 (junk). Where some are no numbers, such as 1_12,
    all are numbered from 1 in sorted order."""
    names, seen = sorted(set(names)), {}
    if not all(re.fullmatch('-?[0-9]{1,18}', name) for name in names):
        return {name: i for i, name in enumerate((n for n in names if n != '-1'), 1)} | {'-1': -1}
    for name in names:
        other = seen.setdefault(int(name), name)
        if other != name:
            raise Problem(f'identities {other!r} and {name!r} are the same number: rename one of them')
    return {name: number for number, name in seen.items()}


def layout(root, dataset):
    """{part: raw folder} as it lies in `root`, or None. Only multi-query may be missing."""
    root = Path(root)
    if not (root / dataset.marker).exists():
        return None
    for folders in dataset.folders:
        lists = [name for names in (dataset.lists or {}).values() for name in names]
        needed = [folder for part, folder in folders.items() if part != 'multi-query']
        if all((root / folder).is_dir() for folder in needed) and all((root / name).is_file() for name in lists):
            return {part: folder for part, folder in folders.items() if (root / folder).is_dir()}
    return None


def fits(root, name):
    """Are the folders of data set `name` in `root`, and does its rule fit (most of) the first names?"""
    dataset = DATASETS[name]
    folders = layout(root, dataset)
    if not folders:
        return False
    part, folder = next(iter(folders.items()))
    if dataset.lists:
        first = read_list(Path(root) / dataset.lists[part][0])[:20]
    else:
        first = list(islice(filter(is_picture, walk(Path(root) / folder)), 20))
    return sum(read_name(dataset.rule, path) is not None for path in first) * 2 > len(first)


def recognise(root):
    """The name of the data set that lies in `root`, or None."""
    names = [name for name in DATASETS if fits(root, name)]
    for name in names:  # a marker decides
        if DATASETS[name].marker:
            return name
    if len(names) > 1:  # Duke and Occluded-Duke differ in nothing but their pictures
        queries = sum(map(is_picture, walk(Path(root) / layout(root, DATASETS[names[0]])['query'])))
        for name in names:
            if any(counts['query'][1] == queries for counts in DATASETS[name].official):
                return name
    return names[0] if names else None


def split_queries(items):
    """Queries and gallery of identities that have no official split.

    items: [(path, id, cam)], sorted by name -> (indices of queries, indices of the gallery), both sorted.
    A picture is asked for from each camera that keeps one for the gallery, and from the first camera of each identity.
    Whatever has no good picture (same identity, another camera) left to find is no query. An unknown camera (-1) is
    never the same as another.
    """
    people = defaultdict(lambda: defaultdict(list))
    for i, (_, person, cam) in enumerate(items):
        people[person][cam, i if cam == UNKNOWN else 0].append(i)
    queries = set()
    for cameras_of in people.values():
        kept = {}  # camera -> how many of its pictures the gallery has
        asked = {}  # camera -> its query
        for place, camera in enumerate(sorted(cameras_of)):
            pictures = cameras_of[camera]
            if place == 0 or len(pictures) > 1:
                asked[camera] = pictures[0]
            kept[camera] = len(pictures) - (camera in asked)
        for camera, query in asked.items():
            if sum(kept.values()) > kept[camera]:
                queries.add(query)
    return sorted(queries), [i for i in range(len(items)) if i not in queries]


def cameras(folder):
    """The function file name -> camera (int, -1 where unknown) for the prepared tree `folder`.

    A tree of prepare.py says how its names read. One that other scripts made has to follow a rule of
    the table above.
    """
    about = Path(folder) / ABOUT
    if about.is_file():
        try:
            rule = yaml.safe_load(about.read_text(encoding='utf-8'))['rule']
            rules = [re.compile(rule)] if rule else []
        except (yaml.YAMLError, KeyError, TypeError, re.error) as error:
            raise Problem(f'{about} cannot be read ({error}). Run prepare.py again.') from None
        if not rules:
            return lambda name: UNKNOWN
    else:
        rules = [re.compile(rule) for rule in dict.fromkeys(dataset.rule for dataset in DATASETS.values())]

    def camera(name):
        for rule in rules:
            found = rule.search(name)
            if found:
                return int(found.groupdict().get('cam') or UNKNOWN)
        raise Problem(
            f'{name!r} in {folder} does not tell its camera: expected a name that fits {about.name}, or one like '
            "'0002_c1s1_000451_03.jpg' (Market), '0001_c2_f0046182.jpg' (Duke) or '0001_c001_00016450_0.jpg' (VeRi). "
            'Prepare your own pictures with prepare.py --rule.'
        )

    return camera


def explain(root, name=None):
    """Why nothing, or not data set `name`, was recognised in `root`, and what may have been meant."""
    root = Path(root)
    about = root / 'pytorch' / ABOUT
    if about.is_file() and about.read_text(encoding='utf-8').startswith('dataset: own\n'):
        return (
            f'{root} was prepared with --rule: give it again to take in new pictures. '
            f'Else next: python train.py --data_dir "{root}/pytorch"'
        )
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir())
    names = {folder.name for folder in folders}
    if {'train_all', 'query', 'gallery'} <= names:
        return f'{root} is prepared already. Next: python train.py --data_dir "{root}"'
    if {'detected', 'labeled'} <= names:
        return f'CUHK03-NP comes twice: give --data_dir {root / "detected"} or --data_dir {root / "labeled"}.'
    for place in (*folders[:50], root.parent):
        found = recognise(place)
        if found and name in (None, found):
            return f'{root} is no data set, but {place} looks like {found}: did you mean --data_dir "{place}"?'
    if (root / 'pytorch').is_dir():
        return f'{root} has no raw pictures, but is prepared already. Next: python train.py --data_dir "{root}/pytorch"'
    if name:
        needs = ' or '.join('+'.join(dict.fromkeys(folders.values())) for folders in DATASETS[name].folders)
        lists = [file for files in (DATASETS[name].lists or {}).values() for file in files]
        also = '+'.join([*lists, *filter(None, [DATASETS[name].marker])])
        needs += f' and {also}' if also else ''
        return f'{name} has the folders {needs}; {root} holds: {holds(root)}. Check --data_dir.'
    return (
        f'{root} is none of the data sets known here ({", ".join(DATASETS)}): it holds {holds(root)}, '
        'or its names fit no rule. Check --data_dir, choose --dataset to see what is missing, or give --rule for '
        'your own pictures.'
    )
