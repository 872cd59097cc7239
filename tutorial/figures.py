"""Draw the figures of the tutorial, from the drawn people and what `make demo` has learnt of them.

Reads:   data/toy/pytorch, model/toy and model/toy_untrained, which `python make.py demo` makes
Writes:  tutorial/figures/*.png
Run:     python tutorial/figures.py
         python tutorial/figures.py triplet rerank

Each has a light ground of its own, so that it can be read in a dark theme as well as in a light one. The same data and
the same run give the same figures.
"""

import csv
import io
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import utils  # noqa: E402
from reid import cli, data, plots, ranking, rerank, results, samplers  # noqa: E402
from reid.files import replacing  # noqa: E402
from reid.nearest import nearest  # noqa: E402
from reid.problem import Problem  # noqa: E402

GROUND, INK, FAINT, LINE = '#faf8f3', '#222222', '#6f6f6f', '#c9c4b8'
RIGHT, WRONG, JUNK, QUERY = plots.RIGHT, plots.WRONG, plots.JUNK, plots.QUERY
QUERY_INDEX = 73  # of the demo
HARD_INDEX = 42  # a query with misses among its first ten: there is more to see in an average precision


def options():
    parser = cli.parser(__doc__)
    parser.add_argument('figures', nargs='*', metavar='FIGURE', help=f'default all: {", ".join(FIGURES)}')
    parser.add_argument('--name', default='toy', help='the trained run (default toy)')
    parser.add_argument('--before', default='toy_untrained', help='the untrained one (default toy_untrained)')
    parser.add_argument('--out', type=Path, default=ROOT / 'tutorial/figures', help='default tutorial/figures')
    return parser


def main(opts):
    unknown = [name for name in opts.figures if name not in FIGURES]
    if unknown:
        raise Problem(f'{unknown[0]}: there are {", ".join(FIGURES)}')
    opts.out.mkdir(parents=True, exist_ok=True)
    for name in opts.figures or FIGURES:
        save(FIGURES[name](opts), opts.out / f'{name}.png')


def save(figure, path):
    """A PNG of 128 colours: small, and sharp enough for drawings and for pictures of 64 x 128."""
    memory = io.BytesIO()
    figure.savefig(memory, format='png', dpi=130, facecolor=GROUND)
    picture = Image.open(memory).convert('RGB').quantize(128, dither=Image.Dither.NONE)
    with replacing(path) as temporary:
        picture.save(temporary, format='png', optimize=True)
    print(path)


# ---------------------------------------------------------------------------------------------------------------------
# 1. what the figures are made of


class Tested:
    """The result of a run, its pictures, and the ranks that it gives."""

    def __init__(self, name):
        path = utils.result_named(name)
        (self.query, self.gallery), about = results.load(path, 'query', 'gallery')
        self.root = data.tree(about['data_dir'], ['query', 'gallery'])
        self.folder = path.parent

    def ranked(self, index, scores=None):
        """One query: gallery positions from the best on, junk left out, and which of them are good."""
        if scores is None:
            scores = self.gallery.f @ self.query.f[index]
        good, junk = ranking.judge(self.query.ids[index], self.query.cams[index], self.gallery.ids, self.gallery.cams)
        order = np.argsort(-scores, kind='stable')
        order = order[~junk[order]]
        return order, good[order]

    def picture(self, part, i):
        return data.read(self.root / part.paths[i])


def people(opts, part):
    """All pictures of a part of the tree that the run was trained on."""
    trained_on = utils.read_opts(utils.find_run(opts.name))['data_dir'][0]
    return data.people(data.tree(trained_on, [part]), part)


def sheet(width, height, **settings):
    return plots.new_figure(figsize=(width, height), facecolor=GROUND, **settings)


def place(figure, left, bottom, width, height):
    """Axes at inches from the lower left corner, without a frame."""
    w, h = figure.get_size_inches()
    axis = figure.add_axes((left / w, bottom / h, width / w, height / h))
    axis.set_axis_off()
    return axis


def show(figure, picture, left, bottom, width, colour=None, above='', below='', dashed=False):
    """A picture of twice its width, in a frame of a colour, with a word above and one below."""
    axis = place(figure, left, bottom, width, 2 * width)
    axis.set_axis_on()
    plots.cell(axis, picture, colour or GROUND, '', '', dashed)
    axis.set_title(above, fontsize=9, color=colour or INK, pad=3)
    axis.set_xlabel(below, fontsize=8, color=INK, labelpad=3)


