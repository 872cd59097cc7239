"""Videos and pictures that are searched for the page (reid.page): one search after the other, in a thread.

    videos/<id>/job.json    what is to be done, how far it is, and, when it is over, who was seen
    videos/<id>/upload/     what was sent, until it is over
    videos/<id>/found/      what reid.page_looking makes of it

All that is known of a job is in its folder. One that was under way when the service ended begins anew when it starts.
"""

import json
import logging
import re
import shutil
import threading
import time
from contextlib import suppress

from reid.files import replacing
from reid.page_looking import Search
from reid.page_pictures import ID
from reid.problem import Problem
from reid.service_door import Refused

WAITING, RUNNING, DONE, CANCELLED, FAILED = 'waiting', 'running', 'done', 'cancelled', 'failed'
MOST = 30  # jobs that are kept, with what they have found
AGAIN = 60  # seconds, after which the thread looks whether something waits, though nobody has told it
OVER = (DONE, CANCELLED, FAILED)


class Jobs:
    def __init__(self, folder, work, pictures):
        self.folder, self.work, self.pictures = folder / 'videos', work, pictures
        self.changed, self.closed = threading.Condition(), False
        self.now, self.search, self.stop = None, None, threading.Event()  # the one that is done, and how to end it
        self.begun = set()  # ids: what could not be written down at its end is not done again and again
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in self.folder.glob('*.part'):  # of an upload that did not come to its end
            shutil.rmtree(place, ignore_errors=True)
        for place in self.folder.iterdir():  # of an earlier version: nobody could see or delete it
            if re.fullmatch(ID, place.name) and self.read(place.name) is None:
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
        found = map(self.read, (place.name for place in sorted(self.folder.iterdir(), reverse=True)))
        return [job for job in found if job is not None]

    def one(self, id):
        job = self.read(id)
        if job is None:
            raise Refused(404, 'this search in a video is not here any more')
        return job

    def read(self, id):
        """Its job.json, or None if there is none, or one of an earlier version."""
        with suppress(OSError, ValueError):
            if re.fullmatch(ID, id):
                job = json.loads((self.folder / id / 'job.json').read_text(encoding='utf-8'))
                return job if 'took' in job else None
        return None

    def keep(self, job):
        with replacing(self.folder / job['id'] / 'job.json') as temporary:
            temporary.write_text(json.dumps(job), encoding='utf-8')

    def progress(self, id):
        """Of the job that is done: see Search.progress."""
        search = self.search
        return search.progress() if self.now == id and search is not None else (None, None)

    def room(self):
        if len(self.all()) >= MOST:
            raise Refused(429, f'{MOST} searches in videos are kept: remove one of them first')

    def add(self, job):
        """Its folder is there, as <id>.part, with what was sent."""
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
            elif job['state'] not in OVER:  # or it says that it is under way, for its end could not be written down
                shutil.rmtree(self.folder / id / 'upload', ignore_errors=True)
                self.keep({**job, 'state': CANCELLED, 'rows': []})

    def begin(self, id, starts):
        """starts: {place of a video: when it begins}. Of what is under way, it is known from the beginning or later."""
        with self.changed:
            job = self.one(id)
            if job['state'] not in OVER:
                raise Refused(409, 'this search is still under way')
            for at, source in enumerate(job['sources']):
                if at in starts and not source['picture']:
                    source['start'] = starts[at]
            self.keep(job)

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
            search, state, problem, rows, began = self.search, FAILED, None, [], time.monotonic()
            try:
                job['entries'] = self.work.index.stats()['entries']
                state = DONE if search.run() else CANCELLED
                rows, faults = search.people(), [source['problem'] for source in job['sources']]
                if state == DONE and all(faults):
                    state, problem = FAILED, faults[0] if len(faults) == 1 else None
            except Problem as error:
                problem = str(error)
            except Exception:  # a bug: the next job is none the worse for it
                logging.getLogger(__name__).exception('a search in a video')
                problem = 'something went wrong in the service, and its log says what'
            job['took'] = round(time.monotonic() - began)
            self.end(job, state, problem, rows)

    def next(self):
        def waiting():
            with suppress(OSError):  # as where no more files can be opened: another one is asked for soon
                jobs = reversed(self.all())
                return next((job for job in jobs if job['state'] == WAITING and job['id'] not in self.begun), None)

        with self.changed:
            while not self.closed and (job := waiting()) is None:
                self.changed.wait(AGAIN)
            if self.closed:
                return None
            self.now = job['id']
            self.begun.add(self.now)
            self.search = Search(job, self.folder / self.now, self.work, self.pictures, self.stop)
            self.stop.clear()
            with suppress(OSError):  # which is of use to who looks at it, and may be missed where the disk is full
                self.keep({**job, 'state': RUNNING})
            return job

    def end(self, job, state, problem, rows):
        with self.changed:
            if not (self.closed and state == CANCELLED):  # else it begins anew, with the service
                shutil.rmtree(self.folder / job['id'] / 'upload', ignore_errors=True)  # first, as the disk may be full
                with suppress(OSError):
                    self.keep({**job, 'state': state, 'problem': problem, 'rows': rows})
            self.now = self.search = None
            self.changed.notify_all()


# ---------------------------------------------------------------------------------------------------------------------
# what is a video

STARTS = (rb'....ftyp', rb'....(moov|mdat|wide|free|skip)', rb'\x1aE\xdf\xa3', rb'RIFF....AVI ', rb'\x00\x00\x01\xba',
          rb'G.{187}G')  # fmt: skip


def is_video(file):
    """By its first bytes: MP4, QuickTime, Matroska, WebM, AVI, MPEG. FFmpeg knows more, among them lists of other files
    and addresses, which it would open. The file is left at its beginning."""
    file.seek(0)
    start = file.read(512)
    file.seek(0)
    return any(re.match(kind, start, re.S) for kind in STARTS)
