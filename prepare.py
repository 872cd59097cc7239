"""Raw data set -> a tree of one folder a person, as train.py and test.py read it. The raw pictures are never touched.

Reads:   --data_dir, the unpacked data set (Market, Duke, MSMT17, ...), or your own pictures with --rule.
Writes:  <data_dir>/pytorch/{train,val,train_all,query,gallery,multi-query}/<id>/ and pytorch/dataset.yaml
Run:     python prepare.py --data_dir ../Market
         python prepare.py --dataset toy  # draws a data set, if you have none at hand
"""

import os
import random
import re
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml
from PIL import Image
from tqdm import tqdm

from reid import cli, datasets
from reid import tree as trees
from reid.datasets import ABOUT, DATASETS, PARTS, UNKNOWN, Dataset, Picture
from reid.files import holds
from reid.machine import cores
from reid.problem import Problem

HOMES = ('../Market', '../Market-1501-v15.09.15')
OWN = {  # what the parts may be called in a folder of one's own
    'train_all': ('train', 'train_all', 'bounding_box_train'),
    'query': ('query',),
    'gallery': ('gallery', 'test', 'bounding_box_test'),
    'multi-query': ('multi-query', 'gt_bbox'),
}
EXAMPLE = (
    r"""--rule "(?P<id>\d+)_c(?P<cam>\d+)" for 0002_c1_7.jpg, --rule "(?P<id>[^/]+)/[^/]+$" for a folder a person"""
)
VERSION = 1  # of the tree


def options():
    parser = cli.parser(__doc__, epilog=f'Own pictures: {EXAMPLE}')
    add = parser.add_argument_group('raw pictures').add_argument
    add('--data_dir', help='the raw folder, as unpacked (default: ../Market, then ../Market-1501-v15.09.15)')
    add(
        '--dataset',
        default='auto',
        choices=['auto', *DATASETS],
        help='default auto: recognised by its folders and names; name it to learn why it is not. toy draws one',
    )
    add('--rule', help='for your own pictures: a regular expression with the group id and, if names tell it, cam')
    add = parser.add_argument_group('tree').add_argument
    add('--out', help='the tree (default <data_dir>/pytorch); give it where the raw folder is read-only')
    add(
        '--link',
        default='hard',
        choices=['hard', 'soft', 'copy'],
        help='default hard: no disk space, copies where that fails; soft if links should show (without the raw '
        'pictures they lead nowhere); copy before you edit pictures, for a link is the raw one',
    )
    add('--no_check', action='store_true', help='do not decode each picture first, if the same files passed before')
    add('--split_seed', type=int, default=0, help='draws the half to train on where nobody defined one (default 0)')
    add = parser.add_argument_group('toy data', 'For --dataset toy alone.').add_argument
    add('--ids', type=int, help='persons to draw, half of them to train on (default 320) [4 or more]')
    add('--images', type=int, help='pictures of each, on average (default 9) [4 or more]')
    add('--seed', type=int, help='another number draws other persons (default 0)')
    return parser


def main(opts):
    # 1. find the data set
    given = find(opts)
    root = given.resolve()
    out = Path(opts.out).expanduser().resolve() if opts.out else root / 'pytorch'
    trees.may_write(out, root)
    name, dataset = own(root, opts.rule) if opts.rule else known(root, opts.dataset)

    # 2. read the names
    ours = {str(place) for tree in (out, root / 'pytorch') for place in (tree, *trees.beside(tree))}
    raw = read(root, dataset, skip=ours)
    tree = split(raw, opts.split_seed) if 'all' in raw else raw
    for parts in (('train_all',), ('query', 'gallery', 'multi-query')):  # a clash is told here, not after training
        datasets.numbered(item.id for part in parts for item in tree.get(part, ()))

    # 3. plan the tree: which of its files comes from which raw one
    tree, rule = trees.named(tree, dataset.rule)
    tree.update(hold_out(tree['train_all']))
    plan = {f'{part}/{item.id}/{item.name}': item.source for part in tree for item in tree[part]}
    about = {'dataset': name, 'rule': rule, 'raw': root.name, 'version': VERSION}
    about['pictures'] = {part: len(tree[part]) for part in PARTS if part in tree}
    about = yaml.safe_dump(about, sort_keys=False, allow_unicode=True)

    # 4. check the pictures and build the tree
    if trees.same(out, plan, about, opts.link):
        print('The tree is there already and complete: nothing to do.')
    else:
        if not opts.no_check:
            check(plan.values())
        trees.build(out, plan, about, opts.link)

    # 5. what there is now
    report(dataset, {**raw, **tree}, opts.out or given / 'pytorch')


# ------------------------------------------------------------------------------------------------- 1. find the data set


