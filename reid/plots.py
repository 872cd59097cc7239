"""The pictures that the scripts make: the course of a training, a report, thresholds, costs, rankings, heat maps.

Drawn on figures of their own, without pyplot, so that no screen is needed and nothing is left open. Matplotlib takes
half a second to import: that waits until there is something to draw.
"""

import numpy as np

from reid.files import replacing

INK, FAINT = '#222222', '#8a8a8a'
RIGHT, WRONG, JUNK, QUERY = '#1a9850', '#d73027', '#9a9a9a', '#2b6cb0'  # told apart by their labels as well
DPI = 150


def new_figure(**settings):
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    rcParams['text.parse_math'] = False  # names of files may hold $: they are shown, not set as formulas

    return Figure(**settings)


def save(figure, path):
    suffix = path.suffix.lstrip('.')
    with replacing(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=DPI, facecolor='white')


def curves(log, path):
    """train.jpg: loss and top-1 error of train and val, and the held-out ranking where there is one."""
    ranked = [row for row in log if 'rank1' in row]
    figure = new_figure(figsize=(12 if ranked else 8, 3.6), layout='constrained')
    axes = figure.subplots(1, 3 if ranked else 2)
    epochs = [row['epoch'] for row in log]
    mark = 'o' if len(log) < 30 else None
    for axis, key, title in ((axes[0], 'loss', 'loss'), (axes[1], 'top1err', 'top-1 error')):
        for phase, colour in (('train', QUERY), ('val', WRONG)):
            if f'{phase}_{key}' in log[0]:
                axis.plot(epochs, [row[f'{phase}_{key}'] for row in log], color=colour, marker=mark, ms=3, label=phase)
        axis.set(title=title, xlabel='epoch', ylim=(0, None))
        axis.legend(frameon=False)
    if ranked:
        epochs = [row['epoch'] for row in ranked]
        for key, title, colour in (('rank1', 'Rank@1', RIGHT), ('map', 'mAP (trapezoid)', FAINT)):
            axes[2].plot(epochs, [row[key] for row in ranked], color=colour, marker='o', ms=3, label=title)
        axes[2].set(title='held-out identities', xlabel='epoch', ylim=(0, 1))
        axes[2].legend(frameon=False)
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.grid(alpha=0.25)
    save(figure, path)


def report(ranks, same, different, path):
    """report.png: who is found by which rank, what a threshold finds and confuses, and the scores behind it."""
    figure = new_figure(figsize=(12, 3.6), layout='constrained')
    axes = figure.subplots(1, 3)
    most = 50
    first = np.array([r[0] if len(r) else most for r in ranks])
    reached = np.cumsum(np.bincount(np.minimum(first, most), minlength=most + 1))[:most] / len(ranks)
    axes[0].plot(np.arange(1, most + 1), reached, color=RIGHT)
    axes[0].set(title='found by rank (CMC)', xlabel='rank', xlim=(1, most), ylim=(None, 1.005))

    alarms, hits = (np.cumsum(count[::-1]) / max(count.sum(), 1) for count in (different, same))
    least = min(1 / max(different.sum(), 1), 0.1)
    axes[1].plot(np.maximum(alarms, least), hits, color=QUERY)
    axes[1].set(title='one pair (ROC)', xlabel='false alarms', ylabel='found', xscale='log', ylim=(0, 1.005))
    axes[1].set_xlim(max(least, 1e-6), 1)

    wide = len(same) // 128
    edges = np.linspace(-1, 1, 129)
    for count, colour, title in ((different, WRONG, 'two people'), (same, RIGHT, 'one person')):
        share = count.reshape(-1, wide).sum(1) / max(count.sum(), 1)
        axes[2].stairs(share, edges, color=colour, fill=True, alpha=0.35)
        axes[2].stairs(share, edges, color=colour, label=title)
    seen = np.flatnonzero((same + different).reshape(-1, wide).sum(1))
    axes[2].set(title='scores of pairs', xlabel='cosine', yticks=[], xlim=(edges[seen[0]], edges[seen[-1] + 1]))
    axes[2].legend(frameon=False, loc='upper left')
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.25)
    save(figure, path)


