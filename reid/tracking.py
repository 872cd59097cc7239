"""Following people through a video: which box of this frame is whom of the frames before.

    tracker = Tracker(alike=0.6)
    for time, boxes, scores, features in ...:
        for track in tracker.update(time, boxes, scores, features):
            print(time, track.id, track.box)

Two cues. Motion: a Kalman filter (kalman.py) says where everybody should be, and a box that overlaps with that place is
his; sure boxes first, then unsure ones, as in ByteTrack (arXiv 2110.06864): a box with a low score, where somebody is
expected, is mostly that person, half hidden. Appearance: the cosine of re-ID vectors tells people apart who cross, as
in DeepSORT (arXiv 1703.07402), and brings back those who were hidden or away longer than motion can tell.

Times are in seconds and may come irregularly: the detector runs on every k-th frame, and a live video drops some.
"""

import math
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

from reid import kalman
from reid.mot import iou
from reid.problem import Problem

# 1. boxes and places
HIGH = 0.6  # a score from here up is somebody for sure, and may begin a track (ByteTrack)
LOW = 0.1  # below it is noise
NEAR = 0.2  # a sure box and an expected place have to overlap so much: people move while the detector rests
CLOSE = 0.5  # and an unsure box, which may as well be a shadow
WIDEN = 0.5  # both are widened by the doubt of the filter, up to so many heights: the first steps are not foreseen
MARGIN = 0.5  # who overlaps by so much more than anybody else is taken unseen: a smaller one asks for fewer vectors
COAST = 2.0  # seconds that motion is trusted without a detection: past a column, not past a bus; people turn and stop
CONFIRM = 3  # detections until a track has a number: a third false alarm in the same place is rare

# 2. appearance
ALIKE = 0.6  # a cosine from here up is the same person; it depends on the model, and threshold.py measures it
MEMORY = 30.0  # seconds that somebody lost is kept in mind: the longer, the more strangers are taken for him
CROWDED = 0.3  # a box of which so much is covered by a nearer one shows somebody else as well, and is not remembered
REFRESH = 1.0  # seconds after which the picture of somebody in view is looked at again: he turns, the light changes
RENEW = 0.1  # the weight of a new picture among the old, once there are ten (DeepSORT's successors: 0.1)
RUN = 2.0  # heights a second: nobody comes back faster than he can run, 3.5 m/s
CUT = 0.08  # of the range of values, between two pictures: passers-by make up to 0.05, another place 0.13 and more


@dataclass(eq=False)  # two tracks are never the same
class Track:
    """One person, as long as he is followed."""

    box: np.ndarray  # (4,) left, top, right, bottom of the last detection
    score: float  # of that detection
    first: float  # when he was seen first, and
    last: float  # last, in seconds
    motion: np.ndarray = field(repr=False)  # (5, 4) state of the filter, at the time of the last update
    id: int | None = None  # from 1 up, never used again; None while tentative
    state: str = 'tentative'  # then confirmed, lost, confirmed again, ..., ended
    hits: int = 1  # detections
    early: list = field(default_factory=list, repr=False)  # (time, box, score) of before the number, with the number
    look: np.ndarray | None = field(default=None, repr=False)  # (D,) mean appearance, of unit length
    looks: int = 0  # pictures in it
    looked: float = -math.inf  # time of the last of them
    cut: bool = False  # the camera has changed since


class Looks:
    """The appearance of the boxes of one frame, asked for only where it is needed, and once."""

    def __init__(self, features, rows, count):
        self.features, self.rows, self.known = features, rows, {}
        if features is not None and not callable(features):
            self.check(features, count)

    def check(self, f, count):
        if np.ndim(f) != 2 or len(f) != count:
            raise Problem(
                f'features of the shape ({count}, D) are expected, a vector for each box that was asked for; found '
                f'{np.shape(f)}. Give one row per box, in the order of the boxes.'
            )

    def fetch(self, wanted):
        """Ask for what is not known yet. A vector that is no direction (zeros, NaN) tells nothing: None."""
        wanted = sorted(set(wanted) - set(self.known))
        if self.features is None or not wanted:
            return
        rows = self.rows[wanted]  # as the caller counts
        f = self.features(rows) if callable(self.features) else np.asarray(self.features)[rows]
        self.check(f, len(rows))
        for j, vector in zip(wanted, np.asarray(f, float), strict=True):
            length = np.linalg.norm(vector)
            self.known[j] = vector / length if np.isfinite(length) and length > 0 else None

    def get(self, j):
        return self.known.get(j)


