"""Who is in a video: frames to boxes, boxes to tracks, tracks to vectors. Three stages for reid.pipeline:

    follower = Follower(detect, embedder)
    for moment in pipeline.run(source, follower.stages()):
        moment.frame, moment.people, moment.rows, moment.views
    views = follower.close()                # of those who were there at the end; when the threads have ended

The detector looks at every k-th frame (`every`). Between two looks people are drawn where the tracker expects them;
what is written of these frames, the rows, waits for the next look and lies on a line between the two. A track gets its
vectors from its best shots: the first after FIRST seconds, so that somebody can be named while he is in view, and
another after every `renew` seconds in which he was seen. All that is kept meanwhile is SHOTS crops of each such span.

The quality of a shot is a product, for one may spoil it all:

    size       its height, in that of the network's input, at most 1: what is smaller was blown up
    sharpness  the deviation of its Laplacian, at the size of that input, in SHARP, at most 1: low where it moved or is
               out of focus. More is no better: the sharpest things in a street are signs and fences
    score      of the detector
    1 - part   that the box of somebody nearer covers: the network would describe him as well
    EDGE       if it touches the frame's edge, and is part of somebody only

It says which shots of one track are better, and nothing of two people. Of the best, the one is shown that looks most
like the track as a whole: what hides somebody, but is no person, shows in no other way.
"""

from collections import deque, namedtuple
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from reid import data, tracking

EVERY, RENEW = 3, 5.0  # frames; seconds
FIRST = 1.0  # seconds until a track gets its first vector
SHOTS = 5  # that a vector is the mean of
SHARP = 8.0  # steps of grey: people in focus have 8 to 15, blurred ones 4
EDGE = 0.3
TALL = 384  # pixels that a kept crop is high at most

Shot = namedtuple('Shot', 'time box quality picture')  # picture: uint8 (h, w, 3), what is in the box
# Somebody between two times, in seconds: the mean descriptor (D,) of the best shots, of unit length, and the best one.
View = namedtuple('View', 'track first last vector shot')
Row = namedtuple('Row', 'number time track box score')  # one box of a track. number: of the frame


@dataclass
class Moment:
    """A frame on its way. Each stage adds what it knows."""

    frame: tuple  # reid.frames.Frame
    boxes: np.ndarray | None = None  # (N, 4) of the detector, or None: it did not look
    scores: np.ndarray | None = None  # (N,)
    people: dict = field(default_factory=dict)  # {track: box (4,)} to draw, smoothed
    rows: list = field(default_factory=list)  # [Row] up to this look: of frames since the last one, and of those before
    # it, of people who were not sure to be any. Those of one track are in order
    spans: list = field(default_factory=list)  # [Span] that are over
    views: list = field(default_factory=list)  # [View] of these


@dataclass
class Span:
    """The best shots of a track, from when it was seen until `end` at the latest."""

    track: int
    first: float
    end: float
    last: float = 0.0
    shots: list = field(default_factory=list)  # the best first
    look: np.ndarray | None = None  # of the track up to then, (D,)


class Follower:
    """One source. detect: of reid.detecting, with the faint boxes (least=tracking.LOW). looks: they help to follow
    somebody; else motion alone does, which is quicker."""

    def __init__(self, detect, embedder, every=EVERY, renew=RENEW, batchsize=32, alike=None, looks=True):
        self.detect, self.embedder, self.every, self.renew, self.batchsize = detect, embedder, every, renew, batchsize
        self.by_looks = looks
        self.tracker = tracking.Tracker(alike=alikeness(embedder.bounds) if alike is None else alike)
        self.due = 0  # the number of the next frame to look at
        self.before = None  # the last that was looked at
        self.looks = deque(maxlen=tracking.CONFIRM)  # the times of the last looks, and all frames from the first of
        self.frames = []  # them on, (time, number): by then somebody has his number
        self.seen = {}  # where whom the last look has seen, {track: (time, box, score)}
        self.spans, self.known = {}, set()  # by track; tracks that have had one

    def stages(self):
        return [('detect', self.look), ('track', self.follow), ('embed', self.embed)]

    def look(self, frame):
        moment = Moment(frame)
        if frame.number >= self.due:
            self.due = frame.number + self.every
            moment.boxes, moment.scores = self.detect(frame.picture)
        return moment

    def follow(self, moment):
        self.frames.append((moment.frame.time, moment.frame.number))
        if moment.boxes is not None:
            self.update(moment)
        moment.people = self.tracker.predict(moment.frame.time)
        return moment

    def embed(self, moment):
        moment.views, moment.spans = self.views(moment.spans), []  # their crops are needed no more
        return moment

    def close(self):
        """The views of spans that were not over."""
        return self.views(self.over(list(self.spans)))

    # -----------------------------------------------------------------------------------------------------------------

    def update(self, moment):
        """A frame that was looked at."""
        frame, boxes, picture = moment.frame, moment.boxes, moment.frame.picture
        cut = self.before is not None and tracking.cut(picture, self.before)
        self.before = picture

        def looks(rows):
            return self.describe([crop(picture, boxes[j]) for j in rows])

        told = self.tracker.update(frame.time, boxes, moment.scores, looks if self.by_looks else None, cut)
        for track in told:
            moment.rows += self.rows(track)
            self.keep(track, picture, boxes)
        self.seen = {track.id: (track.last, track.box, track.score) for track in told}
        self.looks.append(frame.time)
        self.frames = [(time, number) for time, number in self.frames if time >= self.looks[0]]
        moment.spans = self.over([who for who, span in self.spans.items() if frame.time >= span.end])
        self.known -= {track.id for track in self.tracker.ended()}  # their numbers are never used again

    def rows(self, track):
        """Since the last look; all, of somebody who has his number by now."""
        points = [*track.early, (track.last, track.box, track.score)]  # one for each look
        if track.id in self.seen and not track.early:
            points = [self.seen[track.id], *points]
        else:
            yield Row(dict(self.frames)[points[0][0]], points[0][0], track.id, *points[0][1:])
        for (before, a, _), (after, b, score) in zip(points, points[1:], strict=False):
            for time, number in self.frames:
                if before < time <= after:
                    yield Row(number, time, track.id, a + (time - before) / (after - before) * (b - a), score)

    def over(self, tracks):
        """Take the spans of these tracks out."""
        looks = {track.id: track.look for track in self.tracker.tracks}
        spans = [self.spans.pop(who) for who in tracks]
        for span in spans:
            span.look = looks.get(span.track)
        return spans

    def keep(self, track, picture, boxes):
        """The crop of somebody, if it is among the best of this span."""
        span = self.spans.get(track.id)
        if span is None:
            end = track.last + (self.renew if track.id in self.known else min(FIRST, self.renew))
            span = self.spans[track.id] = Span(track.id, track.last, end)
            self.known.add(track.id)
        shown = crop(picture, track.box)
        worth = quality(shown, track.box, track.score, hidden(track.box, boxes), picture.shape, self.embedder.size)
        span.last = track.last
        if len(span.shots) < SHOTS or worth > span.shots[-1].quality:
            span.shots.append(Shot(track.last, track.box, worth, smaller(shown)))
            span.shots = sorted(span.shots, key=lambda shot: -shot.quality)[:SHOTS]

    def views(self, spans):
        pictures = [shot.picture for span in spans for shot in span.shots]
        if not pictures:
            return []
        parts = np.split(self.describe(pictures), np.cumsum([len(span.shots) for span in spans])[:-1])
        return [view(span, f) for span, f in zip(spans, parts, strict=True)]

    def describe(self, pictures):
        return described(self.embedder, pictures, self.batchsize)