def canvas(figure):
    """The whole sheet, in inches, to draw and write on."""
    w, h = figure.get_size_inches()
    axis = place(figure, 0, 0, w, h)
    axis.set(xlim=(0, w), ylim=(0, h))
    return axis


def plain(axis, **labels):
    axis.set_axis_on()
    axis.set_facecolor(GROUND)
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(alpha=0.3)
    axis.set(**labels)


# ---------------------------------------------------------------------------------------------------------------------
# 2. the figures


def pipeline(opts):
    """Scripts, and the files that they hand to each other."""
    figure = sheet(10.8, 3.0)
    axis = canvas(figure)
    files = {'raw data set': 0.1, 'pytorch/\n<id>/<picture>': 2.2, 'net_last.pth\nopts.yaml': 4.6}
    files |= {'pytorch_result.mat': 6.8}

    def box(x, y, text, width=1.45, colour=LINE):
        axis.add_patch(patch((x, y), width, 0.62, colour))
        axis.text(x + width / 2, y + 0.31, text, ha='center', va='center', fontsize=8.5, color=INK)

    def arrow(start, end, script):
        axis.annotate('', end, start, arrowprops={'arrowstyle': '-|>', 'color': QUERY, 'lw': 1.6})
        x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
        axis.text(x, y + 0.13, script, ha='center', va='center', fontsize=8.5, color=QUERY, family='monospace')

    top = 2.1
    for text, x in files.items():
        box(x, top, text, 1.3 if x < 6.8 else 1.6)
    for (a, b), script in zip(((1.4, 2.2), (3.5, 4.6), (5.9, 6.8)), ('prepare', 'train', 'test'), strict=True):
        arrow((a, top + 0.31), (b, top + 0.31), script)
    for y, script, text in (
        (top, 'evaluate_gpu', 'Rank@1, mAP'),
        (top - 0.95, 'evaluate_rerank', 'the same,\nre-ranked'),
        (top - 1.9, 'demo', 'show.png'),
    ):
        box(9.55, y, text, 1.15)
        start = 8.4 if y == top else 7.6
        axis.plot((start, start), (top if y < top else y + 0.31, y + 0.31), color=QUERY, lw=1.6)
        arrow((start, y + 0.31), (9.55, y + 0.31), script)
    axis.plot((5.25, 5.25), (top, top - 1.59), color=QUERY, lw=1.6)
    previous = 5.25
    for x, script, text in ((2.6, 'export', 'one file: .onnx'), (0.1, 'search, serve', 'who? where? when?')):
        arrow((previous, top - 1.59), (x + 1.5, top - 1.59), script)
        box(x, top - 1.9, text, 1.5)
        previous = x
    return figure


def patch(corner, width, height, colour):
    from matplotlib.patches import FancyBboxPatch

    return FancyBboxPatch(corner, width, height, 'round,pad=0,rounding_size=0.08', fc='white', ec=colour, lw=1.2)


def cameras(opts):
    """Three people as the cameras see them, and what else is in the gallery."""
    gallery = people(opts, 'gallery')
    names = [name for name in sorted(set(gallery.ids)) if name not in ('-1', '0000')]
    seen = {name: [i for i, who in enumerate(gallery.ids) if who == name] for name in names}
    most = sorted(names, key=lambda name: -len(set(gallery.cams[seen[name]])))[:3]  # sorted is stable
    figure = sheet(9.0, 4.6)
    axis = canvas(figure)
    for row, name in enumerate(sorted(most)):
        y = 3.15 - row * 1.5
        axis.text(0.1, y + 0.55, name, fontsize=10, color=INK, va='center', family='monospace')
        for cam in range(1, 7):
            i = next((i for i in seen[name] if gallery.cams[i] == cam), None)
            x = 0.2 + cam * 0.8
            if row == 0:
                axis.text(x + 0.29, 4.42, f'camera {cam}', ha='center', fontsize=8, color=FAINT)
            if i is not None:
                show(figure, data.read(gallery.paths[i]), x, y, 0.58, LINE)
    for column, (name, title) in enumerate((('0000', 'distractors'), ('-1', 'junk'))):
        x = 6.35 + column * 1.4
        axis.text(x + 0.29, 4.42, f'{title}', ha='center', fontsize=8, color=FAINT)
        for row, i in enumerate([i for i, who in enumerate(gallery.ids) if who == name][:3]):
            show(figure, data.read(gallery.paths[i]), x, 3.15 - row * 1.5, 0.58, JUNK, dashed=name == '-1')
    return figure


