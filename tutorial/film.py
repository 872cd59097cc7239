"""Draw `make demo` as a short film: what its commands print, and the picture that it ends with.

Reads:   tutorial/output/*.txt (see walk.py), model/toy/show.png
Writes:  tutorial/figures/demo.gif
Run:     python tutorial/film.py
"""

import argparse
import io
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from PIL import Image, ImageDraw, ImageFont  # noqa: E402
from walk import ROOT, STEPS  # noqa: E402

SHOWN = ('prepare', 'train', 'test', 'evaluate', 'rerank', 'demo')
SIZE, ROWS, COLUMNS = (880, 430), 22, 118
GROUND, INK, COMMAND = '#1b1f24', '#d7dde4', '#7ee787'


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--out', type=Path, default=ROOT / 'tutorial/figures/demo.gif', help='default tutorial/figures/demo.gif'
    )
    return parser


def main(opts):
    frames = [(screen(lines), wait) for lines, wait in scenes()] + [(ending(), 5000)]
    pictures, waits = zip(*frames, strict=True)
    memory = io.BytesIO()
    pictures[0].save(memory, format='gif', save_all=True, append_images=pictures[1:], duration=list(waits), loop=0)
    opts.out.write_bytes(memory.getvalue())
    print(f'{opts.out}: {len(frames)} pictures, {len(memory.getvalue()) / 1000:.0f} kB')


def scenes():
    """What a terminal would show, as (lines, milliseconds): a command, then its output, a training epoch by epoch."""
    said = []
    for name in SHOWN:
        said.append(f'$ {STEPS[name]}')
        yield said[-ROWS:], 900
        for line in (ROOT / f'tutorial/output/{name}.txt').read_text(encoding='utf-8').splitlines():
            if line.strip():
                said.append(line)
            if line.startswith('epoch'):
                yield said[-ROWS:], 180
        yield said[-ROWS:], 1500
        said.append('')


def screen(lines):
    picture = Image.new('RGB', SIZE, GROUND)
    pen, font = ImageDraw.Draw(picture), typewriter()
    for row, line in enumerate(lines):
        pen.text((14, 12 + 18.5 * row), line[:COLUMNS], fill=COMMAND if line.startswith('$') else INK, font=font)
    return picture.quantize(16, dither=Image.Dither.NONE)


def typewriter():
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / 'fonts/ttf/DejaVuSansMono.ttf'), 12)


def ending():
    """The ranking picture, as large as fits."""
    picture = Image.new('RGB', SIZE, 'white')
    with Image.open(ROOT / 'model/toy/show.png') as shown:
        ranking = shown.convert('RGB')
        ranking.thumbnail((SIZE[0] - 20, SIZE[1] - 20))
        picture.paste(ranking, ((SIZE[0] - ranking.width) // 2, (SIZE[1] - ranking.height) // 2))
    return picture.quantize(64)


if __name__ == '__main__':
    main(options().parse_args())