def find(opts):
    """The raw folder. Toy data are drawn here, and only when asked for by name."""
    drawing = {key: getattr(opts, key) for key in ('ids', 'images', 'seed') if getattr(opts, key) is not None}
    if opts.dataset == 'toy' and not opts.rule:
        from reid import toy

        root = Path(opts.data_dir or 'data/toy').expanduser()
        toy.draw(root, **drawing, progress=bool(sys.stderr and sys.stderr.isatty()))
        return root
    if drawing:
        raise Problem(f'--{next(iter(drawing))} is for --dataset toy alone: add that, or leave it out.')
    if opts.rule and opts.dataset != 'auto':
        raise Problem(f'--dataset {opts.dataset} has its own naming rule: give either --dataset or --rule.')
    if opts.data_dir:
        root = Path(opts.data_dir).expanduser()
        if not root.is_dir():
            near = next(folder for folder in (root.parent, *root.resolve().parents) if folder.is_dir())
            raise Problem(f'there is no folder {root}. {near.resolve()} holds: {holds(near)}. Check --data_dir.')
        return root
    for home in HOMES:
        if opts.dataset in ('auto', 'market') and not opts.rule and Path(home).is_dir():
            return Path(home)
    raise Problem(
        f'no data set: neither {" nor ".join(HOMES)} is there. Say where yours is with --data_dir FOLDER; '
        'get Market-1501 from https://zheng-lab.cecs.anu.edu.au/Project/project_reid.html; '
        'or draw small toy data with: python prepare.py --dataset toy'
    )


def own(root, rule):
    """One's own pictures: with a split if the folder has one, else all in one part."""
    try:
        groups = re.compile(rule).groupindex
    except re.error as error:
        raise Problem(f'--rule {rule!r} is no regular expression ({error}). Try {EXAMPLE}') from None
    if 'id' not in groups:
        raise Problem(f'--rule {rule!r} has no group named id. Try {EXAMPLE}')
    if (root / ABOUT).is_file():
        raise Problem(datasets.explain(root))
    folders = {part: name for part, names in OWN.items() for name in names if (root / name).is_dir()}
    missing = [part for part in ('train_all', 'query', 'gallery') if part not in folders]
    if missing and len(missing) < 3:
        raise Problem(
            f'{root} has {" and ".join(folders.values())} but no folder {" or ".join(OWN[missing[0]])}. '
            'Give all three of train, query and gallery, or none: then the identities are split here.'
        )
    return 'own', Dataset('your own pictures', rule, (folders if not missing else {'all': '.'},))


def known(root, name):
    """A data set of the table, by its name or by its looks."""
    name = datasets.recognise(root) if name == 'auto' else name
    if name is None or not datasets.layout(root, DATASETS[name]):
        raise Problem(datasets.explain(root, name))
    return name, DATASETS[name]


# ---------------------------------------------------------------------------------------------------- 2. read the names


def read(root, dataset, skip):
    """{part: [Picture]}, sorted by path. Every name has to fit the rule."""
    found, misfits, others, total, walked = defaultdict(list), [], Counter(), 0, set()
    for part, folder in datasets.layout(root, dataset).items():
        files = list(datasets.walk(root / folder, skip))
        paths = sorted(filter(datasets.is_picture, files))
        if folder not in walked:  # MSMT17 has queries and gallery in one
            walked.add(folder)
            others.update(os.path.basename(path) for path in files if not datasets.is_picture(path))
        if dataset.lists:
            listed = {path for name in dataset.lists[part] for path in datasets.read_list(root / name)}
            lost = sorted(listed.difference(paths))
            if lost:
                raise Problem(f'{some(lost)} of {dataset.lists[part]} not in {root / folder}: unpack it again.')
            paths = sorted(listed)
        if not paths:
            raise Problem(f'no pictures in {root / folder}. It holds: {holds(root / folder)}. Check --data_dir.')
        total += len(paths)
        for path in paths:
            read_name = datasets.read_name(dataset.rule, path)
            if read_name:
                found[part].append(Picture(str(root / folder / path), path, *read_name))
            else:
                misfits.append(path if folder == '.' else f'{folder}/{path}')
    if misfits:
        raise Problem(
            f'{some(misfits)}: {len(misfits):,} of {total:,} pictures do not fit the names of {dataset.title} '
            f'({dataset.rule}). Move them away, choose another --dataset, or give your own --rule.'
        )
    if others:
        kinds = ', '.join(f'{name} ({n})' if n > 1 else name for name, n in others.most_common(3))
        print(f'Left out {sum(others.values()):,} files that are not pictures: {kinds}{", ..." * (len(others) > 3)}')
    safe({item.id for items in found.values() for item in items})
    return numbered(found)


def some(names):
    return ', '.join(names[:5]) + (f' and {len(names) - 5:,} more' if len(names) > 5 else '')


def safe(ids):
    """An identity becomes the name of a folder, here and on other systems."""
    bad = sorted(name for name in ids if re.search(r'[/\\:*?"<>|\x00-\x1f]|^[. ]|[. ]$', name))
    if bad:
        raise Problem(f'identity {bad[0]!r} cannot be the name of a folder: let the group id of --rule catch less.')
    seen = {}
    for name in sorted(ids):
        if seen.setdefault(name.casefold(), name) != name:
            raise Problem(
                f'identities {seen[name.casefold()]!r} and {name!r} are one folder on some disks: rename one.'
            )


