"""Places for the toy data set: six cameras, what each of them looks at, and things that stand in front of people.

A scene is drawn once, on a canvas much larger than a picture; every picture cuts a piece out of it at random, so that
the background tells the camera and nothing of the person.
"""

import random
from functools import lru_cache
from types import SimpleNamespace

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

WIDE, HIGH, HORIZON = 960, 560, 190

# What a camera does: light (gain, gamma, contrast), white balance (red, blue: no more than what cameras do), the side
# the light comes from, its angle (pitch; squat: legs look short from above; shear), blur, noise, JPEG quality, and the
# height of people against the depth of the ground.
COLUMNS = ('scene', 'gain', 'gamma', 'contrast', 'red', 'blue', 'light', 'pitch', 'squat', 'shear', 'blur', 'noise',
           'quality', 'ratio')  # fmt: skip
CAMERAS = {
    1: (    'lawn', 1.08, 0.95, 1.00, 1.02, 0.96,  0.6, 0.12, 0.03,  0.00, 0.35, 3.0, 90, 0.94),
    2: (  'bricks', 0.92, 1.10, 0.94, 1.05, 0.93, -0.6, 0.16, 0.06,  0.02, 0.55, 4.5, 86, 0.90),
    3: (   'plaza', 1.10, 0.95, 0.92, 0.98, 1.03,  0.2, 0.22, 0.10, -0.03, 0.45, 3.5, 88, 0.80),
    4: ('corridor', 0.84, 1.12, 0.96, 1.06, 0.90,  0.0, 0.18, 0.08,  0.01, 0.60, 6.0, 84, 0.88),
    5: (    'cars', 1.00, 1.00, 1.08, 0.97, 1.06, -0.7, 0.26, 0.12,  0.03, 0.40, 3.5, 90, 0.76),
    6: (  'street', 0.78, 1.05, 0.86, 0.95, 1.07,  0.4, 0.14, 0.04, -0.02, 0.80, 5.0, 85, 0.92),
}  # fmt: skip


# 1. scenes


