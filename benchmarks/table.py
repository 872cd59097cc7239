"""The table of trained recipes in README.md, from results/market1501.csv; and a new row in it.

Reads:   results/market1501.csv, results/published.csv; with --add, a tested run in model/<name>
Writes:  results/market1501.csv, README.md between its two marks
Run:     python benchmarks/table.py --add strong_triplet

One row is one run: what was measured here. What others published of the same recipe stands in a column of its own.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

import utils  # noqa: E402
from reid import cli  # noqa: E402
from reid.files import read_rows, replacing, write_rows  # noqa: E402
from reid.problem import Problem  # noqa: E402

TABLE, PUBLISHED, README = ROOT / 'results/market1501.csv', ROOT / 'results/published.csv', ROOT / 'README.md'
BEGIN, END = '<!-- market1501: python benchmarks/table.py -->', '<!-- end -->'
QUERIES = 3368  # of Market-1501
COLUMNS = 'recipe changed command seed weights which_epoch ms flip rank1 map_trapezoid map_standard map_reranked '
COLUMNS = (COLUMNS + 'epochs minutes device python torch torchvision numpy commit').split()


def options():
    parser = cli.parser(__doc__)
    parser.add_argument('--add', metavar='NAME', help='put a row of this run into the table, in place of one like it')
    return parser


def main(opts):
    rows = read_rows(TABLE)
    if opts.add:
        new = row_of(opts.add)
        like = ('recipe', 'changed', 'seed', 'which_epoch', 'ms', 'flip', 'device')
        rows = [row for row in rows if any(row[name] != new[name] for name in like)] + [new]
        write_rows(TABLE, COLUMNS, sorted(rows, key=lambda row: (row['recipe'], row['changed'], row['seed'])))
        rows = read_rows(TABLE)
    text = README.read_text(encoding='utf-8')
    with replacing(README) as temporary:
        temporary.write_text(renewed(text, rows, read_rows(PUBLISHED)), encoding='utf-8', newline='\n')
    print(f'{README.name}: {len(rows)} runs')


def row_of(name):
    """What a run, its test and its evaluation left, as a row of text."""
    folder = utils.find_run(name)
    opts = yaml.safe_load((folder / 'opts.yaml').read_text(encoding='utf-8'))
    log, metrics = read_rows(folder / 'log.csv'), folder / 'metrics.json'
    if len(log) != opts['total_epoch'] or not metrics.is_file():
        raise Problem(f'{folder}: a run that is complete and tested is expected. Next: python test.py --name {name}')
    figures = json.loads(metrics.read_text(encoding='utf-8'))
    if figures['queries'] != QUERIES:
        raise Problem(f'{name} was tested with {figures["queries"]} queries: Market-1501 has {QUERIES}')
    _, about = utils.results.load(utils.results.find(folder), 'query')
    run = opts['run']
    recipe, changed = typed(run['command'])
    row = {
        'recipe': recipe,
        'changed': changed,
        'command': run['command'],
        'seed': opts['seed'],
        'weights': opts['weights'] if opts['weights'] in ('imagenet', 'none') else 'file',
        'which_epoch': about['which_epoch'],
        'ms': about['ms'],
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


def typed(command):
    """The recipe of a command, and what was typed beside it that could change a figure."""
    _, _, words = command.partition('train.py ')
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ('config', 'name', 'from', 'seed', 'gpu_ids', 'num_workers', 'cache'):
        parser.add_argument(f'--{name}')
    parser.add_argument('--data_dir', nargs='+')
    parser.add_argument('--overwrite', action='store_true')
    known, others = parser.parse_known_args(shlex.split(words))
    if not known.config:
        raise Problem(f'{command}: a run of a recipe is expected, with --config')
    return Path(known.config).stem, ' '.join(others)


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
    others = sorted(path.stem for path in (ROOT / 'configs').glob('*.yaml') if path.stem != 'toy')  # not of Market-1501
    names = list(dict.fromkeys([row['recipe'] for row in [*rows, *published]] + others))
    for name in names:
        theirs = '; '.join(
            f'{p["rank1"]} / {p["map"]} ({p["kind"]}{flip(p)}) by [{p["by"]}]({p["url"]})'
            for p in published
            if p['recipe'] == name
        )
        link = f'[{name}](configs/{name}.yaml)'
        ours = [row for row in rows if row['recipe'] == name]
        for row in ours:
            cells = [row[key] for key in ('rank1', 'map_trapezoid', 'map_standard', 'map_reranked')]
            title = ' '.join([link, *([f'`{row["changed"]}`'] if row['changed'] else [])]) + flip(row)
            lines.append(f'| {title} | {" | ".join(cells)} | {row["minutes"]} min, {row["device"]} | {theirs} |')
        if not ours:
            lines.append(f'| {link} | | | | | not yet | {theirs} |')
    return '\n'.join(lines)


def flip(row):
    return '' if row['flip'] == 'yes' else ', no flip'


if __name__ == '__main__':
    cli.start(main, options)
