"""The table of recipes and the ladder of tricks: python -m pytest tests/test_recipes.py"""

import csv
import importlib.util
import json
import re

import numpy as np
import pytest
import yaml
from conftest import ROOT
from PIL import Image

import train
import utils
from reid import cli, losses, results
from reid.files import read_rows
from reid.problem import Problem
from reid.results import Features


def module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / 'benchmarks' / f'{name}.py')
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.fixture
def table():
    return module('table')


@pytest.fixture
def ablation(tmp_path, monkeypatch):
    found = module('ablation')
    monkeypatch.setattr(found, 'TABLE', tmp_path / 'ablation.csv')
    monkeypatch.setattr(found, 'PICTURE', tmp_path / 'ablation.png')
    return found


def test_the_readme_has_the_table_as_it_is(table):
    text = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert table.renewed(text, read_rows(table.TABLE), read_rows(table.PUBLISHED)) == text


def test_what_is_published_agrees_with_the_recipes(table):
    """Each figure also stands in the header of its recipe, as published."""
    for row in read_rows(table.PUBLISHED):
        header = (ROOT / 'configs' / f'{row["recipe"]}.yaml').read_text(encoding='utf-8')
        header = re.sub(r'\n# ', ' ', header)
        figures = re.escape(row['rank1']), re.escape(row['map'])
        assert re.search(rf'Rank@1 {figures[0]}, mAP {figures[1]} \({row["kind"]}', header), row
        assert ('--no_flip' in header) == (row['flip'] == 'no')
        assert 'as published there' in header


def test_both_ranked_lists_have_the_weight_of_their_source():
    recipes = (yaml.safe_load((ROOT / f'configs/ranked_list{end}.yaml').read_text()) for end in ('', '_clustered'))
    assert [weight for recipe in recipes for _, weight, _ in losses.parse([recipe['loss']])] == [0.4, 0.4]


def test_every_row_measured_here_is_whole(table):
    for row in read_rows(table.TABLE):
        assert list(row) == table.COLUMNS
        assert all(row[name] for name in table.COLUMNS if name not in ('map_reranked', 'changed'))
        assert row['commit'] != 'None'
        assert (ROOT / 'configs' / f'{row["recipe"]}.yaml').is_file()
        assert 0 < float(row['map_trapezoid']) < float(row['rank1']) < 100


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, 'RUNS', tmp_path)
    folder = tmp_path / 'strong'
    folder.mkdir()
    command = 'python train.py --config configs/strong_triplet.yaml --name strong --data_dir ../Market/pytorch'
    about = {'command': command, 'device': 'a GPU'}
    about |= {'nclasses': 3, 'python': '3.11', 'torch': '2.6', 'torchvision': '0.21', 'numpy': '2', 'commit': 'abc'}
    opts = {'total_epoch': 2, 'seed': 5, 'weights': 'imagenet', 'run': about}
    (folder / 'opts.yaml').write_text(yaml.safe_dump(opts))
    (folder / 'log.csv').write_text('epoch,seconds\n1,90\n2,30.0\n')
    figures = {
        'queries': 3368,
        'rank1': 0.9,
        'map_trapezoid': 0.8,
        'map_standard': 0.81,
        'rerank': {'map_trapezoid': 0.85},
    }
    (folder / 'metrics.json').write_text(json.dumps(figures))
    part = Features(np.eye(2, dtype=np.float32), np.array([1, 2]), np.array([1, 2]), ['a', 'b'])
    said = {'data_dir': 'x', 'which_epoch': 'last', 'ms': '1', 'no_flip': 'True'}
    results.save(folder, 'pytorch_result', said, gallery=part, query=part)
    return folder


def test_a_run_becomes_a_row_and_the_row_a_line(table, run, tmp_path, monkeypatch):
    monkeypatch.setattr(table, 'TABLE', tmp_path / 'market1501.csv')
    monkeypatch.setattr(table, 'README', tmp_path / 'README.md')
    (tmp_path / 'README.md').write_text(f'before\n{table.BEGIN}\nold\n{table.END}\nafter\n')
    for _ in range(2):  # the second time in place of the first
        cli.start(table.main, table.options, ['--add', 'strong'])
    (row,) = read_rows(table.TABLE)
    assert (row['recipe'], row['seed'], row['rank1'], row['map_reranked']) == ('strong_triplet', '5', '90.00', '85.00')
    assert (row['minutes'], row['flip'], row['device'], row['commit']) == ('2.0', 'no', 'a GPU', 'abc')
    text = (tmp_path / 'README.md').read_text()
    assert text.startswith('before\n')
    assert text.endswith('\nafter\n')
    assert 'old' not in text
    (line,) = [line for line in text.splitlines() if line.startswith('| [strong_triplet]')]
    begin = '| [strong_triplet](configs/strong_triplet.yaml), no flip | 90.00 | 80.00 | 81.00 | 85.00 | 2.0 min, a'
    assert line.startswith(begin)
    assert '94.18 / 85.76 (standard, no flip) by [PaddleClas](https://' in line
    assert any(line.startswith('| [convnext](configs/convnext.yaml) | | | | | not yet |') for line in text.splitlines())


