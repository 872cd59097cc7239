"""How somebody looks to a camera: people for the toy data set, drawn on a `Sheet`.

A figure is a small skeleton in three dimensions, turned by its heading and dressed as `wardrobe.py` says. Lengths are
in units of the body height: x to the person's left, y up from the ground, z ahead. Every shape is drawn twice: its
colour on one layer and how much light falls on it on another; the two are multiplied when the picture is finished.
"""

import math

from PIL import Image, ImageDraw

from reid.wardrobe import TOPS, tint

LIT = 160  # the value of the light layer that leaves a colour as it is
TONES = ((1.0, 112), (0.82, 134), (0.6, 154), (0.36, 168))  # (part of the width, light): rim to ridge of a round body


def capsule(a, b, ra, rb):
    """The outline of a limb from a to b with round ends of radius ra and rb."""
    along = math.atan2(b[1] - a[1], b[0] - a[0])
    ends = []
    for (x, y), r, start in ((a, ra, 0.5), (b, rb, -0.5)):
        for step in range(6):
            t = along + math.pi * (start + step / 5)
            ends.append((x + r * math.cos(t), y + r * math.sin(t)))
    return ends


class Sheet:
    """The two layers, and how a length on a body becomes one in the picture."""

    def __init__(self, image, light=0.5):
        self.image, self.light = image, light  # light: from the left (-1) to the right (1)
        self.lamp = Image.new('L', image.size, LIT)
        self.pen, self.shade = ImageDraw.Draw(image), ImageDraw.Draw(self.lamp)

    # 1. shapes

    def flat(self, points, colour, light=None):
        """A thin thing, such as a strap or a print: it takes the light of what lies below unless told otherwise."""
        self.pen.polygon(points, fill=colour)
        if light:
            self.shade.polygon(points, fill=light)

    def cloth(self, points, colour, cover):
        """Fill with a colour or, where there is a cover (a picture of the pattern), with that."""
        if cover is None:
            self.pen.polygon(points, fill=colour)
            return
        mask = Image.new('L', self.image.size, 0)
        ImageDraw.Draw(mask).polygon(points, fill=255)
        self.image.paste(cover, (0, 0), mask)

    def limb(self, a, b, ra, rb, colour, cover=None, dim=0):
        """A tapered round limb between two points of the picture."""
        self.cloth(capsule(a, b, ra, rb), colour, cover)
        for part, light in TONES:
            ox = self.light * (1 - part) * 0.8
            a2, b2 = (a[0] + ox * ra, a[1]), (b[0] + ox * rb, b[1])
            self.shade.polygon(capsule(a2, b2, ra * part, rb * part), fill=light - dim)

    def hull(self, sections, colour, cover=None, dim=0):
        """A body of level sections (centre x, y, half width), from top to bottom."""
        for part, light in TONES:
            right = [(x + h * (part + self.light * (1 - part) * 0.8), y) for x, y, h in sections]
            left = [(x - h * (part - self.light * (1 - part) * 0.8), y) for x, y, h in reversed(sections)]
            if part == 1:
                self.cloth(right + left, colour, cover)
            self.shade.polygon(right + left, fill=light - dim)

    def ball(self, x, y, rx, ry, colour):
        """An ellipse with the light on one side."""
        self.pen.ellipse((x - rx, y - ry, x + rx, y + ry), fill=colour)
        for part, light in TONES:
            ox = x + self.light * (1 - part) * 0.6 * rx
            self.shade.ellipse((ox - rx * part, y - ry * part, ox + rx * part, y + ry * part), fill=light)

    # 2. a figure

    def figure(self, p, act, foot, tall, pitch=0.14, squat=0.06, shear=0.0):
        """Draw person p in the pose act; the feet stand at `foot`, `tall` pixels high for a body of height 1."""
        Figure(self, p, act, foot, tall * p.height, pitch, squat, shear).draw()