def network(opts):
    """A picture on its way through the network: maps, a vector, a score for each identity."""
    tested = Tested(opts.before)
    model, trained = utils.load_run(opts.before)
    picture = tested.picture(tested.query, QUERY_INDEX)
    x = data.test_transform(trained.height, trained.width)(picture)[None]
    with torch.inference_mode():
        maps = model.maps(x)  # (1, C, h, w)
        pooled = model.avgpool(maps).flatten(1)
        logits, feature = model.classifier(pooled)
    figure = sheet(9.6, 2.9)
    axis = canvas(figure)
    show(figure, picture, 0.3, 0.6, 0.9, LINE)
    strongest = maps[0].amax((1, 2)).topk(6).indices
    for i, channel in enumerate(reversed(strongest.tolist())):
        offset = 0.11 * i
        own = place(figure, 2.3 + offset, 0.5 + offset, 0.75, 1.5)
        own.set_axis_on()
        own.set(xticks=[], yticks=[])
        own.imshow(maps[0, channel].numpy(), cmap='magma', aspect='auto')
    for left, values, colour in ((4.75, pooled[0], QUERY), (6.4, feature[0], QUERY), (8.05, logits[0], RIGHT)):
        own = place(figure, left, 0.6, 0.75, 1.8)
        own.barh(np.arange(len(values)), values.numpy()[::-1], color=colour, height=1)
    words = (
        (0.75, f'picture\n(3, {trained.height}, {trained.width})'),
        (2.95, f'maps\n{tuple(maps.shape[1:])}'),
        (5.1, f'pooled\n({pooled.shape[1]},)'),
        (6.8, f'feature\n({feature.shape[1]},)'),
        (8.45, f'scores\n({logits.shape[1]},)'),
    )
    for at, text in words:
        axis.text(at, 0.08, text, ha='center', va='bottom', fontsize=8.5, color=INK)
    for start, end, text in (
        (1.3, 2.2, 'backbone'),
        (3.75, 4.65, 'pooling'),
        (5.6, 6.35, 'head'),
        (7.25, 8.0, 'classifier'),
    ):
        axis.annotate('', (end, 1.5), (start, 1.5), arrowprops={'arrowstyle': '-|>', 'color': INK, 'lw': 1.3})
        axis.text((start + end) / 2, 1.66, text, ha='center', fontsize=8.5, color=INK)
    axis.text(6.8, 2.5, 'kept: describes anybody', ha='center', fontsize=8, color=QUERY)
    axis.text(8.5, 2.5, 'dropped after training', ha='center', fontsize=8, color=RIGHT)
    return figure


def curves(opts):
    """Loss, error and learning rate, epoch by epoch, from log.csv."""
    with (utils.find_run(opts.name) / 'log.csv').open(encoding='utf-8', newline='') as file:
        log = list(csv.DictReader(file))
    epochs = [int(row['epoch']) for row in log]
    figure = sheet(9.6, 2.8, layout='constrained')
    parts = (('loss', 'loss', 1), ('top1err', 'wrong answers, %', 100))
    axes = figure.subplots(1, 3)
    for axis, (key, title, times) in zip(axes, parts, strict=False):
        for phase, colour in (('train', QUERY), ('val', WRONG)):
            values = [times * float(row[f'{phase}_{key}']) for row in log if row.get(f'{phase}_{key}')]
            if values:
                axis.plot(epochs, values, color=colour, marker='o', ms=3, label=phase)
        plain(axis, title=title, xlabel='epoch', ylim=(0, None))
        axis.legend(frameon=False)
    axes[2].plot(epochs, [float(row['lr']) for row in log], color=INK, marker='o', ms=3)
    plain(axes[2], title='learning rate', xlabel='epoch', ylim=(0, None))
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    return figure


def before(opts):
    """The ten nearest of one query, by a network of random weights and by the trained one."""
    figure = sheet(9.4, 3.6)
    axis = canvas(figure)
    for y, name, title in ((1.95, opts.before, 'untrained'), (0.2, opts.name, 'trained')):
        tested = Tested(name)
        order, good = tested.ranked(QUERY_INDEX)
        axis.text(0.1, y + 1.42, title, fontsize=10, color=INK)
        show(figure, tested.picture(tested.query, QUERY_INDEX), 0.1, y, 0.64, QUERY)
        for rank in range(min(10, len(order))):
            colour = RIGHT if good[rank] else WRONG
            show(figure, tested.picture(tested.gallery, order[rank]), 1.1 + 0.82 * rank, y, 0.64, colour)
            axis.text(
                1.1 + 0.82 * rank + 0.32,
                y + 1.34,
                f'{rank + 1} {"✓" if good[rank] else "✗"}',
                ha='center',
                fontsize=8.5,
                color=colour,
            )
    return figure