def test_a_run_that_is_not_complete_is_no_row(table, run):
    (run / 'log.csv').write_text('epoch,seconds\n1,90\n')
    with pytest.raises(Problem, match='complete and tested'):
        table.row_of('strong')


def test_what_was_typed_beside_a_recipe_is_told(table):
    assert table.typed('python train.py --config=configs/pcb.yaml --seed 3 --data_dir a b') == ('pcb', '')
    assert table.typed('python train.py --name x --lr 0.1 --config c/pcb.yaml --bf16') == ('pcb', '--lr 0.1 --bf16')
    with pytest.raises(Problem, match='with --config'):
        table.typed('python train.py --name x')


def test_another_data_set_is_no_row(table, run):
    figures = json.loads((run / 'metrics.json').read_text()) | {'queries': 2228}
    (run / 'metrics.json').write_text(json.dumps(figures))
    with pytest.raises(Problem, match='2228 queries: Market-1501 has 3368'):
        table.row_of('strong')


def test_the_ladder_in_the_documents_is_that_of_the_table():
    """Every rung with every seed, and the lines of docs/training.md made of them."""
    ladder = module('ablation')
    rows = read_rows(ladder.TABLE)
    assert sorted((row['rung'], row['seed']) for row in rows) == sorted((r, s) for r in ladder.rungs() for s in '012')
    assert {(row['epochs'], row['precision']) for row in rows} == {('12', 'bf16')}
    told = (ROOT / 'docs/training.md').read_text(encoding='utf-8')
    assert '\n'.join(ladder.lines(rows)) in told


def test_the_ladder_is_made_of_options_that_there_are(ablation):
    rungs = ablation.rungs()
    assert list(rungs)[0] == 'plain'
    for words in rungs.values():
        opts = cli.parse(train.options(), [*ablation.BASE.split(), *words, '--batchsize', '64'])
        train.networks.complete(opts)
        train.what_to_learn(opts)
    assert set(rungs['+ BNNeck']) < set(rungs['+ triplet'])
    assert 'circle' not in rungs['+ triplet']


def test_a_ladder_goes_on_where_it_stopped(ablation, tmp_path, monkeypatch, capsys):
    for i in range(4):
        place = tmp_path / 'pytorch/train_all' / f'{i:04d}'
        place.mkdir(parents=True)
        Image.new('RGB', (4, 8)).save(place / f'{i:04d}_c1s1_000001_00.jpg')
    seen = []

    def trained(folder, words, seed, epochs):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append((seed, words))
        assert len(list((folder / 'pytorch/train_all').iterdir())) == 4
        return {'rank1': f'{50 + len(seen):.2f}', 'map': f'{40 + 2 * len(seen):.2f}', 'minutes': '1.0'}

    monkeypatch.setattr(ablation, 'trained', trained)
    monkeypatch.setattr(ablation, 'rungs', lambda: {'plain': ['--a'], '+ warm-up': ['--b']})
    monkeypatch.setattr(ablation, 'TRAINED', 3)
    monkeypatch.setattr(ablation, 'KEPT_OUT', 1)
    words = ['--data_dir', str(tmp_path), '--seeds', '0', '1', '--epochs', '7']
    with pytest.raises(SystemExit):
        cli.start(ablation.main, ablation.options, words)
    assert [seed for seed, _ in seen] == ['0', '0', '1']
    assert not ablation.PICTURE.exists()
    monkeypatch.setattr(ablation, 'trained', lambda *a: {'rank1': '60.00', 'map': '50.00', 'minutes': '1.0'})
    cli.start(ablation.main, ablation.options, words)
    with ablation.TABLE.open() as file:
        rows = list(csv.DictReader(file))
    assert [(row['rung'], row['seed'], row['map']) for row in rows] == [
        ('plain', '0', '42.00'),
        ('+ warm-up', '0', '44.00'),
        ('plain', '1', '46.00'),
        ('+ warm-up', '1', '50.00'),
    ]
    assert '| plain | 44.0 ± 2.8 | 52.0 ± 1.4 | 2 |' in capsys.readouterr().out
    with Image.open(ablation.PICTURE) as picture:
        assert picture.size[0] > 600