class Figure:
    """One person in one pose on one sheet."""

    def __init__(self, sheet, p, act, foot, k, pitch, squat, shear):
        self.sheet, self.p, self.act, self.foot, self.k = sheet, p, act, foot, k
        self.pitch, self.squat, self.shear = pitch, squat, shear
        self.c, self.s = math.cos(act.yaw), math.sin(act.yaw)
        self.front = self.c > 0

    def at(self, x, y, z=0.0):
        """Body to picture. A camera above the heads sees near feet lower down and legs a little short."""
        z += self.act.lean * (y - 0.5)
        across, near = x * self.c + z * self.s, z * self.c - x * self.s
        y = y + self.squat * y * (1 - y)
        return (
            round(self.foot[0] + self.k * (across + self.shear * y), 2),
            round(self.foot[1] - self.k * (y - near * self.pitch), 2),
        )

    def near(self, x, z):
        return z * self.c - x * self.s

    def wide(self, w, d):
        """Half the width of an upright ellipse of half axes w (across) and d (deep) as the camera sees it."""
        return self.k * math.hypot(w * self.c, d * self.s)

    def sections(self, rows, dz=0.0):
        return [(*self.at(0, y, dz), self.wide(w, d)) for y, w, d in rows]

    def draw(self):
        """From the far side to the near side."""
        p = self.p
        self.shadow()
        self.joints()
        cover = self.cover()
        arms = sorted((self.near(self.arms[i][1][0], self.arms[i][1][2]), i) for i in (0, 1))
        legs = sorted((self.near(self.legs[i][1][0], self.legs[i][1][2]), i) for i in (0, 1))
        behind = [i for depth, i in arms if depth < -0.05]
        if p.bag == 'backpack' and self.front:
            self.backpack()
        if p.cut in ('long', 'tail') and self.front:
            self.mane()
        for i in behind:
            self.arm(i, cover, dim=14)
        for order, (_, i) in enumerate(legs):
            self.leg(i, dim=14 * (1 - order))
        self.torso(cover)
        self.straps()
        self.head()
        if p.bag == 'backpack' and not self.front:
            self.backpack()
        for i in (0, 1):
            if i not in behind:
                self.arm(i, cover)
        if p.cut in ('long', 'tail') and not self.front:
            self.mane()

    def shadow(self):
        x, y = self.foot
        for part, light in ((1.0, 142), (0.78, 122), (0.5, 102)):
            rx, ry, ox = 0.2 * self.k * part, 0.032 * self.k * part, -self.sheet.light * 0.06 * self.k
            self.sheet.shade.ellipse((x + ox - rx, y - ry, x + ox + rx, y + ry), fill=light)

    def joints(self):
        """Shoulder, elbow, wrist, hand and hip, knee, ankle of both sides, left first."""
        p, act = self.p, self.act
        self.arms, self.legs = [], []
        for i, side in enumerate((1, -1)):
            swing = act.stride * math.sin(act.phase + math.pi * i)
            flex = 0.06 + 1.7 * act.stride * max(0.0, math.cos(act.phase + math.pi * i))
            hip = (side * 0.048 * p.girth, 0.505, 0.0)
            knee = (hip[0], hip[1] - 0.235 * math.cos(swing), 0.235 * math.sin(swing))
            ankle = (hip[0] * 0.9, knee[1] - 0.235 * math.cos(swing - flex), knee[2] + 0.235 * math.sin(swing - flex))
            self.legs.append([hip, knee, ankle])

            swing, splay, bend = -0.9 * swing, act.splay, act.bend
            if p.bag == 'handbag' and side == p.side:
                swing, bend = swing * 0.3, 0.1
            elif act.hands[i] == 'phone':
                swing, bend = 0.15, 1.6
            elif act.hands[i] == 'ear':
                swing, bend = 0.5, 2.3
            elif act.hands[i] == 'pocket':
                swing, bend, splay = -0.3, 0.55, 0.3
            shoulder = (side * (p.shoulder - 0.024), 0.778, 0.0)
            drop, out = 0.165 * math.cos(splay), 0.165 * math.sin(splay)
            elbow = (shoulder[0] + side * out, shoulder[1] - drop * math.cos(swing), drop * math.sin(swing))
            turn, inward = swing + bend, 0.2 * math.sin(bend) + 0.3 * (splay > 0.25)
            ahead = [-side * inward, -math.cos(turn), math.sin(turn)]
            wrist, hand = ([e + far * a for e, a in zip(elbow, ahead, strict=True)] for far in (0.14, 0.185))
            self.arms.append([shoulder, elbow, wrist, hand])
        low = min(leg[2][1] for leg in self.legs) - 0.04  # the lower foot stands on the ground
        for leg in self.legs:
            leg[:] = [(x, y - low, z) for x, y, z in leg]
        self.sink = low

    def cover(self):
        """The pattern of the top as a picture as large as the sheet, or None for a plain one."""
        p, k = self.p, self.k
        if p.pattern == 'plain':
            return None
        image = Image.new('RGB', self.sheet.image.size, p.colour)
        pen, (w, h) = ImageDraw.Draw(image), image.size
        step = p.pitch * k
        top, middle = self.at(0, 0.84)[1], self.foot[0]
        offset = (middle + self.act.yaw * 0.1 * k) % (2 * step)
        rows = [top + i * step for i in range(-2, int(h / step) + 2)]
        columns = [offset + i * step for i in range(-2, int(w / step) + 2)]
        if p.pattern in ('bars', 'checks'):
            for y in rows[::2]:
                pen.rectangle((0, y, w, y + step * (1.0 if p.pattern == 'bars' else 0.5)), fill=p.second)
        if p.pattern in ('pin', 'checks'):
            for x in columns[::2]:
                pen.rectangle((x, 0, x + step * (0.8 if p.pattern == 'pin' else 0.5), h), fill=p.second)
        if p.pattern == 'dots':
            for i, y in enumerate(rows):
                for x in columns[i % 2 :: 2]:
                    pen.ellipse((x - step * 0.42, y - step * 0.42, x + step * 0.42, y + step * 0.42), fill=p.second)
        if p.pattern == 'halves':
            pen.rectangle((0, self.at(0, 0.68)[1], w, h), fill=p.second)
        if p.pattern == 'chest':
            pen.rectangle((0, self.at(0, 0.75)[1], w, self.at(0, 0.75 - 1.6 * p.pitch)[1]), fill=p.second)
        return image

    # 3. parts of the body

    def arm(self, i, cover, dim=0):
        p, k, sheet = self.p, self.k, self.sheet
        shoulder, elbow, wrist, hand = (self.at(*j) for j in self.arms[i])
        _, sleeve, _, loose = TOPS[p.top]
        r = (0.036 * p.girth * k * loose, 0.030 * p.girth * k * loose, 0.024 * k * loose)
        sheet.limb(wrist, hand, 0.020 * k, 0.021 * k, p.skin, dim=dim)
        if sleeve == 1:
            sheet.limb(elbow, wrist, r[1], r[2], p.colour, cover, dim)
            sheet.limb(shoulder, elbow, r[0], r[1], p.colour, cover, dim)
        else:
            sheet.limb(elbow, wrist, 0.026 * k * p.girth, 0.019 * k, p.skin, dim=dim)
            sheet.limb(shoulder, elbow, 0.031 * k * p.girth, 0.026 * k * p.girth, p.skin, dim=dim)
            if sleeve:
                end = tuple(a + (b - a) * sleeve for a, b in zip(shoulder, elbow, strict=True))
                sheet.limb(shoulder, end, r[0], r[0] * 0.97, p.colour, cover, dim)
        if p.bag == 'handbag' and (i == 0) == (p.side == 1):
            x, y = hand
            half = self.wide(0.03, 0.075)
            sheet.flat([(x - half * 0.5, y + 0.05 * k), (x, y), (x + half * 0.5, y + 0.05 * k)], p.leather)
            sheet.hull([(x, y + 0.045 * k, half * 0.85), (x, y + 0.155 * k, half)], p.leather)

    def leg(self, i, dim=0):
        p, k, sheet = self.p, self.k, self.sheet
        hip, knee, ankle = (self.at(*j) for j in self.legs[i])
        x, y, z = self.legs[i][2]
        heel, toe = self.at(x, y - 0.018, z - 0.022), self.at(x * 1.15, y - 0.024, z + 0.088)
        bare = p.bottom == 'shorts' or p.bottom == 'skirt' or p.top == 'dress'
        fit = {'wide': 1.18, 'slim': 0.9}.get(p.bottom, 1.0) * (0.4 + 0.6 * p.girth)
        if bare:
            skin = (46, 42, 46) if p.tights and p.bottom != 'shorts' else p.skin
            sheet.limb(knee, ankle, 0.034 * k * p.girth, 0.020 * k, skin, dim=dim)
            sheet.limb(hip, knee, 0.052 * k * p.girth, 0.035 * k * p.girth, skin, dim=dim)
            if p.bottom == 'shorts' and p.top != 'dress':
                near = tuple(a + (b - a) * 0.8 for a, b in zip(hip, knee, strict=True))
                sock = tuple(a + (b - a) * 0.75 for a, b in zip(knee, ankle, strict=True))
                sheet.limb(sock, ankle, 0.024 * k, 0.022 * k, p.socks, dim=dim)
                sheet.limb(hip, near, 0.062 * k * fit, 0.056 * k * fit, p.trousers, dim=dim)
        cuff = {'wide': 0.044, 'slim': 0.024}.get(p.bottom, 0.032)
        sheet.limb(heel, toe, 0.024 * k, 0.019 * k, p.shoes, dim=dim)
        if not bare:
            sheet.limb(knee, ankle, 0.043 * k * fit, cuff * k, p.trousers, dim=dim)
            sheet.limb(hip, knee, 0.062 * k * fit, 0.044 * k * fit, p.trousers, dim=dim)
            if p.stripe:
                sheet.pen.line([hip, knee, ankle], fill=tint(p.trousers, 90), width=max(1, round(0.014 * k)))
        if p.boots:
            shaft = tuple(a + (b - a) * 0.45 for a, b in zip(knee, ankle, strict=True))
            sheet.limb(shaft, ankle, 0.034 * k, 0.028 * k, p.shoes, dim=dim)

    def torso(self, cover):
        p, k, sheet = self.p, self.k, self.sheet
        _, _, hem, loose = TOPS[p.top]
        deep = 0.55 + 0.2 * p.girth
        spread = max(abs(leg[1][2]) for leg in self.legs)  # a hem gives way to the knees
        s, w, h = p.shoulder * loose, p.waist * loose, p.hip * loose
        hips = [(0.60, w, w * deep), (0.54, p.hip, p.hip * 0.85), (0.48, p.hip * 1.0, p.hip * 0.85)]
        if p.bottom == 'skirt' and p.top != 'dress':
            hips += [(0.33, p.hip * 1.15 + 0.1 * spread, p.hip + 0.8 * spread)]
        sheet.hull(self.sections(hips), p.trousers)
        rows = [
            (0.852, 0.036, 0.040), (0.836, s * 0.46, 0.050), (0.822, s * 0.72, 0.058), (0.800, s * 0.90, 0.064),
            (0.740, s * 0.92, s * deep * 0.86), (0.680, (s + w) * 0.47, s * deep * 0.84), (0.620, w, w * deep * 1.04),
            (0.560, (w + h) * 0.5, h * deep * 1.02), (max(hem, 0.505), h * 1.02, h * deep * 1.08),
        ]  # fmt: skip
        if hem < 0.48:
            rows.append((hem, h * (1.3 if p.top == 'dress' else 1.08) + 0.1 * spread, h * 0.9 + 0.7 * spread))
        sheet.hull(self.sections(rows), p.colour, cover)
        if p.top == 'dress':
            belt = [self.at(0, 0.625), self.at(0, 0.607)]
            sheet.hull([(*belt[0], self.wide(w, w * deep * 1.04)), (*belt[1], self.wide(w, w * deep * 1.04))], p.second)
        self.neck(s * deep * 0.86)
        if self.c > 0.12:
            self.chest(s * deep * 0.86, max(hem, 0.49))
        elif self.c < -0.2 and p.logo == 'back':
            self.plate(0.0, 0.73, -s * deep * 0.86, 0.055, 0.05, p.second)
        if p.top == 'hoodie':
            hood = self.at(0, 0.842, -0.035)
            sheet.ball(*hood, self.wide(0.066, 0.05), 0.026 * k, tint(p.colour, -8))
        for y in (0.60, 0.655):  # folds at the waist
            x0, y0 = self.at(0, y)
            half = self.wide(w, w * deep)
            sheet.shade.line([(x0 - half * 0.7, y0), (x0 + half * 0.1, y0 + 0.008 * k)], fill=138, width=2)

    def neck(self, d):
        p, k = self.p, self.k
        self.sheet.limb(self.at(0, 0.875, 0.0), self.at(0, 0.845, 0.005), 0.028 * k, 0.031 * k, p.skin, dim=22)
        if self.c > 0.1 and p.top != 'hoodie':  # the neckline shows skin in front
            a, b, c = self.at(-0.032, 0.847, d * 0.4), self.at(0.032, 0.847, d * 0.4), self.at(0, 0.815, d * 0.8)
            self.sheet.flat([a, b, c], p.skin, 132)

    def plate(self, x, y, z, w, h, colour):
        """A flat print on the body."""
        corners = [(x - w, y + h), (x + w, y + h), (x + w, y - h), (x - w, y - h)]
        self.sheet.flat([self.at(a, b, z) for a, b in corners], colour)

    def chest(self, d, hem):
        """What only the front shows: an open jacket, a zip, a pocket, a logo."""
        p = self.p
        if p.top in ('jacket', 'coat'):
            v = [(-0.028, 0.85, d * 0.4), (0.028, 0.85, d * 0.4), (0.052, 0.70, d), (0.046, hem, d), (-0.046, hem, d)]
            self.sheet.flat([self.at(*q) for q in [*v, (-0.052, 0.70, d)]], p.shirt)
        elif p.top == 'hoodie':
            pouch = [(-0.055, 0.60, d), (0.055, 0.60, d), (0.07, 0.53, d), (-0.07, 0.53, d)]
            self.sheet.flat([self.at(*q) for q in pouch], tint(p.colour, -14))
        if p.logo == 'small':
            self.plate(0.05, 0.75, d, 0.018, 0.014, p.second)
        elif p.logo == 'large' and p.top not in ('jacket', 'coat'):
            self.plate(0.0, 0.71, d, 0.048, 0.034, p.second)

    def head(self):
        p, k, sheet = self.p, self.k, self.sheet
        x, y = self.at(0, 0.926, 0.012)
        rx, ry = self.wide(0.053, 0.062), 0.072 * k
        hair = p.skin if p.cut == 'bald' else p.hair
        sheet.ball(x, y, rx * 1.04, ry * 1.03, hair)
        if p.cut in ('short', 'cap', 'bun'):  # hair ends at the ears, behind at the nape
            low = 18 if self.c > -0.45 else 38
            sheet.pen.chord((x - rx * 1.03, y - ry, x + rx * 1.03, y + ry * 1.03), low, 180 - low, fill=p.skin)
        if self.c > -0.45:
            face = x + self.s * rx * 0.50
            size = rx * (0.54 + 0.38 * max(0.0, self.c))  # hair stays on top and behind
            sheet.pen.ellipse((face - size, y - ry * 0.46, face + size, y + ry * 1.04), fill=p.skin)
            if abs(self.s) > 0.75:
                nose = x + self.s * rx * 0.98
                sheet.pen.ellipse((nose - 0.01 * k, y + 0.004 * k, nose + 0.01 * k, y + 0.026 * k), fill=p.skin)
            for side in (-0.4, 0.4):
                turn = self.act.yaw + side
                if math.cos(turn) > 0.1:
                    ex, ey, er = x + math.sin(turn) * rx * 0.94, y + 0.008 * k, 0.007 * k
                    sheet.pen.ellipse((ex - er, ey - er, ex + er, ey + er), fill=(44, 34, 34))
            mouth = x + self.s * rx * 0.8
            sheet.pen.line((mouth - 0.013 * k * self.c, y + 0.04 * k, mouth + 0.013 * k * self.c, y + 0.04 * k),
                           fill=tint(p.skin, -60), width=max(1, round(0.006 * k)))  # fmt: skip
        if p.cut == 'bun':
            bun = self.at(0, 0.985, -0.035)
            sheet.ball(*bun, 0.030 * k, 0.028 * k, p.hair)
        if p.cut == 'cap':
            crown = [(x - rx * 1.1, y - ry * 0.18), (x - rx * 1.0, y - ry * 0.7), (x - rx * 0.5, y - ry * 1.1)]
            crown += [(2 * x - a, b) for a, b in reversed(crown)]
            sheet.flat(crown, p.cap, 150)
            if self.c > -0.5:
                brim = x + self.s * rx * 1.1
                half = rx * (0.55 + 0.35 * abs(self.c))
                sheet.pen.ellipse((brim - half, y - ry * 0.38, brim + half, y - ry * 0.06), fill=tint(p.cap, -18))

    def mane(self):
        """Long hair down the back, or a pony tail."""
        p, k = self.p, self.k
        if p.cut == 'tail':
            self.sheet.limb(self.at(0, 0.945, -0.065), self.at(0, 0.80, -0.075), 0.02 * k, 0.016 * k, p.hair)
            return
        rows = [(0.965, 0.046, 0.04), (0.91, 0.062, 0.045), (0.84, 0.068, 0.04), (0.77, 0.056, 0.03)]
        self.sheet.hull(self.sections(rows, -0.032), p.hair)

    # 4. what they carry

    def backpack(self):
        p, z = self.p, -0.115
        rows = [
            (0.83, 0.05, 0.03),
            (0.81, 0.085, 0.05),
            (0.70, 0.092, 0.056),
            (0.60, 0.092, 0.056),
            (0.585, 0.08, 0.05),
        ]
        self.sheet.hull(self.sections(rows, z), p.leather)
        if not self.front:
            self.plate(0.0, 0.645, z - 0.05, 0.066, 0.036, tint(p.leather, -16))
            self.plate(0.0, 0.765, z - 0.05, 0.07, 0.005, tint(p.leather, 40))

    def straps(self):
        p, k = self.p, self.k
        width = max(2, round(0.02 * k))
        if p.bag == 'backpack' and self.c > -0.3:
            for side in (-1, 1):
                if self.near(side * 0.1, 0.06) > -0.02:
                    line = [(side * 0.066, 0.832, 0.0), (side * 0.075, 0.77, 0.085), (side * 0.085, 0.66, 0.06)]
                    self.sheet.pen.line([self.at(*q) for q in line], fill=p.leather, width=width)
        if p.bag == 'shoulder':
            z = 0.075 if self.front else -0.075
            line = [(-p.side * 0.062, 0.835, 0.0), (0, 0.72, z), (p.side * 0.105, 0.57, z * 0.6)]
            self.sheet.pen.line([self.at(*q) for q in line], fill=p.leather, width=width)
            if self.near(p.side, 0) > -0.35:
                x, y = self.at(p.side * 0.125, 0.56)
                r, flap = self.wide(0.035, 0.085), 0.05 * k
                self.sheet.hull([(x, y, r * 0.92), (x, y + 0.02 * k, r), (x, y + 0.12 * k, r)], p.leather)
                front = [(x - r, y), (x + r, y), (x + r * 0.9, y + flap), (x - r * 0.9, y + flap)]
                self.sheet.flat(front, tint(p.leather, 18))