class Tracker:
    """Follows people. Settings: see the constants; `confirm` is 1 for a detector that never errs."""

    def __init__(self, alike=ALIKE, memory=MEMORY, high=HIGH, low=LOW, confirm=CONFIRM):
        for name, value, least, most in (
            ('alike', alike, -1, 0.99),
            ('memory', memory, 0, math.inf),
            ('high', high, 0, math.inf),
            ('low', low, 0, high),
            ('confirm', confirm, 1, math.inf),
        ):
            if not least <= value <= most:
                raise Problem(f'{name} of a tracker must lie between {least} and {most}, not {value}.')
        self.alike, self.memory, self.high, self.low, self.confirm = alike, memory, high, low, confirm
        self.time, self.tracks, self.gone, self.count = -math.inf, [], [], 0

    # -----------------------------------------------------------------------------------------------------------------
    # 1. what the caller uses

    def update(self, time, boxes, scores, features=None, cut=False):
        """What the detector found at this time -> the people with a number that are in it, in the order of the numbers.

        boxes (N, 4): left, top, right, bottom in pixels; scores (N,). Boxes without a size or with NaN are left out.
        features: (N, D), or a function that is given positions among the boxes, (n,), and returns their vectors (n, D):
        it is asked for boxes that are new or ambiguous, and once a second for each person. cut: the picture has
        nothing to do with the last one (see `cut` below), and appearance alone says who is who.
        """
        boxes, scores, rows, count = sound(boxes, scores)
        looks = Looks(features, rows, count)
        self.clock(time)
        if cut:
            self.forget_places()
        crowd = covered(boxes)
        sure = np.flatnonzero(scores >= self.high)
        unsure = np.flatnonzero((scores >= self.low) & (scores < self.high))
        placed = [t for t in self.tracks if t.id and not t.cut and time - t.last <= COAST]
        awake = [t for t in placed if t.state == 'confirmed']
        tentative = [t for t in self.tracks if not t.id]

        pairs = self.by_place(placed, boxes, sure, NEAR, looks)  # [(track, j)], j a position in boxes
        pairs += self.by_place(unfound(awake, pairs), boxes, unsure, CLOSE)
        pairs += self.by_place(tentative, boxes, untaken(sure, pairs), NEAR)
        new = untaken(sure, pairs)
        looks.fetch([*new, *(j for t, j in pairs if not t.id)])

        self.see(time, pairs, boxes, scores, looks, crowd)
        self.miss(time, unfound(self.tracks, pairs))
        begun = [Track(boxes[j], float(scores[j]), time, time, kalman.start(boxes[[j]])[0]) for j in new]
        for track, j in zip(begun, new, strict=True):
            remember(track, looks.get(j), time)
        self.tracks += begun
        self.name(time)
        return sorted((t for t in self.tracks if t.state == 'confirmed'), key=lambda t: t.id)

    def predict(self, time, unseen=0.3):
        """Where people are at a time since the last update, smoothed, for drawing: {id: box (4,)}.

        Those who were last detected more than `unseen` seconds before that update are left out.
        """
        if not time >= self.time:
            raise Problem(f'predict looks ahead of the last update, at {self.time} s; asked for {time} s.')
        there = [t for t in self.tracks if t.id and not t.cut and self.time - t.last <= unseen]
        if not there:
            return {}
        boxes = kalman.boxes(kalman.predict(np.stack([t.motion for t in there]), time - self.time))
        return {t.id: box for t, box in zip(there, boxes, strict=True)}

    def ended(self):
        """The people with a number whose tracks have ended since this was asked last; until then they are kept."""
        gone, self.gone = self.gone, []
        return gone

    def close(self):
        """The video is over: all tracks end."""
        self.end(self.tracks)

    # -----------------------------------------------------------------------------------------------------------------
    # 2. the steps of an update

    def clock(self, time):
        """Move everybody on to this time."""
        if not (math.isfinite(time) and time > self.time):
            raise Problem(f'the time of an update must be later than that of the last, {self.time} s; found {time} s.')
        if self.tracks:
            motion = kalman.predict(np.stack([t.motion for t in self.tracks]), time - self.time)
            for track, state in zip(self.tracks, motion, strict=True):
                track.motion = state
        self.time = time

    def forget_places(self):
        """A cut: nobody is where he was, and who has no number yet is gone."""
        self.end([t for t in self.tracks if not t.id])
        for track in self.tracks:
            track.state, track.cut = 'lost', True

    def by_place(self, tracks, boxes, free, least, looks=None):
        """Pairs of tracks and free boxes that overlap by `least`, as many and as well as possible: [(track, j)].

        Appearance joins in where a pair is not far better than any other, the track was lost, or he was not looked at
        for a while. It counts (cosine - alike) / (1 - alike), whatever scale a model's cosines have: 1, as good as full
        overlap, for the same picture, below 0 for a stranger, and 0 where one of the two is not known.
        """
        if not tracks or not len(free):
            return []
        states = np.stack([t.motion for t in tracks])
        grow = np.minimum(kalman.doubt(states), WIDEN * states[:, 0, 3])
        value = widened(kalman.boxes(states), boxes[free], grow)  # (T, F)
        suits = value >= least
        if looks is not None:
            old = np.array([t.state == 'lost' or self.time - t.looked >= REFRESH for t in tracks])
            rival = rivals(np.where(suits, value, 0))
            doubtful = suits & (rival <= value + MARGIN) & (old[:, None] | (rival >= value - MARGIN))
            looks.fetch(free[doubtful.any(0)])
            cosine = self.likeness(tracks, [looks.get(j) for j in free], self.alike)
            value += np.where(doubtful, (cosine - self.alike) / (1 - self.alike), 0)
        return [(tracks[i], free[k]) for i, k in assign(np.where(suits, value, -math.inf), least)]

    def likeness(self, tracks, looks, unknown):
        """Cosines (T, F) of tracks and vectors; `unknown` where one of the two has no look."""
        cosine = np.full((len(tracks), len(looks)), unknown, float)
        t = [i for i, track in enumerate(tracks) if track.look is not None]
        f = [k for k, look in enumerate(looks) if look is not None]
        if t and f:
            cosine[np.ix_(t, f)] = np.stack([tracks[i].look for i in t]) @ np.stack([looks[k] for k in f]).T
        return cosine

    def see(self, time, pairs, boxes, scores, looks, crowd):
        """Tracks that were found again."""
        if not pairs:
            return
        rows = [j for _, j in pairs]
        motion = kalman.correct(np.stack([t.motion for t, _ in pairs]), boxes[rows])
        for (track, j), state in zip(pairs, motion, strict=True):
            track.early = [] if track.id else [*track.early, (track.last, track.box, track.score)]
            track.motion, track.box, track.score, track.last = state, boxes[j], float(scores[j]), time
            track.hits += 1
            if track.id:
                track.state = 'confirmed'
            if not crowd[j] or track.look is None:
                remember(track, looks.get(j), time)

    def miss(self, time, tracks):
        """Tracks that were not: a tentative one ends, the others wait until nothing can bring them back."""
        for track in tracks:
            track.state = 'lost'
        self.end([t for t in tracks if time - t.last > self.patience(t)])

    def patience(self, track):
        """For how long somebody unseen may come back: by his looks, or by his motion alone."""
        if not track.id:
            return 0
        return max(self.memory, COAST) if track.look is not None else COAST * (not track.cut)

    def name(self, time):
        """Give numbers: to somebody new his old one if he looks like somebody lost, or else, in time, the next."""
        fresh = [t for t in self.tracks if not t.id]
        lost = [t for t in self.tracks if t.state == 'lost']
        for old, new in self.by_looks(time, lost, fresh):
            for part in ('box', 'score', 'last', 'motion', 'early'):
                setattr(old, part, getattr(new, part))
            old.state, old.cut, old.hits = 'confirmed', False, old.hits + new.hits
            remember(old, new.look, time)
            self.tracks.remove(new)
        for track in self.tracks:
            if not track.id and track.hits >= self.confirm:
                self.count += 1
                track.id, track.state = self.count, 'confirmed'

    def by_looks(self, time, lost, fresh):
        """Pairs of lost and new tracks that look alike, where somebody could have gone: [(old, new)]."""
        if not lost or not fresh:
            return []
        value = self.likeness(lost, [t.look for t in fresh], -math.inf)  # (L, F)
        where = np.stack([(t.box[:2] + t.box[2:]) / 2 for t in fresh])
        tall = np.array([t.box[3] - t.box[1] for t in fresh])
        for i, t in enumerate(lost):
            way = np.linalg.norm(where - (t.box[:2] + t.box[2:]) / 2, axis=1)
            reach = (1 + RUN * (time - t.last)) * np.maximum(tall, t.box[3] - t.box[1])
            value[i, (way > reach) & (not t.cut)] = -math.inf
        return [(lost[i], fresh[k]) for i, k in assign(value, self.alike)]

    def end(self, tracks):
        """Numbered ones are told by `ended`; the others never were."""
        for track in tracks:
            track.state = 'ended'
        self.gone += [t for t in tracks if t.id]
        self.tracks = [t for t in self.tracks if t.state != 'ended']