def rough(image, rng, fine, coarse):
    """Add grain and large soft patches, so that no wall and no floor is one flat colour."""
    grain = rng.normal(0, fine, (HIGH, WIDE, 1))
    small = rng.normal(0, coarse, (HIGH // 40, WIDE // 40)).astype('float32')
    patches = np.asarray(Image.fromarray(small).resize((WIDE, HIGH), Image.Resampling.BICUBIC))[:, :, None]
    return Image.fromarray((np.asarray(image) + grain + patches).clip(0, 255).round().astype('uint8'))


def rays(pen, colour, step, width=2):
    """Lines on the ground that run to the vanishing point."""
    for x in range(-2 * WIDE, 3 * WIDE, step):
        pen.line([(WIDE / 2, HORIZON), (x, HIGH)], fill=colour, width=width)


def tiers(pen, colour, n, width=2):
    """Lines across the ground, closer together the farther away they are."""
    for i in range(1, n):
        y = HORIZON + (HIGH - HORIZON) / (1 + 0.28 * i)
        pen.line([(0, y), (WIDE, y)], fill=colour, width=width)


def tree(pen, dice, x, y, size):
    pen.rectangle((x - size * 0.06, y - size * 0.6, x + size * 0.06, y), fill=(84, 68, 54))
    for _ in range(14):
        g = dice.randint(0, 40)
        cx, cy, r = x + dice.uniform(-0.3, 0.3) * size, y - dice.uniform(0.5, 1.1) * size, dice.uniform(0.1, 0.2) * size
        pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=(52 + g, 84 + g, 44 + g // 2))


def car(pen, x, y, size, colour):
    pen.ellipse((x - size * 0.52, y - size * 0.05, x + size * 0.52, y + size * 0.06), fill=(58, 58, 60))
    body = (
        (-0.5, 0),
        (-0.5, -0.17),
        (-0.34, -0.21),
        (-0.2, -0.36),
        (0.17, -0.36),
        (0.34, -0.21),
        (0.5, -0.16),
        (0.5, 0),
    )
    pen.polygon([(x + a * size, y + b * size) for a, b in body], fill=colour)
    glass = ((-0.27, -0.21), (-0.17, -0.33), (0.14, -0.33), (0.26, -0.21))
    pen.polygon([(x + a * size, y + b * size) for a, b in glass], fill=(58, 68, 78))
    for a in (-0.3, 0.3):
        r = 0.085 * size
        pen.ellipse((x + a * size - r, y - r, x + a * size + r, y + r), fill=(30, 30, 32))


def lawn(pen, dice):
    pen.rectangle((0, 0, WIDE, HORIZON), fill=(186, 200, 210))
    pen.rectangle((0, HORIZON - 70, WIDE, HORIZON + 6), fill=(74, 100, 62))
    pen.rectangle((0, HORIZON, WIDE, HIGH), fill=(118, 146, 84))
    pen.polygon([(420, HORIZON), (520, HORIZON), (860, HIGH), (60, HIGH)], fill=(186, 176, 156))
    for _ in range(2600):
        x, y, g = dice.uniform(0, WIDE), dice.uniform(HORIZON, HIGH), dice.randint(-16, 16)
        if abs(x - 465) > (y - HORIZON) * 1.1 + 50:
            pen.line([(x, y), (x + 2, y - 5)], fill=(112 + g, 142 + g, 78 + g), width=2)
    for x in (40, 190, 330, 590, 730, 900):
        tree(pen, dice, x, HORIZON + dice.randint(8, 40), dice.randint(170, 240))


def bricks(pen, dice):
    pen.rectangle((0, 0, WIDE, HIGH), fill=(156, 154, 148))
    rays(pen, (138, 136, 130), 130)
    tiers(pen, (138, 136, 130), 9)
    pen.rectangle((0, 0, WIDE, HORIZON + 104), fill=(150, 132, 120))
    for j, y in enumerate(range(-4, HORIZON + 96, 14)):
        for x in range(-40 + 17 * (j % 2), WIDE, 34):
            g = dice.randint(-14, 14)
            pen.rectangle((x, y, x + 31, y + 11), fill=(148 + g, 92 + g, 74 + g))
    pen.rectangle((0, HORIZON + 104, WIDE, HORIZON + 112), fill=(96, 92, 88))
    for x in (130, 470, 800):
        pen.rectangle((x, 40, x + 110, 190), fill=(204, 200, 190))
        pen.rectangle((x + 9, 49, x + 101, 181), fill=(66, 76, 84))
        pen.line([(x + 55, 49), (x + 55, 181)], fill=(204, 200, 190), width=6)


def plaza(pen, dice):
    pen.rectangle((0, 0, WIDE, HORIZON + 60), fill=(196, 190, 180))
    pen.rectangle((0, HORIZON, WIDE, HIGH), fill=(172, 164, 154))
    rays(pen, (148, 142, 134), 96, 3)
    tiers(pen, (148, 142, 134), 14, 3)
    for i, x in enumerate(range(10, WIDE, 190)):
        pen.rectangle((x, 20, x + 165, HORIZON + 62), fill=(70, 82, 88))
        pen.rectangle((x + 8, 56, x + 157, HORIZON + 54), fill=(126, 140, 146))
        pen.rectangle((x, 20, x + 165, 50), fill=((142, 60, 54), (60, 84, 120), (92, 110, 76), (172, 142, 78))[i % 4])
        for _ in range(5):
            a, b, g = x + dice.randint(14, 120), dice.randint(90, 190), dice.randint(90, 190)
            pen.rectangle((a, b, a + 26, b + 50), fill=(g, g - 12, g - 26))


def corridor(pen, dice):
    pen.rectangle((0, 0, WIDE, HORIZON + 90), fill=(206, 202, 190))
    pen.rectangle((0, HORIZON - 6, WIDE, HORIZON + 90), fill=(178, 172, 158))
    pen.rectangle((0, HORIZON + 80, WIDE, HIGH), fill=(160, 158, 154))
    for x in range(30, WIDE, 240):
        pen.rectangle((x, 10, x + 120, HORIZON + 84), fill=(132, 102, 76))
        pen.rectangle((x + 8, 20, x + 112, HORIZON + 84), fill=(150, 118, 88))
        pen.ellipse((x + 96, 150, x + 106, 160), fill=(210, 204, 180))
        pen.rectangle(
            (x + 150, 70, x + 210, 150), fill=dice.choice(((170, 180, 186), (188, 150, 120), (140, 160, 140)))
        )
        pen.polygon([(x, HORIZON + 90), (x + 120, HORIZON + 90), (x + 130, HIGH), (x - 10, HIGH)], fill=(150, 142, 132))
    for y in (300, 345, 410, 500):
        pen.line([(0, y), (WIDE, y)], fill=(148, 146, 142), width=2)


def cars(pen, dice):
    pen.rectangle((0, 0, WIDE, HORIZON), fill=(168, 172, 174))
    pen.rectangle((0, 60, WIDE, 100), fill=(128, 130, 130))
    pen.rectangle((0, HORIZON - 20, WIDE, HIGH), fill=(112, 112, 114))
    paint = ((190, 192, 194), (50, 52, 56), (128, 40, 40), (52, 72, 112), (214, 212, 206), (120, 122, 126))
    for x in range(60, WIDE, 165):
        car(pen, x, HORIZON + 56, 180, dice.choice(paint))
    for x in range(-200, WIDE + 200, 150):
        pen.line([(x + 60, HORIZON + 62), (x, HORIZON + 190)], fill=(196, 194, 186), width=5)
    pen.line([(0, HORIZON + 196), (WIDE, HORIZON + 196)], fill=(196, 194, 186), width=5)
    for _ in range(60):
        x, y, r = dice.uniform(0, WIDE), dice.uniform(HORIZON + 60, HIGH), dice.uniform(4, 22)
        pen.ellipse((x - r, y - r * 0.3, x + r, y + r * 0.3), fill=(102, 102, 104))


def street(pen, dice):
    pen.rectangle((0, 0, WIDE, HORIZON), fill=(176, 180, 188))
    x = 0
    while x < WIDE:
        w, tone = (
            dice.randint(110, 190),
            dice.choice(((170, 158, 142), (140, 128, 120), (188, 180, 168), (126, 132, 138))),
        )
        pen.rectangle((x, 0, x + w, HORIZON + 30), fill=tone)
        for a in range(x + 14, x + w - 26, 36):
            for b in range(10, HORIZON - 20, 54):
                pen.rectangle((a, b, a + 20, b + 34), fill=(84, 94, 104))
        x += w
    pen.rectangle((0, HORIZON + 30, WIDE, HORIZON + 120), fill=(104, 106, 108))
    for x in range(0, WIDE, 120):
        pen.rectangle((x, HORIZON + 72, x + 60, HORIZON + 77), fill=(190, 190, 184))
    pen.rectangle((0, HORIZON + 120, WIDE, HORIZON + 134), fill=(172, 170, 164))
    pen.rectangle((0, HORIZON + 134, WIDE, HIGH), fill=(146, 142, 138))
    for x in range(-600, WIDE + 600, 90):
        pen.line([(WIDE / 2 + (x - WIDE / 2) * 0.72, HORIZON + 134), (x, HIGH)], fill=(130, 126, 122), width=2)
    car(pen, 250, HORIZON + 62, 170, (60, 66, 80))
    car(pen, 700, HORIZON + 108, 210, (196, 194, 190))
    for x in (90, 420, 610, 880):
        tree(pen, dice, x, HORIZON + 132, dice.randint(230, 280))


SCENES = {'lawn': lawn, 'bricks': bricks, 'plaza': plaza, 'corridor': corridor, 'cars': cars, 'street': street}


@lru_cache(maxsize=6)
def camera(number):
    """Camera 1..6: its row of the table, and its scene as a large picture."""
    view = SimpleNamespace(**dict(zip(COLUMNS, CAMERAS[number], strict=True)))
    image = Image.new('RGB', (WIDE, HIGH))
    SCENES[view.scene](ImageDraw.Draw(image), random.Random(number))
    view.canvas = rough(image, np.random.default_rng(number), 4, 7).filter(ImageFilter.GaussianBlur(1.2))
    return view


def background(view, rng, size, tall):
    """A piece of the scene as a picture of `size`, with the ground under somebody `tall` of its height.

    Somebody whose feet are at y in the scene is (y - horizon) * ratio high there: near people are tall.
    """
    fit = (HIGH - HORIZON) * view.ratio
    high = min(rng.uniform(0.36, 0.98) * fit / tall, HIGH - 2.0)
    feet = HORIZON + high * tall / view.ratio
    top = min(max(feet - high * (0.5 + tall / 2), 0), HIGH - high)
    wide = high * size[0] / size[1]
    left = rng.uniform(0, WIDE - wide)
    box = tuple(round(v, 2) for v in (left, top, left + wide, top + high))
    return view.canvas.resize(size, Image.Resampling.BILINEAR, box=box)


# 2. things in front of people, drawn on a Sheet


def pole(sheet, rng, w, h):
    x, r = rng.uniform(0.05, 0.95) * w, rng.uniform(0.025, 0.05) * w
    g = rng.randint(70, 170)
    sheet.hull([(x, 0, r), (x, h, r)], (g, g, g + 4))


def bush(sheet, rng, w, h):
    side, top = rng.choice((0.08, 0.92)) * w, rng.uniform(0.66, 0.84) * h
    leaves = sorted((rng.uniform(top, h * 1.02), side + rng.gauss(0, 0.2) * w) for _ in range(60))
    for y, x in leaves:
        g, r = rng.randint(-20, 20), rng.uniform(0.03, 0.065) * w
        sheet.pen.ellipse((x - r, y - r, x + r, y + r), fill=(66 + g, 94 + g, 56 + g))
        sheet.shade.ellipse((x - r, y - r, x + r, y + r), fill=150 + g // 2)


def bonnet(sheet, rng, w, h):
    y, colour = rng.uniform(0.78, 0.92) * h, rng.choice(((186, 188, 190), (52, 54, 60), (122, 40, 42), (60, 80, 118)))
    x = w * rng.choice((0.0, 0.2, 0.8, 1.0))
    rows = [(x, y, w * 0.42), (x, y + h * 0.012, w * 0.53), (x, y + h * 0.05, w * 0.6), (x, h, w * 0.62)]
    sheet.hull(rows, colour)
    sheet.pen.line([(x - w * 0.5, y + h * 0.05), (x + w * 0.5, y + h * 0.05)], fill=(90, 92, 96), width=2)


def case(sheet, rng, w, h):
    x, y, r = rng.choice((0.08, 0.92)) * w, rng.uniform(0.62, 0.74) * h, rng.uniform(0.12, 0.18) * w
    colour = rng.choice(((40, 42, 48), (120, 46, 44), (58, 76, 110), (130, 132, 134)))
    sheet.hull([(x, y, r * 0.9), (x, y + 0.02 * h, r), (x, y + 0.26 * h, r)], colour)


THINGS = {'pole': pole, 'bush': bush, 'bonnet': bonnet, 'case': case}
