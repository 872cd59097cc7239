"""The data set that is always there: people drawn by a program, in folders as Market-1501 has them.

    python -c "from reid.toy import draw; draw('data/toy')"

It needs no download and nobody's permission, and it asks the questions of the real thing: six cameras, four sides of a
person, light, occlusion, bad boxes, distractors and junk. `wardrobe.py` says who the people are, `figures.py` draws
them, `scenes.py` has the places; here they meet. Every picture has random numbers of its own, made from (seed, what it
is): the order in which pictures are drawn, and by how many processes, does not matter.
"""

import math
import re
import signal
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import yaml
from PIL import Image, ImageFilter
from tqdm import tqdm

from reid.figures import LIT, Sheet
from reid.files import replacing
from reid.machine import cores
from reid.problem import Problem
from reid.scenes import THINGS, background, camera
from reid.wardrobe import generator, person, pose

IDS, IMAGES = 320, 9
VERSION = 1  # of the drawing: another number means other pictures from the same options
WIDTH, HEIGHT, ZOOM = 64, 128, 2  # drawn ZOOM times as large, then reduced
FOLDERS = ('bounding_box_train', 'bounding_box_test', 'query', 'gt_bbox')
OURS = re.compile(r'(-1|\d{4,})_c[1-6]s[1-6]_\d{6}_\d{2}\.jpg$')
JUNK, NOBODY = -1, 0  # the two names in Market's gallery that are not people to be found
DONE, PART = 'toy.yaml', 'toy.part'
OCCLUDED, ACCOMPANIED = 0.25, 0.13  # parts of the pictures with a thing in front, with somebody else at the edge


# 1. what there is to draw


def name(who, cam, sequence, frame, box):
    """Market's name of a picture: 0002_c1s1_000451_03.jpg, and -1_c1s1_000451_03.jpg for junk."""
    label = '-1' if who == JUNK else f'{who:04d}'
    return f'{label}_c{cam}s{sequence}_{frame:06d}_{box:02d}.jpg'