# ---------------------------------------------------------------------------------------------------------------------
# 3. boxes, pairs, looks


def sound(boxes, scores):
    """What the detector gave -> the boxes (M, 4) and scores (M,) that make sense, their rows (M,), how many came."""
    boxes, scores = np.asarray(boxes, float), np.asarray(scores, float)
    if boxes.size == scores.size == 0:
        boxes, scores = np.zeros((0, 4)), np.zeros(0)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or scores.shape != boxes.shape[:1]:
        raise Problem(
            'boxes of the shape (N, 4), left, top, right, bottom, and scores of the shape (N,) are expected; found '
            f'{boxes.shape} and {scores.shape}.'
        )
    fine = np.isfinite(boxes).all(1) & np.isfinite(scores) & (boxes[:, 2:] > boxes[:, :2]).all(1)
    return boxes[fine], scores[fine], np.flatnonzero(fine), len(boxes)


def covered(boxes):
    """Is more than CROWDED of a box covered by one whose feet are lower in the picture, that is nearer? (N,)"""
    low, high = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    part = (high - low).clip(0).prod(-1) / (boxes[:, 2:] - boxes[:, :2]).prod(-1)[:, None]  # of the row's box
    return ((part > CROWDED) & (boxes[:, 3] > boxes[:, None, 3])).any(1)


