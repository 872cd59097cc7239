"""Videos that are searched for the page (reid.page): one after the other, in a thread.

    videos/<id>/job.json    what is to be done, how far it is, and, when it is over, who was seen
    videos/<id>/upload      the video, until it is over
    videos/<id>/wanted.jpg  who is looked for; without it, everybody is compared with the index
    videos/<id>/found/      what search.py video makes (reid.watching): shots, a contact sheet, the video with boxes

All that is known of a job is in its folder. One that was under way when the service ended begins anew when it starts.
"""

import json
import logging
import re
import shutil
import threading
from contextlib import suppress
from pathlib import Path

from reid import frames, tracking, watching
from reid.files import replacing
from reid.page_pictures import ID
from reid.problem import Problem
from reid.service_door import Refused
from reid.sightings import Film
from reid.video import Follower

WAITING, RUNNING, DONE, CANCELLED, FAILED = 'waiting', 'running', 'done', 'cancelled', 'failed'
MOST = 30  # jobs that are kept, with what they have found
OVER = (DONE, CANCELLED, FAILED)


class Jobs:
    def __init__(self, folder, work, detectors):
        self.folder, self.work, self.detectors = folder / 'videos', work, detectors
        self.changed, self.closed = threading.Condition(), False
        self.now, self.film, self.stop = None, None, threading.Event()  # the one that is done, and how to end it
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in self.folder.glob('*.part'):  # of an upload that did not come to its end
            shutil.rmtree(place, ignore_errors=True)
        for job in self.all():
            if job['state'] == RUNNING:
                self.keep({**job, 'state': WAITING})
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def close(self):
        with self.changed:
            self.closed = True
            self.stop.set()
            self.changed.notify_all()
        self.thread.join()

    # -----------------------------------------------------------------------------------------------------------------
    # what is there

    def all(self):
        """The newest first."""
        found = []
        for place in sorted(self.folder.iterdir(), reverse=True):
            with suppress(OSError, ValueError):
                if re.fullmatch(ID, place.name):
                    found.append(json.loads((place / 'job.json').read_text(encoding='utf-8')))
        return found

    def one(self, id):
        with suppress(OSError, ValueError):
            if re.fullmatch(ID, id):
                return json.loads((self.folder / id / 'job.json').read_text(encoding='utf-8'))
        raise Refused(404, 'this search in a video is not here any more')

    def keep(self, job):
        with replacing(self.folder / job['id'] / 'job.json') as temporary:
            temporary.write_text(json.dumps(job), encoding='utf-8')

    def progress(self, id):
        """Of the job that is done: the part of it that is over and seconds of the video, each None if nobody knows."""
        film = self.film
        if self.now != id or film is None:
            return None, None
        whole = film.source.count and film.source.count / film.source.fps
        return (min(1, film.length / whole) if whole else None), film.length

    def room(self):
        if len(self.all()) >= MOST:
            raise Refused(429, f'{MOST} searches in videos are kept: remove one of them first')

    def add(self, job):
        """Its folder is there, as <id>.part, with the video."""
        with self.changed:
            self.room()
            place = self.folder / f'{job["id"]}.part'
            (place / 'job.json').write_text(json.dumps({**job, 'state': WAITING}), encoding='utf-8')
            place.rename(self.folder / job['id'])
            self.changed.notify_all()

    def cancel(self, id):
        with self.changed:
            job = self.one(id)
            if self.now == id:
                self.stop.set()
            elif job['state'] == WAITING:
                self.keep({**job, 'state': CANCELLED, 'rows': []})
                (self.folder / id / 'upload').unlink(missing_ok=True)

    def remove(self, id):
        with self.changed:
            self.one(id)
            if self.now == id:
                self.stop.set()
                self.changed.wait_for(lambda: self.now != id, 30)
            shutil.rmtree(self.folder / id, ignore_errors=True)

    # -----------------------------------------------------------------------------------------------------------------
    # the thread

    def run(self):
        while (job := self.next()) is not None:
            state, problem, rows = FAILED, None, []
            try:
                state, problem, rows = self.search(job)
            except Problem as error:
                problem = str(error)
            except Exception:  # a bug: the next job is none the worse for it
                logging.getLogger(__name__).exception('a search in a video')
                problem = 'something went wrong in the service, and its log says what'
            self.end(job, state, problem, rows)

    def next(self):
        def waiting():
            return next((job for job in reversed(self.all()) if job['state'] == WAITING), None)

        with self.changed:
            self.changed.wait_for(lambda: self.closed or waiting())
            if self.closed:
                return None
            job = waiting()
            self.now, self.film = job['id'], None
            self.stop.clear()
            self.keep({**job, 'state': RUNNING})
            return job

    def end(self, job, state, problem, rows):
        with self.changed:
            if not (self.closed and state == CANCELLED):  # else it begins anew, with the service
                seconds = self.film.length if self.film else 0
                with suppress(OSError):
                    self.keep({**job, 'state': state, 'problem': problem, 'rows': rows, 'seconds': seconds})
                    (self.folder / job['id'] / 'upload').unlink(missing_ok=True)
            self.now = self.film = None
            self.changed.notify_all()

    def search(self, job):
        """-> state, what went wrong, rows."""
        place, embedder = self.folder / job['id'], self.work.embedder
        path, out, wanted = place / 'upload', place / 'found', place / 'wanted.jpg'
        wanted = watching.wanted([wanted], embedder, job['threshold']) if wanted.is_file() else None
        wanted = wanted and wanted._replace(name=job['who'])
        known = Known(self.work.index)
        look = self.detectors[job['detector']](tracking.LOW)

        def detect(picture):
            if self.stop.is_set():
                raise Stopped('it was stopped')
            return look(picture)

        with frames.open(path, say=lambda sentence: None) as source:
            if source.size[0] * source.size[1] > self.work.limits.pixels:
                raise Problem(f'a frame has {source.size[0]} x {source.size[1]} pixels: that is more than is read here')
            shutil.rmtree(out, ignore_errors=True)  # of a time that was cut short
            watching.folder(out, [path])
            light = frames.able(out / 'try.webm')
            film = self.film = Film(source, job['name'], 'video', -1, None, out, wanted, known, light=light)
            stopped = watching.watch(
                [film],
                lambda: Follower(detect, embedder, job['every'], batchsize=self.work.limits.batchsize),
                out,
                embedder.about,
                say=lambda sentence: None,
            )
        if isinstance(stopped, Stopped):
            return CANCELLED, None, rows(film, known, job)
        return (FAILED if stopped else DONE), stopped and str(stopped), rows(film, known, job)


