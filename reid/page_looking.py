"""What one search of the page (reid.page) does: its videos and pictures, one after the other -> the people in them.

upload/<n>           a video or a picture, as it was sent
wanted.jpg           who is looked for; without it, everybody is compared with the index
found/<n>/           of a video what search.py video makes (reid.watching), and video.webm, to be played on the page;
                     of a picture seen.jpg, with boxes, and shots/
"""

import shutil
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
from PIL import Image

from reid import data, filming, frames, joining, tracking, watching
from reid.filming import clock
from reid.page_pictures import SHOWN, THUMB, small
from reid.problem import Problem
from reid.sightings import Film
from reid.video import Follower, crop, described


class Stopped(Problem):
    """By somebody, or because the service ends."""


class Search:
    def __init__(self, job, place, work, pictures, stop):
        """job: as it is kept, and changed here: what is wrong with a source, and how long it is, is written into it."""
        self.job, self.place, self.work, self.pictures, self.stop = job, place, work, pictures, stop
        self.at, self.film, self.look, self.wanted, self.light = 0, None, None, None, None  # at: the source looked at
        self.seen = []  # everybody so far

    def run(self):
        """-> whether it came to its end."""
        self.wanted = self.of_wanted(self.place / 'wanted.jpg')
        for at, source in enumerate(self.job['sources']):
            self.at = at
            path, out = self.place / 'upload' / str(at), self.place / 'found' / str(at)
            shutil.rmtree(out, ignore_errors=True)  # of a time that was cut short
            try:
                look = self.picture if source['picture'] else self.video
                look(source, path, out)
            except Stopped:
                return False
            except (Problem, OSError) as problem:  # others go on
                source['problem'] = str(problem).replace(str(path), source['name'])
            self.film = None
        return True

    def of_wanted(self, path):
        if not path.is_file():
            return None
        return watching.wanted([path], self.work.embedder, self.job['threshold'])._replace(name=self.job['who'])

    def progress(self):
        """The part of it that is over, and where it is, in words; None for what nobody knows."""
        film, count, at = self.film, len(self.job['sources']), self.at
        whole = film and film.source.count and film.source.count / film.source.fps
        part = min(1, film.length / whole) if whole else None
        words = ([f'{at + 1}/{count}'] if count > 1 else []) + ([clock(film.length)] if film else [])
        return (part if count == 1 else (at + (part or 0)) / count), ' · '.join(words) or None

    def people(self):
        """Those who were seen so far, the most alike first."""
        tracks, found = [], []
        for one in self.seen:
            name = one['name'] if one['hit'] else None
            tracks.append(joining.Track(one['source'], one['spans'] or [(0, 1)], one['vector'], name))
        for places in joining.together(tracks, self.job['threshold']):
            looks = [self.seen[place] for place in places]
            best = max(looks, key=lambda one: -2 if one['score'] is None else one['score'])
            who = {name: best[name] for name in ('score', 'name', 'hit')} | {'shot': shot(best)}
            looks = [{name: one[name] for name in ('source', 'track', 'spans', 'score')} | {'shot': shot(one)}
                     for one in looks]  # fmt: skip
            found.append({**who, 'looks': looks, 'count': len(looks)})
        order = [(2 if one['score'] is None else -one['score'], i) for i, one in enumerate(found)]
        return [found[i] for _, i in sorted(order)]

    def judged(self, source, track, spans, score, name, shot, vector):
        """Somebody who was seen."""
        least = self.job['threshold']
        hit = score is not None and (self.wanted is None if least is None else score >= least)
        self.seen.append({'source': source, 'track': track, 'spans': spans, 'score': score, 'name': name, 'hit': hit,
                          'shot': shot, 'vector': vector})  # fmt: skip

    # -----------------------------------------------------------------------------------------------------------------

    def video(self, source, path, out):
        work, job, known = self.work, self.job, None if self.wanted else Known(self.work.index)
        self.look = self.look or self.pictures.loading[job['detector']](tracking.LOW)

        def detect(picture):
            if self.stop.is_set():
                raise Stopped('it was stopped')
            return self.look(picture)

        notes = []
        with frames.open(path, say=notes.append) as opened:
            frames.bounded(opened.size, work.limits.pixels)
            watching.folder(out, [path])
            self.light = frames.able(out / 'try.webm') if self.light is None else self.light
            how = {name: job[name] for name in ('every', 'renew')}
            how |= {'batchsize': work.limits.batchsize, 'looks': job['tracker'] == 'looks'}
            film = Film(opened, source['name'], 'video', self.at + 1, None, out, self.wanted, known, light=self.light)
            self.film = film
            stopped = watching.watch(
                [film],
                lambda: Follower(detect, work.embedder, **how),
                out,
                work.embedder.about,
                say=lambda sentence: None,
            )
        source['seconds'], source['note'] = film.length, ' '.join(notes).replace(str(path), source['name'])
        for seen in film.tracks.values():
            if seen.shot:
                if self.wanted:
                    score, name, best = seen.score, self.wanted.name, seen.shot
                else:
                    shots = [Path(view['shot']).name for view in seen.views]
                    looks = [(*known.found[one], one) for one in shots if one in known.found]
                    score, name, best = max(looks, default=(None, None, seen.shot))
                spans = [[round(side, 2) for side in span] for span in seen.spans]
                self.judged(self.at, seen.track, spans, score, name, Path(best).name, seen.look)
        if stopped:
            raise stopped

    def picture(self, source, path, out):
        if self.stop.is_set():
            raise Stopped('it was stopped')
        picture = data.read(path.read_bytes(), source['name'], self.work.limits.pixels)
        try:
            boxes, hindered = self.pictures.one.submit(self.pictures.boxes, picture, self.job['whole']).result()
        except (CancelledError, RuntimeError):  # the service ends
            raise Stopped('it was stopped') from None
        if not boxes and (hindered or self.job['whole'] == 'none'):
            boxes = [[0, 0, *picture.size]]
        (out / 'shots').mkdir(parents=True)
        pixels = np.array(picture)
        crops = [crop(pixels, box) for box in boxes]
        vectors, drawn, hits = described(self.work.embedder, crops, self.work.limits.batchsize), {}, {}
        for which, (box, shown, f) in enumerate(zip(boxes, crops, vectors, strict=True), 1):
            small(Image.fromarray(shown), THUMB).save(out / 'shots' / f'{which}.jpg', quality=90)
            score, name = self.compared(f)
            self.judged(self.at, which, [], score, name, f'{which}.jpg', f)
            drawn[which] = np.array(box, float)
            if self.wanted and self.seen[-1]['hit']:
                hits[which] = f'{name} {score:.2f}'
        shown = filming.Painter(quiet=self.wanted is not None, timed=False).draw(pixels, 0, drawn, hits)
        small(Image.fromarray(shown), SHOWN).save(out / 'seen.jpg', quality=88)

    def compared(self, f):
        """-> score, name."""
        if self.wanted:
            return float(f.astype(np.float64) @ self.wanted.vector), self.wanted.name
        hits = self.work.index.query(f[None], 1)[0]
        return (hits[0][0], hits[0][1].name) if hits else (None, None)


def shot(one):
    return f'{one["source"]}/{one["shot"]}'


class Known:
    """In the place of an index: who of that index each vector is most like."""

    def __init__(self, index):
        self.index, self.found = index, {}

    def add(self, entries, vectors):
        for entry, hits in zip(entries, self.index.query(vectors, 1), strict=True):
            if hits:
                self.found[Path(entry['path']).name] = hits[0][0], hits[0][1].name
