"""Does a file say what the network says? The same pictures through both: numbers, ranking, speed."""

import time

import numpy as np
import torch

from reid import cache, data, ranking, runtime
from reid.results import Features


def decoded(paths, size):
    return np.stack([cache.decode(path, *size) for path in paths])


def batches(paths, size, batchsize):
    """Two small ones of random pixels, since a file takes batches of any size; then the pictures, or more of those."""
    rng = np.random.default_rng(0)
    for n in (1, 3) if paths else (1, 3, batchsize, batchsize):
        yield rng.integers(0, 256, (n, *size, 3), dtype=np.uint8)
    for i in range(0, len(paths), batchsize):
        yield decoded(paths[i : i + batchsize], size)


def compared(original, files, query, gallery, size, batchsize, threads, least=None):
    """original: a function pictures -> features; files: {name: path}; query and gallery: People; least: the score from
    which on two pictures are of the same person, or None.
    -> what the last of the files says of itself, and a dict: figures and speed of the original and of each file, and
    how far the numbers of a file are from the original's."""
    torch.set_num_threads(threads)
    runs = {'original': original}
    runs |= {name: runtime.opened(path, threads=threads) for name, path in files.items()}
    paths = [*query.paths, *gallery.paths]
    features, seconds = {name: [] for name in runs}, dict.fromkeys(runs, 0.0)
    for i, batch in enumerate(batches(paths, size, batchsize)):
        for name, run in runs.items():  # in turn, so that what else the machine does hits all of them
            began = time.perf_counter()
            features[name].append(run(batch))
            seconds[name] += time.perf_counter() - began if i > 1 else 0  # the first ones warm up
    features = {name: np.concatenate(parts) for name, parts in features.items()}
    one = features['original']
    found = {'pictures': len(paths), 'threads': threads}
    found['apart'] = float((one @ one[0]).min())  # the least likeness of any to the first: 1, if all are alike
    for name, f in features.items():
        found[name] = {'images_s': round((len(f) - 4) / seconds[name], 1)}
        if name in files:
            found[name]['bytes'] = sum(path.stat().st_size for path in files[name].parent.iterdir())
            found[name]['difference'] = float(np.abs(f - one).max())
            found[name]['cosine'] = float((f * one).sum(1).min())
        if paths:
            found[name] |= figures(f[4:], query, gallery, least)
    return list(runs.values())[-1].about, found


def figures(f, query, gallery, least):
    """Rank-1 and the like of descriptors (N, D), those of the queries first."""
    ids = data.numbers(query, gallery)
    parts = zip((f[: len(query.paths)], f[len(query.paths) :]), ids, (query, gallery), strict=True)
    query, gallery = (Features(f, numbers, people.cams, None) for f, numbers, people in parts)
    return ranking.evaluate(query, gallery) | ({} if least is None else accepted(query, gallery, least))


def accepted(query, gallery, least):
    """The shares of genuine and of impostor pairs, of a query and a gallery picture, whose score is `least` or more."""
    reached = query.f @ gallery.f.T >= least  # (Q, G)
    good, junk = ranking.judge(query.ids[:, None], query.cams[:, None], gallery.ids, gallery.cams)
    pairs = {'genuine_accepted': good, 'impostors_accepted': ~good & ~junk}
    return {name: float(reached[these].mean()) for name, these in pairs.items() if these.any()}


def lines(found, how):
    """The comparison in words."""
    yield f'{found["pictures"]} pictures and a few random ones (threads: {found["threads"]}):'
    names = [name for name in found if isinstance(found[name], dict)]
    for name in names:
        row = found[name]
        text = f'  {name:8s} {row["images_s"]:7,.0f} images/s'
        if 'rank1' in row:
            text += f'  Rank@1 {row["rank1"]:.4f} mAP {row["map_trapezoid"]:.4f} (trapezoid)'
        if 'bytes' in row:
            text += f'  {row["bytes"] / 1e6:.1f} MB  largest difference {row["difference"]:.1e}'
            text += f', smallest cosine {row["cosine"]:.7f}'
        yield text
    if found['apart'] > 0.999:
        yield '  (to this network all pictures are alike, so the comparison says little. Is it trained?)'
    if how and 'rank1' in found[how]:
        gains = [found[how][key] - found['original'][key] for key in ('rank1', 'map_trapezoid')]
        yield '  {} against the original: Rank@1 {:+.4f}, mAP {:+.4f}, of {} queries'.format(
            how, *gains, found[how]['queries']
        )
    if how and {'genuine_accepted', 'impostors_accepted'} <= set(found[how]):
        shares = [100 * found[name][kind] for kind in ('genuine_accepted', 'impostors_accepted')
                  for name in (how, 'original')]  # fmt: skip
        yield (
            '  taken for the same by the threshold: {:.2f} % of genuine pairs (original {:.2f} %), '
            '{:.3f} % of impostor pairs (original {:.3f} %)'.format(*shares)
        )
