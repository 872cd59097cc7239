"""Who the people of the toy data set are: body, hair, clothes and bag, drawn by lot from tables (`person`, `pose`).

The tables hold what people wear, with how often. Many dark and pale things and a few strong colours: a colour alone
does not name anybody, and the combination of clothes, pattern, hair and bag does, from all four sides.
"""

import hashlib
import math
import random
from functools import lru_cache
from types import SimpleNamespace

COLOURS = {
    'black': (34, 34, 38), 'charcoal': (64, 66, 72), 'grey': (126, 128, 132), 'silver': (176, 178, 180),
    'white': (228, 228, 224), 'navy': (36, 46, 84), 'blue': (52, 94, 170), 'sky': (138, 176, 212),
    'red': (182, 42, 46), 'wine': (110, 34, 44), 'pink': (220, 148, 164), 'green': (54, 116, 70),
    'olive': (102, 104, 66), 'brown': (104, 74, 52), 'beige': (198, 178, 146), 'yellow': (220, 184, 66),
    'orange': (210, 108, 48), 'purple': (104, 70, 130), 'teal': (44, 124, 130), 'denim': (72, 96, 136),
    'faded': (126, 152, 186), 'tan': (160, 116, 74),
}  # fmt: skip

# What people wear, with how often: many dark and pale things, a few strong colours.
PALETTES = {
    'top': {'black': 15, 'charcoal': 9, 'grey': 9, 'silver': 6, 'white': 14, 'navy': 9, 'blue': 7, 'sky': 5, 'red': 6,
            'wine': 4, 'pink': 4, 'green': 4, 'olive': 4, 'brown': 3, 'beige': 4, 'yellow': 3, 'orange': 2,
            'purple': 3, 'teal': 3},
    'bottom': {'black': 18, 'charcoal': 10, 'navy': 12, 'denim': 18, 'faded': 8, 'grey': 7, 'beige': 8, 'brown': 4,
               'white': 3, 'olive': 4, 'wine': 2},
    'shoes': {'black': 30, 'white': 24, 'brown': 14, 'grey': 12, 'red': 5, 'blue': 5, 'navy': 5, 'pink': 3},
    'bag': {'black': 30, 'brown': 12, 'tan': 10, 'red': 10, 'navy': 12, 'grey': 10, 'olive': 6, 'blue': 6, 'pink': 4},
}  # fmt: skip

SKIN = ((236, 196, 168), (226, 180, 148), (208, 158, 124), (178, 126, 92), (138, 94, 66), (98, 66, 48))
HAIR = ((28, 24, 24), (44, 34, 30), (74, 50, 36), (118, 82, 52), (186, 150, 98), (150, 148, 146), (134, 66, 40))

# garment: (how often, length of the sleeve, height of the hem, looseness)
TOPS = {
    'tee': (26, 0.55, 0.500, 1.00),
    'long': (18, 1.00, 0.500, 1.00),
    'jacket': (20, 1.00, 0.480, 1.07),
    'hoodie': (14, 1.00, 0.480, 1.08),
    'coat': (8, 1.00, 0.370, 1.10),
    'vest': (5, 0.00, 0.505, 0.98),
    'dress': (9, 0.45, 0.310, 1.00),
}
BOTTOMS = {'trousers': 44, 'slim': 18, 'wide': 10, 'shorts': 16, 'skirt': 12}
PATTERNS = {'plain': 46, 'bars': 12, 'pin': 6, 'dots': 6, 'checks': 9, 'halves': 10, 'chest': 11}
HAIRCUTS = {'short': 40, 'long': 22, 'bun': 9, 'tail': 9, 'bald': 6, 'cap': 14}
BAGS = {'none': 42, 'backpack': 26, 'shoulder': 17, 'handbag': 15}
UNIFORMED, OUTFITS = 0.20, 12  # the part of people who wear one of so many outfits, as others do


def generator(*key):
    """The random numbers that belong to a key of ints and strings: the same on every machine and in every process."""
    return random.Random(int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), 'big'))


