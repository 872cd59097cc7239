"""What the tutorial shows is what runs, and what it claims can be done: python -m pytest tests/test_tutorial.py"""

import importlib.util
import json
import re
import shutil
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from reid import cli, ranking, results
from reid.problem import Problem

TUTORIAL = ROOT / 'tutorial'


def tool(name):
    spec = importlib.util.spec_from_file_location(f'tutorial_{name}', TUTORIAL / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def walked(card, tmp_path_factory):
    """A folder with a small toy data set, and an untrained network that was tested on it."""
    folder = tmp_path_factory.mktemp('tutorial')
    card('prepare.py', '--dataset', 'toy', '--ids', 12, '--images', 5, cwd=folder)
    (folder / 'configs').mkdir()
    shutil.copy(ROOT / 'configs/toy.yaml', folder / 'configs')
    small = ['--height', 64, '--width', 32, '--batchsize', 8]
    card('train.py', '--config', 'configs/toy.yaml', '--name', 'toy', '--total_epoch', 1, *small, cwd=folder)
    assert card('test.py', '--name', 'toy', cwd=folder).returncode == 0
    return folder


# ---------------------------------------------------------------------------------------------------------------------
# what is shown


def test_code_and_output_are_those_of_the_files():
    pull = tool('pull')
    for path in pull.documents():
        text = path.read_text(encoding='utf-8')
        assert pull.renewed(text, path.name) == text, f'{path.name}: python tutorial/pull.py'


SOURCE = """import os


class One:
    @property
    def a(self):
        return 1


def two():
    def inner():
        return 2

    return inner()  # the end
"""


@pytest.mark.parametrize(
    ('mark', 'expected'),
    [
        ('x.py One.a', '@property\ndef a(self):\n    return 1'),
        ('x.py inner', 'def inner():\n    return 2'),
        ('x.py "def two" ... "return 2"', 'def two():\n    def inner():\n        return 2'),
        ('x.py', SOURCE.strip()),
    ],
)
def test_pulling(mark, expected, tmp_path, monkeypatch):
    pull = tool('pull')
    monkeypatch.setattr(pull, 'ROOT', tmp_path)
    (tmp_path / 'x.py').write_text(SOURCE)
    text = f'before\n<!-- code: {mark} -->\nold\n<!-- end -->\nafter\n'
    new = pull.renewed(text, 'x.md')
    assert new == f'before\n<!-- code: {mark} -->\n```python\n{expected}\n```\n<!-- end -->\nafter\n'
    assert pull.renewed(new, 'x.md') == new


@pytest.mark.parametrize('mark', ['gone.py', 'x.py gone', 'x.py "return" ... "end"', 'x.py "def two" ... "gone"'])
def test_a_mark_that_leads_nowhere_is_a_sentence(mark, tmp_path, monkeypatch):
    pull = tool('pull')
    monkeypatch.setattr(pull, 'ROOT', tmp_path)
    (tmp_path / 'x.py').write_text(SOURCE)
    with pytest.raises(SystemExit, match='x.md'):
        pull.renewed(f'before\n<!-- code: {mark} -->\n<!-- end -->\n', 'x.md')


def test_a_mark_without_an_end_is_a_sentence():
    with pytest.raises(SystemExit, match='needs an <!-- end -->'):
        tool('pull').renewed('before\n<!-- code: make.py -->\n', 'x.md')


@pytest.mark.parametrize('language', ['', '.zh'])
def test_every_quick_question_has_an_answer(language):
    names = [f'README{language}.md', f'answers{language}.md']
    text, answers = ((TUTORIAL / name).read_text(encoding='utf-8') for name in names)
    asked = re.findall(r'^- (\d+\.\d+) ', text, re.M)
    chapters = re.findall(r'^## (\d+)\. ', text, re.M)
    assert asked == [f'{chapter}.{i}' for chapter in chapters[:-1] for i in (1, 2)]  # the last one only has work to do
    assert re.findall(r'^## (\d+\.\d+)$', answers, re.M) == asked
    for question in asked:  # and each leads to its own
        assert f'({names[1]}#{question.replace(".", "")})' in text, question


@pytest.mark.parametrize('name', ['README', 'answers'])
def test_both_languages_show_the_same(name):
    """Code, output and figures, in the same order; test_docs.py compares commands and headings."""
    english, chinese = ((TUTORIAL / f'{name}{end}').read_text(encoding='utf-8') for end in ('.md', '.zh.md'))
    for what in (r'^<!-- [^\n]* -->$', r'^```.*?^```$', r'!\[[^\]]*\]\((.*?)\)', r'^\|'):
        assert re.findall(what, chinese, re.M | re.S) == re.findall(what, english, re.M | re.S), what
    assert f'[中文]({name}.zh.md)' in english
    assert f'[English]({name}.md)' in chinese


def test_the_commands_that_were_recorded_are_those_of_the_text():
    text = (TUTORIAL / 'README.md').read_text(encoding='utf-8')
    walk = tool('walk')
    for name, command in walk.STEPS.items():
        assert command in text, name
    known = {*walk.STEPS, *(f'experiment_{name}' for name in tool('experiments').EXPERIMENTS)}
    assert {path.stem for path in (TUTORIAL / 'output').glob('*.txt')} <= known


# ---------------------------------------------------------------------------------------------------------------------
# what can be done


def test_by_hand_and_by_script_give_the_same(walked, card):
    shutil.copytree(walked / 'model', walked / 'again/model')
    done = card('tutorial/by_hand.py', '--name', 'toy', cwd=walked / 'again')
    hand = dict(re.findall(r'(Rank@\d+): ([\d.]+)', done.stdout))
    hand |= {kind: value for value, kind in re.findall(r'([\d.]+) \((\w+)\)', done.stdout)}
    card('evaluate_gpu.py', '--name', 'toy', cwd=walked / 'again')
    script = json.loads((walked / 'again/model/toy/metrics.json').read_text())
    assert script['queries_without_good'] == 0
    names = {f'Rank@{k}': f'rank{k}' for k in (1, 5, 10)}
    names |= {kind: f'map_{kind}' for kind in ('trapezoid', 'standard')}
    for ours, theirs in names.items():
        assert float(hand[ours]) == pytest.approx(script[theirs], abs=1e-6), ours
    assert 0 < script['map_standard'] < 1


@pytest.mark.parametrize('seed', range(5))
def test_each_query_by_hand_and_by_script_where_some_cameras_are_unknown(seed):
    draw, one = np.random.default_rng(seed), tool('by_hand').one
    ids, cams = draw.integers(-1, 4, 40), draw.integers(1, 4, 40)
    cams[draw.random(40) < 0.4] = -1
    f = draw.normal(size=(40, 8)).astype(np.float32)
    query, gallery = (results.Features(f[part], ids[part], cams[part], None) for part in (slice(10), slice(10, 40)))
    each = ranking.each(ranking.ranks(query, gallery))
    for i in range(10):
        hand = one(query.f[i], query.ids[i], query.cams[i], gallery) or [np.nan] * 3
        script = each['first'][i] + 1, each['standard'][i], each['trapezoid'][i]
        assert hand == pytest.approx(script, nan_ok=True), i


def test_queries_without_a_good_image_are_a_sentence_by_hand(monkeypatch):
    by_hand, f = tool('by_hand'), np.eye(2, dtype=np.float32)
    query, gallery = (results.Features(f, np.array(ids), np.array([1, 1]), None) for ids in ([1, 2], [1, 3]))
    monkeypatch.setattr(by_hand.utils, 'result_of', lambda opts: None)
    monkeypatch.setattr(by_hand.results, 'load', lambda *_: ((query, gallery), None))
    with pytest.raises(Problem, match='2 queries have no good image'):
        by_hand.main(None)


def test_the_figures_are_drawn(walked, tmp_path, monkeypatch):
    monkeypatch.chdir(walked)
    figures = tool('figures')
    monkeypatch.setattr(figures, 'QUERY_INDEX', 3)
    monkeypatch.setattr(figures, 'HARD_INDEX', 5)
    figures.main(cli.parse(figures.options(), ['--before', 'toy', '--out', str(tmp_path)]))
    drawn = {path.stem: path for path in tmp_path.glob('*.png')}
    assert set(drawn) == set(figures.FIGURES)
    for path in drawn.values():
        with Image.open(path) as picture:
            assert picture.width > 500
            assert picture.convert('RGB').getpixel((0, 0)) == (250, 248, 243)  # a ground of its own
            assert len(picture.convert('L').getcolors()) > 20  # and something on it


def test_the_figures_are_in_the_text():
    shown = set(re.findall(r'\(figures/(\w+)\.png\)', (TUTORIAL / 'README.md').read_text(encoding='utf-8')))
    assert shown == {path.stem for path in (TUTORIAL / 'figures').glob('*.png')}


def test_the_film_is_drawn_and_small(tmp_path, monkeypatch):
    film = tool('film')
    (tmp_path / 'tutorial').mkdir()
    (tmp_path / 'model/toy').mkdir(parents=True)
    shutil.copytree(TUTORIAL / 'output', tmp_path / 'tutorial/output')
    Image.new('RGB', (1500, 700), 'red').save(tmp_path / 'model/toy/show.png')
    monkeypatch.setattr(film, 'ROOT', tmp_path)
    film.main(film.options().parse_args(['--out', str(tmp_path / 'demo.gif')]))
    with Image.open(tmp_path / 'demo.gif') as drawn:
        assert drawn.n_frames > 20  # an epoch each, at least
        drawn.seek(drawn.n_frames - 1)
        assert drawn.convert('RGB').getpixel((440, 215)) == (255, 0, 0)  # it ends with the ranking
    assert (TUTORIAL / 'figures/demo.gif').stat().st_size < 1_000_000


def test_experiments_say_what_they_ask(capsys):
    experiments = tool('experiments')
    experiments.main(cli.parse(experiments.options(), ['--list']))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(experiments.EXPERIMENTS)
    assert all(line.endswith('?') for line in lines)


@pytest.mark.parametrize('name', ['zero_grad', 'no_l2', 'elsewhere', 'train_mode', 'reranking'])
def test_experiments_run(name, walked, monkeypatch, capsys):
    """With next to no epochs: that they say the truth with more of them is what tutorial/answers.md is for."""
    monkeypatch.chdir(walked)
    experiments = tool('experiments')
    if name == 'reranking':  # of a gallery of a few dozen
        monkeypatch.setattr(experiments.rerank, 'rerank', lambda q, g, **how: [(0, q @ g.T)])
    experiments.main(cli.parse(experiments.options(), [name, '--epochs', '1', '--ids', '6']))
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    figures = [row[-2:] for row in rows if re.fullmatch(r'[\d.]+', row[-1]) and row[-1] != 'mAP']
    assert len(figures) >= 2
    assert all(0 <= float(value) <= 100 for row in figures for value in row)


def test_an_experiment_that_is_none_is_a_sentence(card, tmp_path):
    done = card('tutorial/experiments.py', 'zero_grda', cwd=tmp_path)
    assert done.returncode == 2
    assert 'zero_grad' in done.stderr


def test_what_experiments_compare_is_right(walked, monkeypatch):
    """The bench ranks as evaluate_gpu.py does: shown the features of a result, it gives its figures."""
    monkeypatch.chdir(walked)
    (query, gallery), _ = results.load(walked / 'model/toy/pytorch_result.mat', 'query', 'gallery')
    figures = tool('experiments').scored(query, gallery, query.f @ gallery.f.T)
    expected = json.loads((walked / 'model/toy/metrics.json').read_text())
    for name in ('rank1', 'map_trapezoid', 'map_standard'):
        assert figures[name] == pytest.approx(expected[name], abs=1e-9), name


def test_walking_keeps_no_trace_of_the_place(tmp_path, monkeypatch, capsys):
    walk = tool('walk')
    monkeypatch.setattr(walk, 'STEPS', {'here': 'python -c "import os; print(os.getcwd() + os.sep + str(1))"'})
    monkeypatch.setattr(walk, 'ROOT', tmp_path)
    (tmp_path / 'tutorial').mkdir()
    monkeypatch.setattr(sys, 'argv', ['walk.py'])
    walk.main(walk.options().parse_args([]))
    assert (tmp_path / 'tutorial/output/here.txt').read_text() == '1\n'


def test_the_notebook_runs(tmp_path):
    """All of it, in a kernel of its own, with few people and one epoch."""
    nbformat, nbclient = pytest.importorskip('nbformat'), pytest.importorskip('nbclient')
    notebook = nbformat.read(TUTORIAL / 'reid_step_by_step.ipynb', as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get('outputs') for cell in notebook.cells)  # it is kept as it was written
    parameters = next(cell for cell in notebook.cells if cell.source.startswith('ids, images, epochs, work = '))
    parameters.source = f'ids, images, epochs, work = 12, 5, 1, {str(tmp_path)!r}'
    about = {'metadata': {'path': str(TUTORIAL)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name='python3', resources=about).execute()
    output = [out for cell in notebook.cells for out in cell.get('outputs', ())]
    text = ''.join(out.get('text', '') for out in output)
    assert 're-ranked Rank@1' in text
    assert 'mAP (standard)' in text
    assert sum('image/png' in out.get('data', {}) for out in output) == 3  # people, curves, a ranking
    assert (tmp_path / 'model/toy/show.png').is_file()