def numbered(found):
    """Cameras as numbers. Where some are words, all are numbered in sorted order."""
    names = sorted({item.cam for items in found.values() for item in items if item.cam})
    number = {None: UNKNOWN, '': UNKNOWN}
    if all(re.fullmatch(r'-?[0-9]+', name) for name in names):
        number.update((name, int(name)) for name in names)
    else:
        number.update((name, i) for i, name in enumerate(names, 1))
        print('Cameras: ' + ', '.join(f'{name} is {i}' for i, name in enumerate(names, 1)))
    return {part: [item._replace(cam=number[item.cam]) for item in items] for part, items in found.items()}


def split(raw, seed):
    """Half of the identities to train on, drawn by `seed`; the others, and junk (-1), to test on."""
    ids = sorted({item.id for item in raw['all']} - {'-1'})
    if len(ids) < 2:
        raise Problem(f'one identity only ({", ".join(ids) or "-1"}): there is nothing to tell apart. Check --rule.')
    random.Random(seed).shuffle(ids)
    training = set(ids[: len(ids) // 2])
    tests = [item for item in raw['all'] if item.id not in training]
    queries, gallery = datasets.split_queries([(item.path, item.id, item.cam) for item in tests])
    print(f'No official split: {len(training):,} identities to train, the others to test (--split_seed {seed})')
    return {
        'train_all': [item for item in raw['all'] if item.id in training],
        'query': [tests[i] for i in queries],
        'gallery': [tests[i] for i in gallery],
    }


# ----------------------------------------------------------------------------------------------------- 3. plan the tree


def hold_out(train_all):
    """val gets the first picture of each identity, by sorted name, train the rest. A single picture is for train."""
    people = defaultdict(list)
    for item in sorted(train_all, key=lambda item: item.name):
        people[item.id].append(item)
    val = [items[0] for items in people.values() if len(items) > 1]
    if len(val) < len(people):
        print(f'{len(people) - len(val):,} identities with a single picture: in train, not in val')
    return {'train': [item for items in people.values() for item in items[len(items) > 1 :]], 'val': val}


# ------------------------------------------------------------------------------------------------ 4. check the pictures


def check(files):
    """Decode every picture, so that training does not end at a broken one in the third hour."""

    def broken(file):
        try:
            with Image.open(file) as picture:
                picture.load()
        except Exception as error:  # Pillow raises a dozen types; whatever it is, the picture cannot be used
            return str(error) if file in str(error) else f'{file} ({error})'
        return None

    files, bad = sorted(set(files)), []
    with ThreadPoolExecutor(cores()) as pool, tqdm(total=len(files), desc='checking', disable=None) as bar:
        for i in range(0, len(files), 1024):  # in portions: bounded memory, and Ctrl-C is heard
            bad += [reason for reason in pool.map(broken, files[i : i + 1024]) if reason]
            bar.update(len(files[i : i + 1024]))
    if bad:
        raise Problem(
            f'{len(bad):,} of {len(files):,} pictures cannot be decoded: {some(bad)}. '
            'Unpack the data set again, or move these pictures away.'
        )


# ------------------------------------------------------------------------------------------------------------ 5. report


def report(dataset, parts, out):
    """A table of what was found, beside what the data set should have."""

    found = {part: (len({item.id for item in items}), len(items)) for part, items in parts.items()}

    def differs(counts):
        there = {
            part: (found[part][0] if ids else None, found[part][1])
            for part, (ids, _) in counts.items()
            if part in found
        }
        return [part for part in there if there[part] != counts[part]]

    official = min(dataset.official, key=lambda counts: len(differs(counts)), default={})
    print(f'\n{dataset.title:12} {"ids":>8} {"pictures":>10} {"official":>16}')
    for part in ('all', *PARTS):
        if part in found:
            ids, n = official.get(part, (None, None))
            said = f'{ids:,} / {n:,}' if ids else f'{n:,}' if n else ''
            print(f'{part:12} {found[part][0]:8,} {found[part][1]:10,} {said:>16}'.rstrip())
    for part in differs(official):
        ids, n = official[part]
        print(
            f'WARNING: {part} has {found[part][1]:,} pictures of {found[part][0]:,} identities; {dataset.title} has '
            f'{n:,}{f" of {ids:,}" if ids else ""}. Results will not compare: unpack the data set again.'
        )
    if not found['query'][1]:
        print('WARNING: no queries. Nobody to test on has pictures from two cameras, so test.py cannot rank.')
    print(f'\nThe tree is {out}. Next: {training(dataset, Path(out))}')


def training(dataset, out):
    """The command that learns from the tree. What is drawn has a recipe: small, without a download."""
    words = ['python train.py']
    if dataset is DATASETS['toy']:
        words += ['--config configs/toy.yaml --name toy']
    if dataset is not DATASETS['toy'] or out != Path('data/toy/pytorch'):  # which the recipe names
        words += [f'--data_dir {cli.quote(out)}']
    return ' '.join(words)


if __name__ == '__main__':
    cli.start(main, options)