def ranks(opts):
    """One query: its ranking, the share of good images found so far, and the two average precisions."""
    tested = Tested(opts.name)
    order, good = tested.ranked(HARD_INDEX)
    found = np.flatnonzero(good)  # the ranks r_i, from 0
    n, most = len(found), min(len(order), 12)
    figure = sheet(9.6, 4.5)
    axis = canvas(figure)
    show(figure, tested.picture(tested.query, HARD_INDEX), 0.15, 3.0, 0.56, QUERY, 'query')
    left, step = 1.15, 0.69
    for rank in range(most):
        mark = '✓' if good[rank] else '✗'
        colour = RIGHT if good[rank] else WRONG
        picture = tested.picture(tested.gallery, order[rank])
        show(figure, picture, left + step * rank, 3.0, 0.56, colour, f'{rank + 1} {mark}')
    own = place(figure, left, 0.72, step * most, 2.0)
    plain(own, xlim=(0.5, most + 0.5), ylim=(0, 1.05), xlabel='rank', ylabel='precision')
    own.set_xticks(range(1, most + 1))
    own.grid(axis='x', visible=False)
    precision = np.cumsum(good[:most]) / np.arange(1, most + 1)
    own.plot(range(1, most + 1), precision, color=FAINT, marker='o', ms=3, lw=1, label='right ones so far / rank')
    shown = [r for r in found if r < most]
    own.vlines([r + 1 for r in shown], 0, [precision[r] for r in shown], color=RIGHT, lw=7, alpha=0.35)
    for r in shown:
        own.text(r + 1.12, max(0.04, precision[r] - 0.16), f'{precision[r]:.2f}', fontsize=8, color=RIGHT)
    first = int(found[0]) + 1
    own.axvline(first, color=QUERY, lw=1.2, ls=':')
    own.step(
        range(1, most + 1),
        [float(r >= first) for r in range(1, most + 1)],
        where='mid',
        color=QUERY,
        lw=1.4,
        label=f'CMC of this query: found from rank {first} on',
    )
    each = ranking.each([found])
    text = f'{n} good images; AP {each["standard"][0]:.3f} (standard, the mean of the green bars), '
    axis.text(left, 0.08, text + f'{each["trapezoid"][0]:.3f} (trapezoid)', fontsize=8.5, color=INK)
    own.legend(frameon=False, fontsize=8, loc='upper right', bbox_to_anchor=(1, 0.93))
    return figure


def batch(opts):
    """A batch of P identities with K pictures each, as the sampler deals it."""
    train = people(opts, 'train_all')
    p, k = 6, 4
    (first, *_) = samplers.PK(train.ids, p, k, seed=0, cams=train.cams)
    figure = sheet(5.2, 3.6)
    axis = canvas(figure)
    for i, where in enumerate(first):
        column, row = divmod(i, k)
        show(figure, data.read(train.paths[where]), 0.95 + 0.7 * column, 2.52 - 0.82 * row, 0.36, LINE)
        if row == 0:
            axis.text(
                1.13 + 0.7 * column, 3.36, train.ids[where], ha='center', fontsize=9, color=INK, family='monospace'
            )
    axis.text(0.1, 3.36, f'P = {p}', fontsize=9.5, color=QUERY)
    axis.text(0.1, 1.7, f'K = {k}', fontsize=9.5, color=QUERY)
    return figure


