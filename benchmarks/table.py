"""The table of trained recipes in README.md, from results/market1501.csv; and a new row in it.

Reads:   results/market1501.csv, results/published.csv; with --add, a tested run in model/<name>
Writes:  results/market1501.csv, README.md between its two marks
Run:     python benchmarks/table.py --add strong_triplet

One row is one run: what was measured here. What others published of the same recipe stands in a column of its own.
"""

import csv
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

import utils  # noqa: E402
from reid import cli  # noqa: E402
from reid.files import replacing  # noqa: E402
from reid.problem import Problem  # noqa: E402

TABLE, PUBLISHED, README = ROOT / 'results/market1501.csv', ROOT / 'results/published.csv', ROOT / 'README.md'
BEGIN, END = '<!-- market1501: python benchmarks/table.py -->', '<!-- end -->'
COLUMNS = 'recipe command seed weights which_epoch rank1 map_trapezoid map_standard map_reranked flip epochs minutes'
COLUMNS = [*COLUMNS.split(), 'device', 'python', 'torch', 'torchvision', 'numpy', 'commit']


def options():
    parser = cli.parser(__doc__)
    parser.add_argument('--add', metavar='NAME', help='put a row of this run into the table, in place of one like it')
    return parser


def main(opts):
    rows = read(TABLE)
    if opts.add:
        new = row_of(opts.add)
        like = ('recipe', 'command', 'seed', 'which_epoch', 'device')
        rows = [row for row in rows if any(row[name] != new[name] for name in like)] + [new]
        with replacing(TABLE) as temporary, temporary.open('w', encoding='utf-8', newline='') as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(sorted(rows, key=lambda row: (row['recipe'], row['seed'])))
        rows = read(TABLE)
    text = README.read_text(encoding='utf-8')
    with replacing(README) as temporary:
        temporary.write_text(renewed(text, rows, read(PUBLISHED)), encoding='utf-8', newline='\n')
    print(f'{README.name}: {len(rows)} runs')


def read(path):
    if not path.is_file():
        return []
    with path.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def row_of(name):
    """What a run, its test and its evaluation left, as a row of text."""
    folder = utils.find_run(name)
    opts = yaml.safe_load((folder / 'opts.yaml').read_text(encoding='utf-8'))
    log, metrics = read(folder / 'log.csv'), folder / 'metrics.json'
    if len(log) != opts['total_epoch'] or not metrics.is_file():
        raise Problem(f'{folder}: a run that is complete and tested is expected. Next: python test.py --name {name}')
    figures = json.loads(metrics.read_text(encoding='utf-8'))
    _, about = utils.results.load(utils.results.find(folder), 'query')
    run = opts['run']
    words = run['command'].split()
    recipe = Path(words[words.index('--config') + 1]).stem if '--config' in words else ''
    row = {
        'recipe': recipe,
        'command': run['command'],
        'seed': opts['seed'],
        'weights': opts['weights'] if opts['weights'] in ('imagenet', 'none') else 'file',
        'which_epoch': about['which_epoch'],
        'rank1': f'{100 * figures["rank1"]:.2f}',
        'map_trapezoid': f'{100 * figures["map_trapezoid"]:.2f}',
        'map_standard': f'{100 * figures["map_standard"]:.2f}',
        'map_reranked': f'{100 * figures["rerank"]["map_trapezoid"]:.2f}' if 'rerank' in figures else '',
        'flip': 'no' if about['no_flip'] == 'True' else 'yes',
        'epochs': opts['total_epoch'],
        'minutes': f'{sum(float(epoch["seconds"]) for epoch in log) / 60:.1f}',
    }
    row |= {name: run[name] for name in COLUMNS if name in run and name not in row}
    return {name: str(row.get(name, '')) for name in COLUMNS}


def renewed(text, rows, published):
    """README's text with the table as it is now."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise Problem(f'README.md: the marks {BEGIN} and {END} are expected, once each')
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f'{before}{BEGIN}\n{table(rows, published)}\n{END}{after}'


def table(rows, published):
    """A line a recipe: ours, if it was trained here, and what others published of it."""
    lines = [
        '| recipe | Rank@1 | mAP (trapezoid) | mAP (standard) | re-ranked | trained in | published |',
        '| --- | --- | --- | --- | --- | --- | --- |',
    ]
    names = list(dict.fromkeys([row['recipe'] for row in [*rows, *published]]))
    for name in names:
        theirs = '; '.join(
            f'{p["rank1"]} / {p["map"]} ({p["kind"]}{"" if p["flip"] == "yes" else ", no flip"}) by {p["by"]}'
            for p in published
            if p['recipe'] == name
        )
        link = f'[{name}](configs/{name}.yaml)'
        ours = [row for row in rows if row['recipe'] == name]
        for row in ours:
            cells = [row[key] for key in ('rank1', 'map_trapezoid', 'map_standard', 'map_reranked')]
            lines.append(f'| {link} | {" | ".join(cells)} | {row["minutes"]} min, {row["device"]} | {theirs} |')
        if not ours:
            lines.append(f'| {link} | | | | | not yet | {theirs} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    cli.start(main, options)