def described(embedder, pictures, batchsize):
    """Crops -> (N, D)."""
    sized = [data.sized(Image.fromarray(picture), embedder.size) for picture in pictures]
    some = [sized[i : i + batchsize] for i in range(0, len(sized), batchsize)]
    return np.concatenate([embedder.describe(np.stack(one)) for one in some]) if some else np.empty((0, embedder.dim))


def alikeness(bounds):
    """From which cosine on a tracker takes somebody for one who was lost: where two pictures of two cameras are of the
    same person, if the network knows. One camera sees people more alike, so this errs towards a new number: a track in
    two halves is found twice, one of two people is wrong."""
    return min(bounds['same'], 0.95) if isinstance(bounds, dict) else tracking.ALIKE


def view(span, f):
    """f (N, D) of the shots -> View."""
    typical = np.clip(f @ (middle(f) if span.look is None else span.look), 0, 1)
    shots = [shot._replace(quality=shot.quality * like) for shot, like in zip(span.shots, typical, strict=True)]
    return View(span.track, span.first, span.last, middle(f), max(shots, key=lambda shot: shot.quality))


def middle(f):
    """(N, D) -> the mean (D,), of unit length."""
    f = np.mean(f, 0, dtype=np.float64)
    return (f / max(np.linalg.norm(f), 1e-12)).astype(np.float32)


# ---------------------------------------------------------------------------------------------------------------------
# shots


def crop(picture, box):
    """What a box shows, at least a pixel of it."""
    height, width = picture.shape[:2]
    left, top, right, bottom = (round(float(side)) for side in box)
    left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
    return picture[top : max(bottom, top + 1), left : max(right, left + 1)]


def smaller(picture):
    """A copy that does not keep the frame in memory, TALL at most."""
    if len(picture) <= TALL:
        return picture.copy()
    width = max(1, round(picture.shape[1] * TALL / len(picture)))
    return np.array(Image.fromarray(picture).resize((width, TALL), Image.Resampling.BILINEAR))


def quality(picture, box, score, hidden, frame, size):
    """How good a shot is: see above. frame: (height, width, ...) of the frame; size: (height, width) of the input."""
    grey = Image.fromarray(picture).convert('L').resize(size[::-1], Image.Resampling.BILINEAR)
    edge = EDGE if touches(box, frame) else 1
    sharp = min(1, sharpness(np.asarray(grey)) / SHARP)
    return min(1, len(picture) / size[0]) * sharp * score * (1 - hidden) * edge


def sharpness(grey):
    """The deviation of the Laplacian of bytes (H, W)."""
    x = grey.astype(np.float32)
    return float((x[1:-1, :-2] + x[1:-1, 2:] + x[:-2, 1:-1] + x[2:, 1:-1] - 4 * x[1:-1, 1:-1]).std())


def hidden(box, boxes):
    """The largest part of a box that one of the others covers whose feet are lower in the frame, that is nearer."""
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    part = (high - low).clip(0).prod(1) / (box[2:] - box[:2]).prod()
    return float(part[boxes[:, 3] > box[3]].max(initial=0))


def touches(box, frame):
    """Does it end where the frame does, but for a hundredth?"""
    height, width = frame[:2]
    near = 0.01 * height
    return box[0] < near or box[1] < near or box[2] > width - near or box[3] > height - near