def widened(places, boxes, grow):
    """Overlap (T, F) of places (T, 4) and boxes (F, 4), both grown to the left and right by grow (T,)."""
    grow = grow[:, None, None] * [-1, 0, 1, 0]  # (T, 1, 4)
    return iou(places[:, None] + grow, boxes + grow)


def assign(value, least):
    """The pairs (i, k) of values (T, F) of `least` or more, for which the sum of what is above it is largest."""
    good = value >= least
    gain = np.where(good, value - least + 1e-6, 0)  # a pair that is just good enough is better than none
    return [(i, k) for i, k in zip(*linear_sum_assignment(gain, maximize=True), strict=True) if good[i, k]]


def rivals(value):
    """For each pair of a table (T, F) the best other pair in its row or its column, 0 if there is none."""

    def others(v):
        top = np.sort(np.pad(v, ((0, 0), (0, 1))), 1)[:, -2:]
        return np.where(v == top[:, 1:], top[:, :1], top[:, 1:])

    return np.maximum(others(value), others(value.T).T)


def unfound(tracks, pairs):
    """The tracks that are in no pair."""
    found = {t for t, _ in pairs}
    return [t for t in tracks if t not in found]


def untaken(rows, pairs):
    """The positions (n,) of boxes that are in no pair."""
    return np.setdiff1d(rows, [j for _, j in pairs]).astype(int)


def remember(track, look, time):
    """Mix a look (D,) into that of a track: the mean of the first ten, then ever less of the oldest."""
    if look is None:
        return
    track.looks, track.looked = track.looks + 1, time
    if track.look is not None:
        look = track.look + max(1 / track.looks, RENEW) * (look - track.look)
    track.look = look / max(np.linalg.norm(look), 1e-12)


def cut(frame, last):
    """Has the camera changed between two frames (H, W, 3) uint8? Light that is switched on or off is no cut."""
    if np.shape(frame) != np.shape(last):
        return True
    a, b = (np.asarray(f)[::8, ::8].astype(float) / 255 for f in (frame, last))
    change = a - b
    return bool(np.abs(change - change.mean((0, 1))).mean() > CUT)
