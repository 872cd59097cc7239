"""The prepared tree on disk: <part>/<id>/<name>, and dataset.yaml, which says what it is and how its names read.

It is built beside its place and renamed at the end, so that nothing half-made ever bears its name, and what a stopped
run left is finished by the next. Nothing is replaced but what this module made.
"""

import os
import re
import shutil
import stat
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from reid.datasets import ABOUT, PARTS, UNKNOWN
from reid.files import replacing
from reid.problem import Problem


def beside(out):
    """Where the tree grows, and where the one that it replaces waits."""
    return out.with_name(out.name + '.part'), out.with_name(out.name + '.old')


def may_write(out, root):
    """Nothing may be in the way but a tree of ours, and never the raw pictures."""
    if root == out or out in root.parents:
        raise Problem(f'--out {out} is the raw folder or contains it: give a folder of its own.')
    for place in (out, *beside(out)):
        if not place.exists() or (place.is_dir() and not any(place.iterdir())):
            continue
        if not (place / ABOUT).is_file():
            raise Problem(
                f'{place} is there already and prepare.py did not make it. Move it away, or give --out FOLDER.'
            )
        foreign = {entry for entry in os.listdir(place) if entry[0] != '.'} - {*PARTS, ABOUT, 'cache'}
        if foreign:
            raise Problem(f'{place} holds {sorted(foreign)[0]}, which prepare.py did not put there. Move it away.')


def named(tree, rule):
    """The same {part: [Picture]} with names, and the rule by which a name tells its camera (None: cameras are unknown).

    A file name stays as it is where it says all by itself. Else the new one tells identity and camera, then where it
    comes from, so that a/1.jpg and b/1.jpg of one person do not become one file.
    """
    items = [(part, item, os.path.basename(item.path)) for part in tree for item in tree[part]]
    known = any(item.cam != UNKNOWN for _, item, _ in items)

    def tells(item, base):
        found = re.search(rule, base)
        return found and (found.groupdict().get('cam') or str(UNKNOWN)).lstrip('0') == str(item.cam).lstrip('0')

    if len({(part, item.id, base.casefold()) for part, item, base in items}) == len(items) and (
        not known or all(tells(item, base) for _, item, base in items)
    ):
        fresh = {part: [item._replace(name=os.path.basename(item.path)) for item in tree[part]] for part in tree}
        return fresh, rule if known else None
    fresh, taken = {part: [] for part in tree}, Counter()
    for part, item, _ in items:
        stem, ending = os.path.splitext(item.path.replace('/', '_'))
        stem = item.id.replace('_', '-') + (f'_c{item.cam}' if known else '') + '_' + stem
        taken[part, item.id, (stem + ending).casefold()] += 1
        again = taken[part, item.id, (stem + ending).casefold()]
        fresh[part].append(item._replace(name=f'{stem}~{again}{ending}' if again > 1 else stem + ending))
    return fresh, r'^[^_]+_c(?P<cam>-?\d+)_' if known else None


def files_of(tree):
    """The files of a tree as 'query/0002/name.jpg'."""
    for part in PARTS:
        for folder, _, names in os.walk(tree / part):
            place = os.path.relpath(folder, tree).replace(os.sep, '/')
            yield from (f'{place}/{name}' for name in names)


def right(target, source, link):
    """Is `target` what `link` makes of `source`? A copy is right for 'hard' too: not every disk has hard links."""
    try:
        there, raw = os.lstat(target), os.stat(source)
        if link == 'soft' or stat.S_ISLNK(there.st_mode):
            return link == 'soft' and stat.S_ISLNK(there.st_mode) and os.path.samefile(target, source)
    except OSError:
        return False
    if os.path.samestat(there, raw):
        return link == 'hard'
    return there.st_size == raw.st_size and abs(there.st_mtime - raw.st_mtime) <= 2  # FAT counts in two seconds


def same(out, plan, about, link):
    """Does `out` hold exactly the plan?"""
    note = out / ABOUT
    if not note.is_file() or note.read_text(encoding='utf-8') != about:
        return False
    there = {file for file in files_of(out) if not os.path.basename(file).startswith('.')}  # '.DS_Store'
    if there != set(plan):
        return False
    return all(right(out / target, source, link) for target, source in plan.items())


def build(out, plan, about, link):
    """Make `out` hold the plan {file in the tree: raw file}; what a stopped run left is kept where it is right."""
    grows, old = beside(out)
    try:
        grows.mkdir(parents=True, exist_ok=True)
        (grows / ABOUT).write_text(about, encoding='utf-8')  # first: it says that the folder is ours
        for part in {*PARTS[:-1], *(file.split('/')[0] for file in plan)}:  # an empty one as well
            (grows / part).mkdir(exist_ok=True)
        for file in list(files_of(grows)):
            if file not in plan or not right(grows / file, plan[file], link):
                (grows / file).unlink()
        for file, source in tqdm(plan.items(), desc='building', disable=None):
            if not os.path.lexists(grows / file):
                (grows / file).parent.mkdir(exist_ok=True)
                link = place(source, str(grows / file), link)
        for folder in list(grows.glob('*/*')):
            if not os.listdir(folder):  # would be an identity without a picture
                folder.rmdir()
        if old.exists():
            shutil.rmtree(old)
        if out.exists():
            os.replace(out, old)
        os.replace(grows, out)
        if old.exists():
            shutil.rmtree(old)
    except OSError as error:
        if getattr(error, 'winerror', 0) == 1314:
            raise Problem(
                'Windows lets you make no soft links: use --link hard, or switch developer mode on.'
            ) from None
        raise Problem(
            f'the tree cannot be written: {error}. Make room or the right to write there, or give another place with '
            '--out FOLDER; the same command goes on from here.'
        ) from None


def place(source, target, link):
    """Put one file there, whole or not at all, and return the way that worked."""
    if link == 'soft':
        try:
            goal = os.path.relpath(source, os.path.dirname(target))
        except ValueError:  # another drive of Windows
            goal = os.path.abspath(source)
        os.symlink(goal, target)
        return link
    if link == 'hard':
        try:
            os.link(os.path.realpath(source) if os.path.islink(source) else source, target)
            return link
        except FileExistsError:  # another run writes here
            raise
        except OSError as error:
            print(f'No hard links here ({error.strerror}): copying instead.')
    with replacing(Path(target)) as temporary:
        shutil.copyfile(source, temporary)
        when = os.stat(source)
        os.utime(temporary, ns=(when.st_atime_ns, when.st_mtime_ns))
    return 'copy'