def pick(rng, table):
    """One name out of {name: weight} or {name: (weight, ...)}."""
    weights = [w[0] if isinstance(w, tuple) else w for w in table.values()]
    return rng.choices(list(table), weights)[0]


def tint(colour, by):
    """A colour made lighter (by > 0) or darker (by < 0), bounded."""
    return tuple(max(8, min(247, int(c + by))) for c in colour)


def outfit(rng):
    """Clothes: garments, colours, a pattern."""

    def colour(palette):
        return tuple(max(8, min(247, c + rng.randint(-9, 9))) for c in COLOURS[pick(rng, PALETTES[palette])])

    p = SimpleNamespace()
    p.top, p.bottom = pick(rng, TOPS), pick(rng, BOTTOMS)
    p.colour, p.second, p.shirt = colour('top'), colour('top'), colour('top')
    while sum(abs(a - b) for a, b in zip(p.colour, p.second, strict=True)) < 110:  # a pattern must be seen
        p.second = colour('top')
    p.pattern, p.pitch = pick(rng, PATTERNS), rng.choice((0.028, 0.040, 0.056))
    p.logo = rng.choice(('none', 'none', 'small', 'large', 'back')) if p.pattern == 'plain' else 'none'
    p.trousers, p.stripe = colour('bottom'), rng.random() < 0.12
    p.shoes, p.boots = colour('shoes'), rng.random() < 0.12
    p.tights = rng.random() < 0.3
    p.leather, p.cap = colour('bag'), colour('bag')
    return p


@lru_cache(maxsize=4096)
def person(seed, *who):
    """The fixed record of an identity: body, hair, clothes, bag. Some share an outfit, as a class or a crew does."""
    rng = generator('person', seed, *who)
    p = outfit(rng)
    if rng.random() < UNIFORMED:
        shared = outfit(generator('outfit', seed, rng.randrange(OUTFITS)))
        for part in ('top', 'bottom', 'colour', 'second', 'shirt', 'pattern', 'pitch', 'logo', 'trousers', 'stripe'):
            setattr(p, part, getattr(shared, part))
    p.height, p.girth = rng.uniform(0.92, 1.03), rng.choice((0.92, 0.97, 1.0, 1.04, 1.1, 1.18))
    skirts = p.top == 'dress' or p.bottom == 'skirt'
    p.curve = rng.uniform(-0.1 if skirts else -1, 1)  # broad shoulders (-1) to broad hips (1)
    p.skin, p.hair = rng.choices(SKIN, (5, 6, 6, 4, 3, 2))[0], rng.choices(HAIR, (9, 7, 5, 3, 3, 2, 1))[0]
    p.cut, p.socks = pick(rng, HAIRCUTS), rng.choice((p.skin, (224, 224, 222), (40, 40, 44)))
    p.bag, p.side = pick(rng, BAGS), rng.choice((-1, 1))
    p.shoulder = (0.119 - 0.010 * p.curve) * (0.5 + 0.5 * p.girth)
    p.waist, p.hip = (0.088 - 0.010 * p.curve) * p.girth, (0.092 + 0.009 * p.curve) * p.girth
    return p


def pose(rng):
    """What somebody does in one picture: heading, step, arms."""
    heading = rng.choice((0, 90, 180, 270)) + rng.gauss(0, 16)
    walks = rng.random() < 0.8
    return SimpleNamespace(
        yaw=math.radians(heading),
        phase=rng.uniform(0, 2 * math.pi),
        stride=rng.uniform(0.3, 0.48) if walks else rng.uniform(0, 0.1),
        splay=rng.uniform(0.07, 0.2),
        bend=rng.uniform(0.15, 0.5),
        hands=[rng.choices(('swing', 'phone', 'ear', 'pocket'), (82, 7, 3, 8))[0] for _ in 'lr'],
        lean=rng.uniform(-0.01, 0.03),
    )