def split(ids, seed):
    """The numbers 1..ids in two halves, (training, test), interleaved by chance."""
    numbers = list(range(1, ids + 1))
    generator(seed, 'split').shuffle(numbers)
    return sorted(numbers[: ids // 2]), sorted(numbers[ids // 2 :])


def plan(ids, images, seed):
    """Every picture to draw, as (path in the folder, kind, who, camera, number of the shot, drawn by hand?)."""
    rng, used, tasks = generator(seed, 'plan'), set(), []

    def fresh(who):
        """A moment at which nobody of this name was seen. It is drawn by chance, so that it tells nothing."""
        while (moment := (who, rng.randint(1, 6), rng.randint(1, 99999))) in used:
            pass
        used.add(moment)
        return moment[1:]

    def shoot(folder, kind, who, cam, shot, moment, hand=False):
        box = 0 if hand else rng.choice((1, 1, 1, 2, 2, 3, 4, 5))
        tasks.append((f'{folder}/{name(who, cam, *moment, box)}', kind, who, cam, shot, hand))

    for folder, people in zip(FOLDERS[:2], split(ids, seed), strict=True):
        for who in people:
            cams = rng.sample(range(1, 7), rng.choice((3, 4, 4, 5)))
            count = max(len(cams), round(images * rng.uniform(0.6, 1.4)))
            for shot in range(count):
                cam, moment = cams[shot] if shot < len(cams) else rng.choice(cams), fresh(who)
                shoot(folder, 'person', who, cam, shot, moment)
                if folder == 'bounding_box_test' and shot < len(cams):  # again, in a box drawn by hand
                    shoot('gt_bbox', 'person', who, cam, shot, moment, hand=True)
            if folder == 'bounding_box_test':
                for shot, cam in enumerate(cams, count):
                    moment = fresh(who)
                    shoot('query', 'person', who, cam, shot, moment, hand=True)
                    shoot('gt_bbox', 'person', who, cam, shot, moment, hand=True)
    good = sum(path.startswith('bounding_box_test') for path, *_ in tasks)
    for kind, who, part in (('person', NOBODY, 0.22), ('junk', JUNK, 0.25)):  # 15 and 17 % of the whole gallery
        for shot in range(round(good * part)):
            shoot('bounding_box_test', kind, who, rng.randint(1, 6), shot, fresh(who))
    return tasks


# 2. one picture


def picture(seed, kind, who, cam, shot, hand):
    """What a camera sees, as a picture of 64 x 128, and the JPEG quality that it is stored with."""
    rng, view = generator(seed, kind, who, cam, shot), camera(cam)
    frame = generator(seed, kind, who, cam, shot, hand)  # the box, apart: two boxes of a shot show the same
    act, light = pose(rng), max(-0.9, min(0.9, view.light + rng.gauss(0, 0.2)))
    tall = 0.88 + frame.uniform(-0.01, 0.01) if hand else frame.uniform(0.82, 0.95)
    slip = 0.012 if hand else 0.036
    if kind == 'junk':  # too near, too far to the side, or nobody at all
        tall, slip = frame.choice((0.6, 1.3, 1.7, 2.1)), 0.2
    w, h = WIDTH * ZOOM, HEIGHT * ZOOM
    foot = (w * (0.5 + frame.gauss(0, slip * 1.6)), h * (0.5 + tall / 2 + frame.gauss(0, slip * 0.4)))

    image = background(view, rng, (w, h), tall)
    sheet = Sheet(image, light)
    angle = {'pitch': view.pitch, 'squat': view.squat, 'shear': view.shear + rng.gauss(0, 0.01)}
    someone = person(seed, 'passer-by', rng.randint(0, 10**6))
    beside = rng.choice((-1, 1)) * w * rng.uniform(0.42, 0.62)
    covered, before, thing = rng.random() < OCCLUDED, rng.random() < 0.5, rng.choice(list(THINGS))
    company, other, empty = rng.random() < ACCOMPANIED, pose(rng), rng.random() < 0.3
    if kind == 'junk':
        covered, company = covered or rng.random() < 0.4, rng.random() < 0.5
    if company and not before:
        sheet.figure(someone, other, (foot[0] + beside, foot[1] - 0.03 * h), h * tall * 0.92, **angle)
    if not (kind == 'junk' and empty):
        sheet.figure(subject(seed, kind, who, shot), act, foot, h * tall, **angle)
    if company and before:
        sheet.figure(someone, other, (foot[0] + beside * 1.15, foot[1] + 0.03 * h), h * tall * 1.04, **angle)
    if covered:
        THINGS[thing](sheet, rng, w, h)
    return develop(sheet, view, rng), view.quality - rng.randint(0, 6)


def subject(seed, kind, who, shot):
    """Who is in the picture. Distractors come three times each, junk shows anybody."""
    if kind == 'junk':
        return person(seed, 'junk', shot)
    return person(seed, 'nobody', shot // 3) if who == NOBODY else person(seed, 'id', who)


def develop(sheet, view, rng):
    """From the two layers to what the camera stores: light, lens, sensor."""
    lamp = sheet.lamp.reduce(ZOOM).filter(ImageFilter.BoxBlur(0.7))
    x = np.asarray(sheet.image.reduce(ZOOM), np.float32) / 255  # (128, 64, 3)
    x *= np.asarray(lamp, np.float32)[:, :, None] / LIT
    gain = view.gain * math.exp(rng.gauss(0, 0.15))
    white = [view.red * (1 + rng.gauss(0, 0.03)), 1.0, view.blue * (1 + rng.gauss(0, 0.03))]
    x *= np.array([gain * c for c in white], np.float32)
    x = np.minimum(x, 1) ** np.float32(view.gamma)
    x = (x - 0.5) * np.float32(view.contrast * (1 + rng.gauss(0, 0.05))) + 0.5
    image = Image.fromarray((x * 255).clip(0, 255).round().astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(max(0.0, view.blur + rng.gauss(0, 0.15))))
    grain = np.random.Generator(np.random.PCG64(rng.getrandbits(63))).standard_normal(x.shape, np.float32)
    x = np.asarray(image, np.float32) + grain * np.float32(view.noise * rng.uniform(0.7, 1.3))
    return Image.fromarray(x.clip(0, 255).round().astype(np.uint8))


def store(folder, seed, tasks):
    """Draw a chunk of the plan into the folder: whole files or none. Returns how many."""
    for path, *what in tasks:
        image, quality = picture(seed, *what)
        with replacing(Path(folder, path)) as temporary:
            image.save(temporary, 'JPEG', quality=quality)
    return len(tasks)


# 3. the whole set


def draw(folder, ids=IDS, images=IMAGES, seed=0, workers=None, progress=True):
    """Draw the data set into a folder, or what is missing of it.

    ids: identities in all, half of them for training; images: pictures of each, on average; workers: processes
    (None: one a core, 1: this process alone). A folder that holds anything but a toy data set is refused.
    """
    folder = Path(folder)
    options = check(ids, images, seed, workers)
    tasks = plan(ids, images, seed)
    counts = Counter(path.split('/')[0] for path, *_ in tasks)
    wanted = {path for path, *_ in tasks}
    there = claim(folder, options, wanted)
    missing = [task for task in tasks if task[0] not in there]
    if not missing and (folder / DONE).exists():
        (folder / PART).unlink(missing_ok=True)
        print(f'{folder}: the toy data set is there already, {len(tasks)} pictures of {ids} people')
        return
    mark(folder / PART, options)
    (folder / DONE).unlink(missing_ok=True)
    with tqdm(total=len(missing), desc=f'draw {folder.name}', unit='pic', disable=not progress) as bar:
        work(folder, seed, missing, workers or min(cores(), 1 + len(missing) // 400), bar)
    mark(folder / DONE, {**options, 'counts': {f: counts[f] for f in FOLDERS}})
    (folder / PART).unlink()


def check(ids, images, seed, workers):
    """The options as they are written down, or a Problem."""
    for option, value, least in (
        ('ids', ids, 4),
        ('images', images, 4),
        ('seed', seed, 0),
        ('workers', 1 if workers is None else workers, 1),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise Problem(f'{option} of the toy data set must be a whole number from {least} up, not {value!r}.')
    return {'ids': ids, 'images': images, 'seed': seed, 'version': VERSION}


def claim(folder, options, wanted):
    """Make the folder ours: the pictures that are there and right, or a Problem if somebody else's things are in it."""
    if folder.exists() and not folder.is_dir():
        raise Problem(f'{folder} is a file; the toy data set needs a folder. Name another place.')
    marks = [record for m in (PART, DONE) if (record := recall(folder / m))]
    there = {f'{f}/{p.name}' for f in FOLDERS if (folder / f).is_dir() for p in (folder / f).iterdir()}
    if not marks:
        others = (p.name for p in folder.glob('[!.]*') if p.name not in FOLDERS or p.is_file())
        strange = sorted(there - wanted) or sorted(others)
        if strange:
            raise Problem(
                f'{folder} holds something that is no toy data set, such as {strange[0]}. It is left as it is: '
                'name an empty or a new folder.'
            )
    for path in sorted(p for p in there if p.endswith('.part')):  # cut off in the middle of a file
        (folder / path).unlink()
    if any({k: record.get(k) for k in options} != options for record in marks):
        mark(folder / PART, {'version': -1})  # until the old pictures are gone it is no set at all, and still ours
        for path in sorted(p for p in there if OURS.match(p.split('/')[1])):
            (folder / path).unlink()
        there = set()
    for f in FOLDERS:
        (folder / f).mkdir(parents=True, exist_ok=True)
    return there & wanted


def recall(path):
    """What a mark of ours says; None where there is none."""
    try:
        record = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return record if isinstance(record, dict) and 'version' in record else None


def mark(path, record):
    """Write down in the folder whose it is, at one stroke."""
    with replacing(path) as temporary:
        temporary.write_text(yaml.safe_dump(record, sort_keys=False), encoding='utf-8')


def work(folder, seed, tasks, workers, bar):
    """Draw the tasks here, or in chunks by several processes."""
    size = 48
    chunks = [tasks[i : i + size] for i in range(0, len(tasks), size)]
    if workers == 1 or len(chunks) < 2:
        for chunk in chunks:
            bar.update(store(folder, seed, chunk))
        return
    # Ctrl-C reaches every process of a terminal; only this one shall act on it, and the others end their chunk.
    calm = (signal.SIGINT, signal.SIG_IGN)
    spawn = get_context('spawn')  # the same on every system
    pool = ProcessPoolExecutor(min(workers, len(chunks), 61), spawn, initializer=signal.signal, initargs=calm)
    try:
        for done in as_completed([pool.submit(store, folder, seed, chunk) for chunk in chunks]):
            bar.update(done.result())
    finally:
        pool.shutdown(cancel_futures=True)