class Stopped(Problem):
    """By somebody, or because the service ends."""


class Known:
    """In the place of an index: who of that index each vector is most like."""

    def __init__(self, index):
        self.index, self.found = index, {}

    def add(self, entries, vectors):
        for entry, hits in zip(entries, self.index.query(vectors, 1), strict=True):
            if hits:
                self.found[Path(entry['path']).name] = hits[0][0], hits[0][1].name


def rows(film, known, job):
    """Tracks as the page shows them, the most alike first."""
    found, least = [], job['threshold']
    for seen in film.tracks.values():
        if not seen.shot:
            continue
        score, name, shot = seen.score, job['who'], seen.shot
        if film.wanted is None:
            shots = [Path(view['shot']).name for view in seen.views]
            looks = [(*known.found[one], one) for one in shots if one in known.found]
            score, name, shot = max(looks, default=(None, None, seen.shot))
        hit = score is not None and (film.wanted is None if least is None else score >= least)
        spans = [[round(side, 2) for side in span] for span in seen.spans]
        row = {'track': seen.track, 'spans': spans, 'score': score, 'name': name, 'hit': hit}
        found.append({**row, 'shot': Path(shot).name})
    return sorted(found, key=lambda row: (2 if row['score'] is None else -row['score'], row['spans'][0][0]))


# ---------------------------------------------------------------------------------------------------------------------
# what is a video

STARTS = (rb'....ftyp', rb'....(moov|mdat|wide|free|skip)', rb'\x1aE\xdf\xa3', rb'RIFF....AVI ', rb'\x00\x00\x01\xba',
          rb'G.{187}G')  # fmt: skip


def is_video(start):
    """By its first bytes: MP4, QuickTime, Matroska, WebM, AVI, MPEG. FFmpeg knows more, among them lists of other files
    and addresses, which it would open."""
    return any(re.match(kind, start, re.S) for kind in STARTS)
