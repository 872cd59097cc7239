"""What was found in a video, to look at: frames with boxes and trails, a contact sheet, a timeline of several cameras.

Green is the person who was looked for, and nobody else.
"""

import math
from collections import deque
from datetime import datetime
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from reid import plots

TRAIL = 2.0  # seconds of somebody's way behind him
GREEN, WHITE, DARK, QUIET = (26, 152, 80), (255, 255, 255), (20, 20, 20), (150, 156, 164)
# Of people by their numbers; none is green.
COLOURS = ((31, 119, 180), (214, 96, 20), (128, 84, 176), (190, 46, 60), (20, 150, 170), (180, 130, 20), (200, 80, 150),
           (90, 100, 190), (140, 86, 75), (110, 110, 110))  # fmt: skip


def clock(seconds):
    """3723.4 -> '1:02:03'"""
    whole = math.floor(seconds)
    return f'{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}'


STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)  # seconds


def ticks(begin, length, most):
    """[(seconds from the beginning, words)] of a timeline, at round times, `most` of them or one more. begin: seconds
    since 1970, for times by the clock of the day; None: they begin at 0."""
    step = next((step for step in STEPS if length / step <= most), 86400 * math.ceil(length / most / 86400))
    local = None if begin is None else datetime.fromtimestamp(begin)
    day = 0 if local is None else (local - datetime(local.year, local.month, local.day)).total_seconds()
    at, found = math.ceil(day / step) * step - day, []
    while at <= length:
        form = '%m-%d %H:%M' if length > 86400 else '%H:%M' if step >= 60 else '%H:%M:%S'
        found.append((at, clock(at) if begin is None else datetime.fromtimestamp(begin + at).strftime(form)))
        at += step
    return found


# ---------------------------------------------------------------------------------------------------------------------
# 1. frames


class Painter:
    """Draws on the frames of one source. quiet: somebody is looked for, so that all others are grey. timed: the time
    stands in a corner."""

    def __init__(self, quiet=False, timed=True):
        self.quiet, self.timed, self.trails = quiet, timed, {}

    def draw(self, picture, time, people, hits):
        """uint8 (H, W, 3) -> the same with the boxes of people {track: box}; hits {track: text} are green."""
        self.move(time, people)
        image = Image.fromarray(picture)
        pen = ImageDraw.Draw(image)
        line = max(1, round(image.height / 360))
        order = sorted(people, key=lambda who: (who in hits, people[who][3]))  # who is near over who is far
        for who in order:
            colour = self.colour(who, hits)
            way = [spot for when, *spot in self.trails[who]]
            for i in range(1, len(way)):
                pen.line([tuple(way[i - 1]), tuple(way[i])], colour, max(1, round(line * 1.5 * i / len(way))))
        for who in order:
            thick = 2 * line if who in hits else line
            pen.rectangle(shape(people[who], image.size), outline=self.colour(who, hits), width=thick)
        for who in order:
            left, top, right, bottom = shape(people[who], image.size)
            tag(pen, (left, top), hits.get(who, str(who)), self.colour(who, hits), image.size)
        if self.timed:
            tag(pen, (0, image.height), clock(time), DARK, image.size)
        return np.asarray(image)

    def colour(self, who, hits):
        return GREEN if who in hits else QUIET if self.quiet else COLOURS[who % len(COLOURS)]

    def move(self, time, people):
        """Trails follow the feet, and fade behind those who are gone."""
        for who, box in people.items():
            trail = self.trails.setdefault(who, deque())
            trail.append((time, float(box[0] + box[2]) / 2, float(box[3])))
        for who in list(self.trails):
            trail = self.trails[who]
            while trail and trail[0][0] < time - TRAIL:
                trail.popleft()
            if not trail:
                del self.trails[who]