def triplet(opts):
    """An anchor in the middle, the rest of a batch at their distances: before training and after."""
    from matplotlib.patches import Circle

    train = people(opts, 'train_all')
    (first, *_) = samplers.PK(train.ids, 5, 4, seed=1, cams=train.cams)
    ids = np.array([train.ids[i] for i in first])
    pictures = [data.read(train.paths[i]) for i in first]
    figure = sheet(9.6, 5.3)
    axis = canvas(figure)
    for left, name, title in ((0.1, opts.before, 'before training'), (4.9, opts.name, 'after')):
        f = described(name, pictures)
        d = np.linalg.norm(f - f[0], axis=1)
        own = place(figure, left, 0.32, 4.6, 4.6)
        reach = d.max() * 1.2
        own.set(xlim=(-reach, reach), ylim=(-reach, reach))
        same = ids == ids[0]
        hard, near = d[same].max(), d[~same].min()
        own.add_patch(Circle((0, 0), hard, fill=False, ec=RIGHT, lw=1.6))
        own.add_patch(Circle((0, 0), near, fill=False, ec=WRONG, lw=1.6, ls='--'))
        turn = 2 * np.pi * np.arange(len(d)) / (len(d) - 1) * 1.0 + 0.35
        order = np.argsort(np.argsort(-d[1:]) * 7 % (len(d) - 1))  # neighbours in angle differ in distance
        for i, angle in zip(range(1, len(d)), turn[order], strict=False):
            thumbnail(own, pictures[i], d[i] * np.cos(angle), d[i] * np.sin(angle), reach, RIGHT if same[i] else WRONG)
        thumbnail(own, pictures[0], 0, 0, reach, QUERY)
        axis.text(left + 2.3, 5.02, title, ha='center', fontsize=10.5, color=INK)
        text = f'furthest positive {hard:.2f}, nearest negative {near:.2f}'
        axis.text(left + 2.3, 0.1, text, ha='center', fontsize=8.5, color=INK)
    return figure


def described(name, pictures):
    """Features of unit length by a run, as test.py makes them."""
    from reid import features

    model, trained = utils.load_run(name)
    transform = data.test_transform(trained.height, trained.width)
    with torch.inference_mode():
        return features.describe(model, torch.stack([transform(picture) for picture in pictures])).numpy()


def thumbnail(axis, picture, x, y, reach, colour):
    w, h = 0.085 * reach, 0.17 * reach
    axis.imshow(np.asarray(picture), extent=(x - w, x + w, y - h, y + h), aspect='auto', zorder=3)
    axis.plot([x - w, x + w, x + w, x - w, x - w], [y - h, y - h, y + h, y + h, y - h], color=colour, lw=2, zorder=4)


def neighbours(opts):
    """Re-ranking: who of the first ten has the query among its own nearest, and what order that gives."""
    tested = Tested(opts.name)
    k1 = 20
    found = np.concatenate([np.atleast_2d(tested.query.f), tested.gallery.f])
    blocks = rerank.rerank(tested.query.f, tested.gallery.f)
    again = np.concatenate([np.asarray(block) for _, block in blocks])  # (Q, G)
    index = gained(tested, again)
    near, _ = nearest(found, found, k1 + 1)
    figure = sheet(9.4, 4.3)
    axis = canvas(figure)
    for y, title, scores in ((2.2, 'by distance', None), (0.2, 're-ranked', again[index])):
        order, good = tested.ranked(index, scores)
        axis.text(0.1, y + 1.66, title, fontsize=10, color=INK)
        show(figure, tested.picture(tested.query, index), 0.1, y, 0.64, QUERY)
        for rank in range(min(10, len(order))):
            x, colour = 1.1 + 0.82 * rank, RIGHT if good[rank] else WRONG
            show(figure, tested.picture(tested.gallery, order[rank]), x, y, 0.64, colour)
            mutual = (
                index in near[len(tested.query.f) + order[rank]] and len(tested.query.f) + order[rank] in near[index]
            )
            axis.text(
                x + 0.32,
                y + 1.35,
                f'{rank + 1} {"✓" if good[rank] else "✗"}' + (' ⇄' if mutual else ''),
                ha='center',
                fontsize=8.5,
                color=colour,
            )
    axis.text(9.3, 4.1, f'⇄ each is among the {k1} nearest of the other', ha='right', fontsize=8.5, color=FAINT)
    return figure


def gained(tested, again):
    """The query whose average precision gains most, of those that had two misses at least among the first ten."""

    def gain(index):
        precision = [
            ranking.each([np.flatnonzero(tested.ranked(index, scores)[1])])['standard'][0]
            for scores in (None, again[index])
        ]
        return precision[1] - precision[0]

    return max(range(len(tested.query.f)), key=gain)


FIGURES = {
    'pipeline': pipeline,
    'cameras': cameras,
    'network': network,
    'curves': curves,
    'before': before,
    'ranks': ranks,
    'batch': batch,
    'triplet': triplet,
    'neighbours': neighbours,
}

if __name__ == '__main__':
    cli.start(main, options)