def threshold(same, different, saved, path):
    """threshold.png: the scores of pairs with the bounds between the verdicts, and what is found at which false accept
    rate. Histograms of the scores of genuine and of impostor pairs, from -1 to 1, and what threshold.json says of them.
    """
    figure = new_figure(figsize=(12, 4.6), layout='constrained')
    axes = figure.subplots(1, 2, width_ratios=(3, 2))
    verdicts(axes[0], same, different, saved)
    rows, error = saved['thresholds'], saved['equal_error']
    alarms, hits = (np.cumsum(count[::-1]) / count.sum() for count in (different, same))
    least = 1 / different.sum()
    axes[1].plot(np.maximum(alarms, least), hits, color=QUERY)
    points = [(row['far'], row['found'], f'FAR {row["far"]:g}: {100 * row["found"]:.1f} % found') for row in rows]
    points.append((error['rate'], 1 - error['rate'], f'equal error {100 * error["rate"]:.1f} %'))
    for i, (rate, found, text) in enumerate(points):
        style = {'marker': 'os^Dv'[i % 5], 'color': INK, 'mfc': 'white' if text.startswith('equal') else INK}
        axes[1].plot(max(rate, least), found, ls='', ms=6, clip_on=False, label=text, **style)
    axes[1].set(title='one pair (ROC)', xlabel='false accept rate (FAR)', ylabel='found', xscale='log')
    axes[1].set(xlim=(least, 1), ylim=(0, 1.005))
    axes[1].legend(frameon=False, loc='lower right' if rows[0]['found'] > 0.5 else 'upper left')
    for axis in axes:
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.25)
    save(figure, path)


def verdicts(axis, same, different, saved):
    """The left half: two histograms, the thresholds, and what is said of a score."""
    bounds, rows = saved['bounds'], saved['thresholds']
    marks = [(row['threshold'], f'FAR {row["far"]:g} from {row["threshold"]:.3f}', INK) for row in rows]
    marks[0] = *marks[0][:2], RIGHT
    if bounds['not_same'] < bounds['same']:
        text = f'{100 * bounds["found"]:g} % of one person from {bounds["not_same"]:.3f}'
        marks.append((bounds['not_same'], text, WRONG))
    marks.sort()
    middles = (np.arange(len(same)) + 0.5) * 2 / len(same) - 1
    seen = np.flatnonzero(same + different)
    left, right = min(middles[seen[0]], marks[0][0]), middles[seen[-1]]
    right = max(right, left + (marks[-1][0] - left) / 0.8)  # room for the last label

    edges, top = np.linspace(left, right, 101), 0
    for count, colour, title in ((different, WRONG, 'two people'), (same, RIGHT, 'one person')):
        share, _ = np.histogram(middles[seen], edges, weights=count[seen] / count.sum())
        axis.stairs(share, edges, color=colour, fill=True, alpha=0.35)
        axis.stairs(share, edges, color=colour, label=f'{count.sum():,} pairs of {title}')
        top = max(top, share.max())
    for i, (score, text, colour) in enumerate(marks):  # each line ends lower than the one before, below its label
        height = top * (1.1 + 0.3 * (len(marks) - i) / len(marks))
        axis.vlines(score, 0, height, color=colour, lw=1.3, ls='--')
        axis.annotate(text, (score, height), (4, 0), textcoords='offset points', va='center', fontsize=8, color=colour)
    below, above = bounds['not_same'], bounds['same']
    middle = np.clip(((below + above) / 2 - left) / (right - left), 0.3, 0.7)  # clear of the words beside it
    for start, end, x, place, colour, text in (
        (left, below, 0.01, 'left', WRONG, 'not the same'),
        (below, above, middle, 'center', INK, 'unsure'),
        (above, right, 0.99, 'right', RIGHT, 'same'),
    ):
        if start < end:
            axis.axvspan(start, end, color=colour, alpha=0.08, lw=0)
            axis.text(x, 0.97, text, color=colour, ha=place, va='top', transform=axis.transAxes)
    axis.set(title='scores of pairs', xlabel='score (cosine)', yticks=[], xlim=(left, right), ylim=(0, 1.65 * top))
    axis.legend(frameon=False, loc='upper center', bbox_to_anchor=(0.5, -0.13), ncols=2)


