"""A video that is always there: the people of the toy data set walk through its places, and the truth is known.

    python -c "from reid.walks import write; write('walks.avi', truth='walks.txt')"

It asks what tracking is about: people cross, walk behind a car, a hedge, a column and each other, leave and come back
after a while, and are seen by several cameras. Everybody walks on a flat ground, in metres: x to the right of the
camera, z away from it. Whoever is farther away is smaller and drawn first. The same arguments give the same video.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter

from reid import mot, scenes
from reid.figures import LIT, Sheet
from reid.problem import Problem
from reid.wardrobe import generator, person, pose, tint

WIDTH, HEIGHT, TOP = 640, 360, 14  # a frame is the scene from row TOP on, reduced to two thirds
SCALE = WIDTH / scenes.WIDE
SKYLINE = (scenes.HORIZON - TOP) * SCALE
FOCUS = 900 * SCALE  # in pixels: a frame is 56 degrees wide, as with many cameras
EDGE = WIDTH / 2 / FOCUS  # at z metres a frame shows x from -EDGE * z to EDGE * z
BODY = 1.75  # metres, somebody of height 1
METRE = 110  # pixels of a metre in a cutout, as large as anybody comes
STRIDE, CYCLE = 0.4, 1.28  # radians, and the metres of two such steps: the feet must not slide
PHASES, TURNS = 12, 24  # cutouts of a cycle and of a full turn, each drawn when it is first needed
SEEN = 0.25  # a smaller part of somebody is not asked for: no detector would find him

# Where people walk, from z to z, and what stands there: (thing, x, z, colour).
GREEN, STONE = (66, 94, 56), (150, 146, 138)
PLACES = {
    1: (6.0, 13.0, (('hedge', -2.4, 8.2, GREEN), ('column', 2.3, 9.0, (190, 176, 150)))),
    2: (5.6, 12.0, (('car', -0.6, 7.6, (58, 76, 110)), ('column', 3.6, 9.6, (120, 46, 44)))),
    3: (6.0, 14.0, (('column', -1.8, 8.0, (60, 84, 120)), ('hedge', 3.0, 9.5, GREEN))),
    4: (5.4, 12.5, (('column', 0.4, 7.6, STONE), ('hedge', -3.4, 9.8, (72, 104, 70)))),
    5: (6.6, 14.0, (('car', 1.4, 9.0, (128, 40, 40)), ('column', -3.0, 9.6, STONE))),
    6: (5.6, 9.6, (('column', -1.6, 7.2, (92, 110, 76)), ('car', 3.2, 8.0, (186, 188, 190)))),
}
SIZES = {'column': (1.4, 2.6, 0.7), 'hedge': (3.4, 1.9, 0.6), 'car': (4.3, 1.55, 0.9)}  # wide, high, half as deep


class Seen(NamedTuple):
    """Somebody in a frame."""

    who: int  # his number in the toy data set
    box: tuple  # left, top, right, bottom of all of him, hidden or not, as far as it is in the frame
    visible: float  # the part of him that nothing hides and that is in the frame


class Cutout(NamedTuple):
    """Somebody or something on a transparent ground."""

    image: Image.Image  # RGBa: colours are multiplied with alpha; shadows are black and mostly transparent
    foot: tuple  # x, y of the spot that it stands on


# ---------------------------------------------------------------------------------------------------------------------
# 1. the video


def video(seed=0, camera=1, seconds=20.0, fps=25.0, people=range(1, 9)):
    """Camera 1..6 -> (time, frame (360, 640, 3) uint8, [Seen]), one after the other.

    people: their numbers in the toy data set of this seed. Another camera shows the same people on other ways.
    """
    if camera not in PLACES or not (0 < seconds < math.inf and 0 < fps < math.inf):
        raise Problem(f'a camera of 1..6, seconds and fps above 0 are expected; found {camera}, {seconds}, {fps}.')
    stage, walkers = Stage(seed, camera), [Walker(seed, camera, who) for who in people]
    for i in range(math.ceil(seconds * fps)):
        there = [(walker.who, *place) for walker in walkers if (place := walker.at(i / fps))]
        yield i / fps, *stage.frame(i, there)


def entries(number, seen):
    """The [Seen] of a frame, counted from 1, for mot.rows: the truth, in which those who are hidden do not count."""
    return [(number, s.who, s.box, float(s.visible >= SEEN)) for s in seen]


def write(path, truth=None, fps=25.0, **what):
    """A video as a file: .avi or .mp4, by OpenCV. truth: a file for its boxes, in the format of the MOT Challenge."""
    try:
        import cv2
    except ImportError as e:
        raise Problem('writing a video needs OpenCV: pip install "opencv-python-headless<5"') from e
    codec = {'.avi': 'MJPG', '.mp4': 'mp4v'}.get(Path(path).suffix)
    if not codec:
        raise Problem(f'{path}: a name that ends with .avi or .mp4 is expected.')
    file = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), fps, (WIDTH, HEIGHT))
    if not file.isOpened():
        raise Problem(f'{path} cannot be written by OpenCV. Is the folder there? Otherwise try .avi.')
    rows = []
    try:
        for number, (_, frame, seen) in enumerate(video(fps=fps, **what), 1):
            file.write(np.ascontiguousarray(frame[:, :, ::-1]))  # OpenCV wants blue first
            rows += entries(number, seen)
    finally:
        file.release()
    if truth:
        mot.write(truth, mot.rows(rows))


class Stage:
    """One camera: its ground, what stands on it, and how it develops a picture."""

    def __init__(self, seed, camera):
        self.seed, self.camera, self.view = seed, camera, scenes.camera(camera)
        self.rise = BODY / self.view.ratio  # metres from the ground to the lens
        box = (0, TOP, scenes.WIDE, TOP + HEIGHT / SCALE)
        self.ground = self.view.canvas.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR, box=box)
        self.things = [(z, x, None, thing(kind, colour, camera)) for kind, x, z, colour in PLACES[camera][2]]
        self.curves = curves(self.view)
        noise = np.random.default_rng(camera).standard_normal((HEIGHT + 64, WIDTH + 64, 3), np.float32)
        self.noise = (noise * self.view.noise).round().astype(np.int16)

    def frame(self, i, there):
        """Frame i with (who, x, z, heading, phase) of everybody there -> (frame, [Seen])."""
        image, owner = self.ground.copy(), np.zeros((HEIGHT, WIDTH), np.uint16)
        people = [(z, x, who, self.cutout(who, x, z, *gait)) for who, x, z, *gait in there]
        boxes = []
        for n, (z, x, who, cutout) in enumerate(sorted(self.things + people, key=lambda s: -s[0]), 1):
            metre = FOCUS / z  # in pixels
            spot = WIDTH / 2 + x * metre, SKYLINE + self.rise * metre
            boxes.append((who, *paste(image, owner, cutout, spot, metre / METRE, n)))
        left = np.bincount(owner.ravel(), minlength=len(boxes) + 1)[1:]  # pixels of each that nobody else has taken
        people = [(*b, n) for b, n in zip(boxes, left, strict=True) if b[0] and b[1]]  # with a number, and in the frame
        return self.develop(image, i), sorted(Seen(who, box, float(n / whole)) for who, box, whole, n in people)

    def cutout(self, who, x, z, heading, phase):
        """By how somebody is turned to the camera, which looks at him from an angle, and by his step."""
        turn = round((heading + math.atan2(x, z)) / (2 * math.pi) * TURNS) % TURNS
        return figure(self.seed, who, turn, None if phase is None else int(phase * PHASES) % PHASES, self.camera)

    def develop(self, image, i):
        """What the camera makes of the light, with the noise of its sensor."""
        y, x = np.random.default_rng(i).integers(0, 64, 2)
        frame = np.asarray(image.point(self.curves), np.int16) + self.noise[y : y + HEIGHT, x : x + WIDTH]
        return frame.clip(0, 255).astype(np.uint8)


def paste(image, owner, cutout, spot, scale, number):
    """Put a cutout on a spot of the frame, and its number on its pixels -> (its box or None, its pixels in all)."""
    small = cutout.image.resize([max(1, round(s * scale)) for s in cutout.image.size], Image.Resampling.BILINEAR)
    x, y = (round(s - f * scale) for s, f in zip(spot, cutout.foot, strict=True))
    image.paste(small, (x, y), small)
    solid = np.asarray(small)[:, :, 3] > 127  # shadows are not
    inside = solid[max(0, -y) : max(0, HEIGHT - y), max(0, -x) : max(0, WIDTH - x)]
    x, y = max(0, x), max(0, y)
    owner[y : y + inside.shape[0], x : x + inside.shape[1]][inside] = number
    if not inside.any():
        return None, solid.sum()
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    box = (x + columns[0], y + rows[0], x + columns[-1] + 1, y + rows[-1] + 1)
    return tuple(float(v) for v in box), solid.sum()


def curves(view):
    """What becomes of each of 256 values of red, green and blue: gain, white balance, gamma, contrast of the camera."""
    x = np.arange(256) / 255 * view.gain * np.array([[view.red], [1.0], [view.blue]])
    x = (np.minimum(x, 1) ** view.gamma - 0.5) * view.contrast + 0.5
    return (x * 255).clip(0, 255).round().astype(int).ravel().tolist()


# ---------------------------------------------------------------------------------------------------------------------
# 2. ways


class Visit(NamedTuple):
    """A way through the scene."""

    time: np.ndarray  # (T,) seconds
    path: np.ndarray  # (T, 4) x, z, heading (0: to the camera, pi / 2: to the right), metres gone
    pause: tuple  # from, to: he stands


class Walker:
    """Somebody who comes, goes his way, leaves, and comes back."""

    def __init__(self, seed, camera, who):
        self.who, self.camera, self.rng = who, camera, generator(seed, 'walk', camera, who)
        self.visits = [visit(self.rng, camera, self.rng.uniform(-8, 6))]

    def at(self, time):
        """(x, z, heading, phase of the step or None) at a time, or None while he is away."""
        while self.visits[-1].time[-1] < time:
            self.visits.append(visit(self.rng, self.camera, self.visits[-1].time[-1] + self.rng.uniform(3, 12)))
        for v in self.visits:
            if v.time[0] <= time <= v.time[-1]:
                x, z, heading, gone = (float(np.interp(time, v.time, column)) for column in v.path.T)
                return x, z, heading, None if v.pause[0] <= time <= v.pause[1] else gone / CYCLE % 1
        return None


def visit(rng, camera, start):
    """A Visit from a start in seconds: a Bezier curve from beyond an edge to the other, or back, around the things."""
    near, far, things = PLACES[camera]
    side, back = rng.choice((-1, 1)), rng.random() < 0.25
    z = [rng.uniform(near, far) for _ in range(4)]
    a, b = EDGE * z[0] + 0.9, EDGE * z[3] + 0.9
    x = [side * a, side * rng.uniform(-0.2, 0.4) * a, -side * rng.uniform(-0.2, 0.6) * b, side * b * (2 * back - 1)]
    u = np.linspace(0, 1, 160)
    curve = np.stack([(1 - u) ** 3, 3 * u * (1 - u) ** 2, 3 * u**2 * (1 - u), u**3], 1)  # (160, 4)
    x, z = curve @ x, curve @ z
    for kind, a, b, _ in things:
        wide, _, deep = SIZES[kind]
        room = (deep + 0.4) * (1 - ((x - a) / (wide / 2 + 0.6)) ** 2)  # to keep behind or before it
        if (room > 0).any():
            z = np.maximum(z, b + room) if z[room > 0].mean() > b else np.minimum(z, b - room)
    gone = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(z)))])
    heading = np.unwrap(np.arctan2(np.gradient(x), -np.gradient(z)))
    time = start + gone / rng.uniform(1.1, 1.6)
    k, pause = rng.randint(40, 120), rng.uniform(1.5, 4) * (rng.random() < 0.35)
    path = np.stack([x, z, heading, gone], 1)
    path, pauses = np.concatenate([path[: k + 1], path[k:]]), (time[k], time[k] + pause)
    return Visit(np.concatenate([time[: k + 1], time[k:] + pause]), path, pauses)


# ---------------------------------------------------------------------------------------------------------------------
# 3. cutouts


@lru_cache(maxsize=1024)  # of about 0.12 MB
def figure(seed, who, turn, step, camera):
    """Somebody turned by so many TURNS, in a step of PHASES or standing (None), as a camera sees him from above."""
    view, act = scenes.camera(camera), pose(generator(seed, 'walk', who))
    act.yaw, act.phase = 2 * math.pi * turn / TURNS, 2 * math.pi * (step or 0) / PHASES
    act.stride = 0.04 if step is None else STRIDE
    tall = 2 * METRE * BODY
    size, foot = (round(0.72 * tall), round(1.16 * tall)), (0.36 * tall, 1.08 * tall)
    sheet = Sheet(Image.new('RGBA', size), view.light)
    sheet.figure(person(seed, 'id', who), act, foot, tall, view.pitch, view.squat, view.shear)
    return finish(sheet, foot)


@lru_cache
def thing(kind, colour, camera):
    """Something that people walk behind."""
    wide, high, _ = (2 * METRE * s for s in SIZES[kind])
    sheet = Sheet(Image.new('RGBA', (round(1.3 * wide), round(1.25 * high))), scenes.camera(camera).light)
    foot = (0.65 * wide, 1.1 * high)
    THINGS[kind](sheet, generator(kind, camera), *foot, wide, high, colour)
    return finish(sheet, foot)


def column(sheet, rng, x, y, wide, high, colour):
    """For advertisements, with a roof."""
    r = wide / 2
    sheet.hull([(x, y - 0.95 * high, r * 0.9), (x, y + 0.02 * high, r * 0.9)], colour)
    for _ in range(6):
        a, b = x + rng.uniform(-0.75, 0.25) * r, y - rng.uniform(0.35, 0.88) * high
        paper = tint(rng.choice(((196, 180, 140), (150, 60, 56), (70, 96, 130), (214, 210, 200))), rng.randint(-20, 20))
        sheet.flat([(a, b), (a + 0.5 * r, b), (a + 0.5 * r, b + 0.25 * high), (a, b + 0.25 * high)], paper)
    sheet.hull([(x, y - 0.06 * high, r), (x, y + 0.02 * high, r)], tint(colour, -40))
    roof = [(x, y - high, 0.25 * r), (x, y - 0.95 * high, r * 0.85), (x, y - 0.91 * high, r * 1.08)]
    sheet.hull(roof, tint(colour, -50))


def hedge(sheet, rng, x, y, wide, high, colour):
    leaves = [(y - rng.uniform(0.0, 0.93) * high, x + rng.uniform(-0.46, 0.46) * wide) for _ in range(700)]
    for b, a in sorted(leaves):
        g, r = rng.randint(-18, 18), rng.uniform(0.04, 0.08) * high
        sheet.pen.ellipse((a - r, b - r, a + r, b + r), fill=tint(colour, g))
        sheet.shade.ellipse((a - r, b - r, a + r, b + r), fill=round(120 + 46 * (y - b) / high + g // 2))


def parked(sheet, rng, x, y, wide, high, colour):
    scenes.car(sheet.pen, x, y, wide, colour)


THINGS = {'column': column, 'hedge': hedge, 'car': parked}


def finish(sheet, foot):
    """A sheet, drawn twice as large -> Cutout: colours times light, and the shadows that fall beside them."""
    lamp = np.asarray(sheet.lamp.reduce(2).filter(ImageFilter.BoxBlur(0.7)), np.float32)[:, :, None] / LIT
    x = np.asarray(sheet.image.reduce(2).convert('RGBa'), np.float32)  # (H, W, 4)
    alpha = x[:, :, 3:]
    x = np.concatenate([np.minimum(x[:, :, :3] * lamp, alpha), alpha + (255 - alpha) * (1 - lamp).clip(0, 1)], 2)
    image = Image.frombytes('RGBa', sheet.lamp.reduce(2).size, x.round().astype(np.uint8).tobytes())
    return Cutout(image, (foot[0] / 2, foot[1] / 2))
