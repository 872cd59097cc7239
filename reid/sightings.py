"""What is kept of a video that is watched, as it comes: who was there when, and the files that show it.

Nothing in memory grows with the length of a video but some numbers for each track and each of its vectors.
"""

import hashlib
import io
from collections import namedtuple
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np
from PIL import Image
from tqdm import tqdm

from reid import filming, frames, pipeline
from reid.files import replacing

GAP = 2.0  # seconds out of sight, within which it is still one moment

# Who is looked for. vector (D,); threshold: the score from which on it is him, or None: nobody knows.
Wanted = namedtuple('Wanted', 'name picture vector threshold')


@dataclass
class Seen:
    """A track of one source."""

    track: int
    spans: list = field(default_factory=list)  # [[from, to]] in seconds of the source
    views: list = field(default_factory=list)  # what tracks.json says of them
    score: float | None = None  # the best of its views: one good look is enough
    shot: str | None = None  # the picture of that view, or else of the one with the best shot
    quality: float = 0.0  # of it
    look: np.ndarray | None = None  # the sum of the vectors of all views
    person: int | None = None  # the same number in all tracks of one person, once they have been joined

    def at(self, first, last):
        """He was seen then, later than or next to all that is known."""
        if self.spans and first - self.spans[-1][1] <= GAP:
            self.spans[-1] = [min(first, self.spans[-1][0]), max(last, self.spans[-1][1])]
        else:
            self.spans.append([first, last])

    @property
    def first(self):
        return self.spans[0][0]

    @property
    def last(self):
        return self.spans[-1][1]


class Film:
    """One source, and what is kept of it. start: seconds since 1970 when it begins, if that is known. light: write a
    small film for a browser as well."""

    def __init__(
        self, source, name, stem, camera, start, out, wanted=None, index=None, person=None, video=True, light=False
    ):
        self.source, self.name, self.stem, self.camera, self.start, self.out = source, name, stem, camera, start, out
        self.wanted, self.index, self.person, self.video, self.light = wanted, index, person, video, light
        self.tracks, self.count, self.write_frame, self.mot, self.stack = {}, 0, None, None, None
        self.length, self.painter = 0.0, filming.Painter(quiet=wanted is not None)

    def watch(self, follower, drop=False):
        """-> pipeline.Report. Whatever ends it before its time, what is there by then is made whole."""
        report, stopped = pipeline.Report(), None
        stages = [*follower.stages(), ('write', self.write)]
        (self.out / f'{self.stem}.mp4').unlink(missing_ok=True)  # of an earlier run
        with ExitStack() as self.stack:
            self.mot = self.stack.enter_context((self.out / 'tracks' / f'{self.stem}.txt').open('w', newline='\n'))
            try:
                with tqdm(total=self.source.count, unit='frame', desc=self.name, disable=None) as bar:
                    for _ in pipeline.run(self.source, stages, drop=drop, report=report):
                        bar.update()
            except BaseException as error:  # Ctrl-C as well
                stopped = error
            self.take(follower.close())
        if stopped:
            raise stopped
        return report

    def write(self, moment):
        """The last stage."""
        self.length = moment.frame.time
        for number, time, who, (left, top, right, bottom), score in moment.rows:
            self.mot.write(
                f'{number + 1},{who},{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f},{score:.4g},-1,-1,-1\n'
            )
            self.tracks.setdefault(who, Seen(who)).at(time, time)
        if self.start is None and moment.frame.clock is not None:
            self.start = moment.frame.clock - moment.frame.time
        self.take(moment.views)
        if self.video:
            self.film(moment)

    def film(self, moment):
        """Of a source that drops frames, or is slower than it says, a frame takes the place of those before it: the
        video lasts as long as what it shows."""
        frame, source = moment.frame, self.source
        if self.write_frame is None:
            path = self.out / f'{self.stem}.mp4'
            self.write_frame = self.stack.enter_context(frames.writer(path, source.fps, source.size))
            if self.light:
                path = path.with_suffix('.webm')
                self.write_light = self.stack.enter_context(frames.browsable(path, source.fps, source.size))
        place = round(frame.time * source.fps) if source.live else frame.number
        if place >= self.count:
            hits = {who: f'{self.wanted.name} {self.tracks[who].score:.2f}' for who in moment.people if self.hit(who)}
            drawn = self.painter.draw(frame.picture, frame.time, moment.people, hits)
            for _ in range(place + 1 - self.count):
                self.write_frame(drawn)
            self.count = place + 1
            if self.light:
                self.write_light(drawn, frame.time)

    def take(self, views):
        """Vectors: compared with that of the one who is wanted, and put into the index."""
        entries = []
        for view in views:
            shot, seen = self.save(view), self.tracks.setdefault(view.track, Seen(view.track))
            if not seen.spans:
                seen.at(view.first, view.last)
            score = None if self.wanted is None else float(view.vector.astype(np.float64) @ self.wanted.vector)
            better = view.shot.quality > seen.quality if score is None else seen.score is None or score > seen.score
            if better:
                seen.score, seen.shot, seen.quality = score, shot, view.shot.quality
            seen.look = view.vector if seen.look is None else seen.look + view.vector
            box = [round(float(side), 1) for side in view.shot.box]
            seen.views.append({'from': round(view.first, 3), 'to': round(view.last, 3), 'score': score, 'shot': shot,
                               'time': round(view.shot.time, 3), 'box': box})  # fmt: skip
            entries.append({
                'name': self.person or f'track {view.track} of {self.name}',
                'camera': self.camera,
                'time': None if self.start is None else self.start + view.shot.time,
                'path': str((self.out / shot).resolve()),
            })  # fmt: skip
        if entries and self.index is not None:
            self.index.add(entries, np.stack([view.vector for view in views]))

    def save(self, view):
        """The best shot as a file -> its path in the folder."""
        content = io.BytesIO()
        Image.fromarray(view.shot.picture).save(content, 'JPEG', quality=92)
        digest = hashlib.sha256(content.getvalue()).hexdigest()[:8]
        when = filming.clock(view.shot.time).replace(':', '-')
        path = f'shots/{self.stem}_{view.track}_{when}_{digest}.jpg'
        with replacing(self.out / path) as temporary:
            temporary.write_bytes(content.getvalue())
        return path

    def hit(self, who):
        """Is this track the one who is wanted?"""
        seen, threshold = self.tracks.get(who), self.wanted and self.wanted.threshold
        return threshold is not None and seen is not None and seen.score is not None and seen.score >= threshold