def shape(box, size):
    """A box as it can be drawn: inside of the frame, its sides in order."""
    left, top, right, bottom = (float(side) for side in box)
    left, top = min(max(left, 0), size[0] - 2), min(max(top, 0), size[1] - 2)
    return left, top, min(max(right, left + 1), size[0] - 1), min(max(bottom, top + 1), size[1] - 1)


def tag(pen, spot, text, colour, size):
    """White words on a colour, above a spot where there is room, below it elsewhere."""
    letters = font(max(11, round(size[1] / 42)))
    left, top, right, bottom = pen.textbbox((0, 0), text, font=letters)
    pad = max(2, round(size[1] / 240))
    width, height = right + 2 * pad, letters.size + 2 * pad
    x, y = min(max(0, spot[0]), size[0] - width), spot[1] - height
    y = min(y if y >= 0 else spot[1], size[1] - height)
    pen.rectangle((x, y, x + width, y + height), colour)
    pen.text((x + pad, y + height / 2), text, WHITE, letters, anchor='lm')


@lru_cache
def font(size):
    return ImageFont.load_default(size)


# ---------------------------------------------------------------------------------------------------------------------
# 2. sheets

COLUMNS = 8  # of pictures


def contact(query, found, title, path):
    """contact.jpg. query: a picture or None; found: [(picture, above, below, whether it is a hit)], the best first."""
    gap = query is not None
    columns = min(COLUMNS, max(5, len(found)))
    rows = max(1, math.ceil(len(found) / columns))
    tall = 2.72 * rows + 0.75
    figure = plots.new_figure(figsize=(1.22 * (columns + gap) + 0.5, tall))
    grid = figure.add_gridspec(
        rows, columns + gap, left=0.02, right=0.98, top=1 - 0.78 / tall, bottom=0.45 / tall, wspace=0.14, hspace=0.34
    )
    figure.text(0.02, 1 - 0.24 / tall, title, fontsize=11, color=plots.INK, va='center')
    if gap:
        plots.cell(figure.add_subplot(grid[0, 0]), query, plots.QUERY, 'looked for', '')
    for i, (picture, above, below, hit) in enumerate(found):
        axis = figure.add_subplot(grid[i // columns, i % columns + gap])
        plots.cell(axis, picture, plots.RIGHT if hit else plots.FAINT, above, below)
    plots.save(figure, path)


def timeline(rows, length, hit, path, begin=None):
    """timeline.png. rows: {source: (spans of anybody, spans of hits)}, spans [(from, to)] in seconds of one clock that
    ends at `length`; hit: who the green ones are, or None; begin: what that clock begins at, as in ticks()."""
    figure = plots.new_figure(figsize=(10, 0.5 * len(rows) + 1.3), layout='constrained')
    axis = figure.subplots()
    least = length / 400  # so that a moment can be seen
    for y, (anybody, hits) in enumerate(rows.values()):
        for spans, colour, high in ((anybody, '#d5d8dc', 0.62), (hits, plots.RIGHT, 0.62)):
            bars = [(start, max(least, end - start)) for start, end in spans]
            axis.broken_barh(bars, (y - high / 2, high), color=colour, lw=0)
    axis.set(xlim=(0, max(length, 1e-3)), ylim=(len(rows) - 0.45, -0.55), yticks=range(len(rows)))
    axis.set_yticklabels(list(rows))
    marks = ticks(begin, max(length, 1e-3), 8)
    axis.set_xticks([at for at, _ in marks], [words for _, words in marks])
    axis.spines[['top', 'right', 'left']].set_visible(False)
    axis.tick_params(axis='y', length=0)
    axis.grid(axis='x', alpha=0.25)
    axis.broken_barh([], (0, 0), color='#d5d8dc', label='anybody')
    if hit:
        axis.broken_barh([], (0, 0), color=plots.RIGHT, label=hit)
    axis.legend(frameon=False, loc='lower right', bbox_to_anchor=(1, 1), ncols=2, fontsize=9)
    plots.save(figure, path)
