"""Pictures on the page (reid.page): those that somebody has sent to register or search, and those of entries.

    drafts/<id>/draft.json     what was sent: names of files, boxes of people in them
    drafts/<id>/0.upload, ...  as it was sent, to be described; it is never shown
    drafts/<id>/0.jpg, ...     made of it by us, to be shown
    drafts/<id>/upload         a video, of which a frame is looked for (reid.page_clip)
    thumbs/<id>-<time>.jpg     of an entry

What was sent is there until it is registered, for a day at most: then it is not shown, and is deleted within HOUR. Of
more than MOST, or of more than BYTES, the oldest go. So a page may be loaded again, and be open twice. No name that
comes from outside becomes a part of a path.
"""

import asyncio
import json
import os
import re
import secrets
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from reid import data
from reid.datasets import is_picture
from reid.files import replacing
from reid.problem import Problem
from reid.service_door import Refused
from reid.video import crop

MOST, BYTES, DAY, HOUR = 60, 2 * 10**9, 24 * 3600, 3600
SHOWN, THUMB = 1280, 192  # pixels, at most
BOXES = 30  # of a picture: more nobody can choose from
WHOLE, SKIP = 'whole', 'skip'
ID = r'[0-9a-f]{32}'


def fresh():
    """An id that begins with its time, so that ids have an order, and cannot be guessed."""
    return f'{time.time_ns():016x}{secrets.token_hex(8)}'


def since(id):
    return int(id[:16], 16) / 1e9


def old(id):
    return time.time() - since(id) > DAY


def largest(boxes):
    """Their places, the largest first: so they are drawn, for a small one in front can be clicked at."""
    return sorted(range(len(boxes)), key=lambda i: -(boxes[i][2] - boxes[i][0]) * (boxes[i][3] - boxes[i][1]))


def small(picture, wide):
    """A copy, at most that wide and twice as high."""
    picture = picture.copy()
    picture.thumbnail((wide, 2 * wide))
    return picture