def costs(panels, title, path):
    """What jobs take as the gallery grows, side by side: {heading: {job: [(gallery, seconds)]}}, in powers of ten."""
    figure = new_figure(figsize=(12, 4.6), layout='constrained')
    figure.suptitle(title, fontsize=8, color=FAINT)
    colours = [INK, RIGHT, WRONG, QUERY, '#b8860b', '#7b3294']
    for axis, (heading, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for (job, points), colour in zip(lines.items(), colours, strict=False):
            sizes, seconds = zip(*sorted(points), strict=True)
            axis.plot(sizes, seconds, color=colour, marker='o', ms=4, ls='--' if 'product' in job else '-', label=job)
        axis.set(title=heading, xscale='log', yscale='log', xlabel='gallery images', ylabel='seconds')
        axis.xaxis.set_minor_formatter('')  # a range of little more than ten would be labelled all over
        axis.legend(frameon=False)
        axis.spines[['top', 'right']].set_visible(False)
        axis.grid(alpha=0.25)
    save(figure, path)


# ---------------------------------------------------------------------------------------------------------------------
# a ranking: one row for the query and its hits, one for their heat maps, one for the junk that was left out

SIZE = (128, 256)  # every picture is shown at one size, whatever its box was


def ranking(query, hits, junk, title, note, path, heat=None):
    """query: a picture; hits: [(picture, caption, verdict)], the verdict True, False or None (not known);
    junk: as many at most, [(picture, caption)], that scored as high; heat: (1 + hits, h, w) or None."""
    columns, rows = len(hits) + 1, 1 + (heat is not None) + bool(junk)
    figure = new_figure(figsize=(1.08 * columns + 0.5, 2.45 * rows + 0.6))
    grid = figure.add_gridspec(
        rows,
        columns + 1,
        width_ratios=[1, 0.18] + [1] * len(hits),  # a gap between the query and the rest
        left=0.012,
        right=0.988,
        top=1 - 0.66 / figure.get_figheight(),
        bottom=0.3 / figure.get_figheight(),
        wspace=0.1,
        hspace=0.19,
    )
    figure.text(0.012, 1 - 0.2 / figure.get_figheight(), title, fontsize=11, color=INK, va='center')
    place = [0, *range(2, columns + 1)]

    cell(figure.add_subplot(grid[0, 0]), query, QUERY, 'query', '')
    for i, (picture, caption, verdict) in enumerate(hits):
        colour, mark = {True: (RIGHT, ' ✓'), False: (WRONG, ' ✗'), None: (FAINT, '')}[verdict]
        cell(figure.add_subplot(grid[0, place[i + 1]]), picture, colour, f'{i + 1}{mark}', caption)
    if heat is not None:
        for i, (picture, colour) in enumerate([(query, QUERY)] + [(hit[0], FAINT) for hit in hits]):
            axis = figure.add_subplot(grid[1, place[i]])
            cell(axis, picture, colour, '', '')
            extent = (0, SIZE[0], SIZE[1], 0)
            axis.imshow(heat[i], cmap='turbo', alpha=0.5, vmin=0, vmax=1, extent=extent, interpolation='bilinear')
    for i, (picture, caption) in enumerate(junk):
        cell(figure.add_subplot(grid[-1, place[i + 1]]), picture, JUNK, 'junk', caption, dashed=True)
    if junk:
        axis = figure.add_subplot(grid[-1, 0])
        axis.set_axis_off()
        axis.text(0.5, 0.5, note, ha='center', va='center', fontsize=8, color=FAINT, transform=axis.transAxes)
    save(figure, path)


def cell(axis, picture, colour, above, below, dashed=False):
    """One picture in a frame, a word above and one below."""
    axis.imshow(np.asarray(picture.resize(SIZE)), aspect='auto', extent=(0, SIZE[0], SIZE[1], 0))
    axis.set(xticks=[], yticks=[])
    for spine in axis.spines.values():
        spine.set(color=colour, linewidth=2.6, linestyle=(0, (3, 2)) if dashed else '-')
    axis.set_title(above, fontsize=10, color=colour, pad=4)
    axis.set_xlabel(below, fontsize=8, color=INK, labelpad=4)