class Pictures:
    def __init__(self, folder, work, detectors, reads):
        """detectors: {name: load(least) -> detect}, and 'none'. reads: pictures that entries speak of may be shown."""
        self.folder, self.drafts, self.thumbs = folder, folder / 'drafts', folder / 'thumbs'
        self.work, self.reads, self.loading, self.loaded = work, reads, detectors, {}
        self.one = ThreadPoolExecutor(1)  # detectors need not be made for several threads
        for place in (self.drafts, self.thumbs):
            place.mkdir(parents=True, exist_ok=True)
        self.closed, self.thread = threading.Event(), threading.Thread(target=self.keep_tidy, daemon=True)
        self.thread.start()

    def close(self):
        self.closed.set()
        self.thread.join()
        self.one.shutdown(cancel_futures=True)

    async def apart(self, f, *args):
        return await asyncio.get_running_loop().run_in_executor(self.one, f, *args)

    # -----------------------------------------------------------------------------------------------------------------
    # who is in a picture

    def detector(self, name):
        """-> detect, or a Problem: it is said, and the whole picture is taken. It is tried once."""
        if name not in self.loaded:
            try:
                self.loaded[name] = self.loading[name](None)
            except Problem as problem:
                self.loaded[name] = problem
        return self.loaded[name]

    def boxes(self, picture, name):
        """-> [[left, top, right, bottom]] from left to right, and what hinders."""
        if name == 'none':
            return [], None
        detect = self.detector(name)
        if isinstance(detect, Problem):
            return [], str(detect)
        boxes, _ = detect(np.array(picture))
        boxes = sorted([round(float(side)) for side in box] for box in boxes[:BOXES])
        return [box for box in boxes if box[2] > box[0] and box[3] > box[1]], None

    # -----------------------------------------------------------------------------------------------------------------
    # what was sent

    def take(self, kind, files, detector, clip=None):
        """[(name, file)] -> the id of a draft. clip: the address of the video that it is a frame of."""
        self.tidy()
        id, pictures, hindered = fresh(), [], None
        folder = self.drafts / f'{id}.part'
        folder.mkdir()
        try:
            for place, (name, file) in enumerate(files):
                body = self.bounded(file)
                picture = self.work.read(body, name[-80:] or 'the picture')
                boxes, hindrance = self.boxes(picture, detector)
                hindered = hindered or hindrance
                (folder / f'{place}.upload').write_bytes(body)
                small(picture, SHOWN).save(folder / f'{place}.jpg', quality=88)
                for which, box in enumerate(boxes):
                    small(picture.crop(box), THUMB).save(folder / f'{place}-{which}.jpg', quality=88)
                pictures.append({'name': name[-200:], 'size': picture.size, 'boxes': boxes, 'drawn': largest(boxes)})
            draft = {'kind': kind, 'pictures': pictures, 'hindered': hindered, 'clip': clip}
            (folder / 'draft.json').write_text(json.dumps(draft), encoding='utf-8')
            os.replace(folder, self.drafts / id)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return id

    def bounded(self, file):
        body, most = file.read(self.work.limits.bytes + 1), self.work.limits.bytes
        if len(body) > most:
            raise Refused(413, f'a picture has at most {most / 1e6:g} MB')
        return body

    def keep_tidy(self):
        while not self.closed.is_set():
            with suppress(OSError):
                self.tidy()
            self.closed.wait(HOUR)

    def tidy(self):
        whole = 0
        for place, folder in enumerate(sorted(self.drafts.iterdir(), reverse=True)):
            with suppress(OSError):
                whole += sum(file.stat().st_size for file in folder.iterdir())
            begun = re.match(ID, folder.name)
            if place >= MOST or whole > BYTES or not begun or old(folder.name):
                shutil.rmtree(folder, ignore_errors=True)

    def draft(self, id, kind=None):
        """What was sent, or a sentence."""
        with suppress(OSError, ValueError):
            if re.fullmatch(ID, id) and not old(id):
                draft = json.loads((self.drafts / id / 'draft.json').read_text(encoding='utf-8'))
                if kind in (None, draft['kind']):
                    return draft
        raise Refused(404, 'this picture is not here any more: it was registered, or is older than a day')

    def cut(self, id, draft, place, box):
        """What is in a box of a draft, or the whole of it -> a picture."""
        try:
            picture = self.work.read((self.drafts / id / f'{place}.upload').read_bytes(), 'the picture')
        except OSError:
            raise Refused(404, 'this picture is not here any more') from None
        if box == WHOLE:
            return picture
        return Image.fromarray(crop(np.array(picture), draft['pictures'][place]['boxes'][box]))

    def look(self, *cut):
        """-> what the network is shown of it, and a small picture. What it was cut out of may be large, and goes."""
        picture = self.cut(*cut)
        return data.sized(picture, self.work.embedder.size), small(picture, THUMB)

    async def describe(self, sized):
        return await asyncio.gather(*map(self.work.vector, sized))

    def claim(self, id):
        """Of two who confirm the same draft, one is first."""
        try:
            os.replace(self.drafts / id, self.drafts / f'{id}.taken')
        except OSError:
            raise Refused(404, 'this picture is not here any more: it was registered, or is older than a day') from None

    def unclaim(self, id):
        os.replace(self.drafts / f'{id}.taken', self.drafts / id)

    def done(self, id):
        shutil.rmtree(self.drafts / f'{id}.taken', ignore_errors=True)

    # -----------------------------------------------------------------------------------------------------------------
    # entries

    def thumb(self, entry):
        """The time is in the name as well: in an index that was made anew, a number is given a second time."""
        moment = 'none' if entry.time is None else round(entry.time * 1000)
        return self.thumbs / f'{entry.id}-{moment}.jpg'

    def keep(self, entry, picture):
        with suppress(OSError), replacing(self.thumb(entry)) as temporary:  # the entry is there without it
            small(picture, THUMB).save(temporary, 'JPEG', quality=88)

    def thumb_of(self, entry):
        """The path of its picture, made now if need be, or None."""
        path = self.thumb(entry)
        if not path.is_file() and self.reads and entry.path and is_picture(entry.path):
            with suppress(Problem, OSError, ValueError):
                source = Path(entry.path)
                small = source.is_absolute() and source.is_file() and source.stat().st_size <= self.work.limits.bytes
                if small:
                    self.keep(entry, data.read(source, most=self.work.limits.pixels))
        return path if path.is_file() else None

    def move(self, old, new):
        with suppress(OSError):
            os.utime(self.thumb(old))
            os.replace(self.thumb(old), self.thumb(new))

    def sweep(self, there, last):
        """Pictures of entries that the API or search.py has removed. Those that came after the last are let be, for a
        minute: perhaps they were not looked for yet."""
        for path in self.thumbs.iterdir():
            found = re.match(r'(\d+)-', path.name)
            if found and int(found[1]) not in there:
                with suppress(OSError):
                    if int(found[1]) <= last or time.time() - path.stat().st_mtime > 60:
                        path.unlink()

    def forget(self, entries):
        for entry in entries:
            with suppress(OSError):
                self.thumb(entry).unlink()
