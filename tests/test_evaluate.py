"""The two evaluators as a user meets them: python -m pytest tests/test_evaluate.py"""

import json

import numpy as np
import pytest
from scipy import sparse
from scipy.io import savemat

import evaluate_gpu
import evaluate_rerank
from reid import cli, results
from reid.results import Features


def people(rng, n, ids, noise=0.6):
    who = rng.choice(ids, n)
    f = np.random.default_rng(9).standard_normal((max(ids) + 2, 16))[who] + noise * rng.standard_normal((n, 16))
    f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)
    return Features(f, who, rng.integers(1, 4, n), [f'{i}.jpg' for i in range(n)])


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a run that was tested, twice: once with more noise."""
    monkeypatch.chdir(tmp_path)
    for name, noise in (('good', 0.6), ('noisy', 2.0)):
        folder = tmp_path / 'model' / name
        folder.mkdir(parents=True)
        (folder / 'opts.yaml').write_text('run: {}\n')
        rng = np.random.default_rng(0)
        parts = {'query': people(rng, 60, range(1, 12), noise), 'gallery': people(rng, 500, range(-1, 11), noise)}
        results.save(folder, 'pytorch_result', {}, **parts)
    results.save(tmp_path / 'model' / 'good', 'multi_query', {}, mquery=people(rng, 200, range(1, 12)))
    return tmp_path


def run(card, *words):
    cli.start(card.main, card.options, ['--gpu_ids', '-1', *words])


def refused(card, *words, capsys):
    """The sentence that a user sees, and nothing but it."""
    with pytest.raises(SystemExit) as end:
        run(card, *words)
    assert end.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    return said[0]


def test_a_report(place, capsys):
    run(evaluate_gpu, '--name', 'good', '--report')
    out = capsys.readouterr().out
    for words in ('95 % interval', 'from the camera of the query', '1 in 100', 'report.png'):
        assert words in out
    assert (place / 'model/good/report.png').stat().st_size > 20_000


def test_two_runs_compared(place, capsys):
    run(evaluate_gpu, '--name', 'good', '--versus', 'noisy')
    out = capsys.readouterr().out
    assert 'good less noisy, on the same 60 queries' in out
    assert 'a real difference' in out
    run(evaluate_gpu, '--name', 'good', '--versus', 'model/good/pytorch_result.mat')
    out = capsys.readouterr().out
    assert out.count('may be chance') == 4
    assert '+0.00   95 %: +0.00 to +0.00' in out


def test_expansion_and_the_best_of_several(place, capsys):
    run(evaluate_gpu, '--name', 'good', '--aqe', '3', '--dba', '4', '--alpha', '1', '--multi_by', 'max')
    assert 'multi (max) Rank@1' in capsys.readouterr().out
    metrics = json.loads((place / 'model/good/metrics.json').read_text())
    assert {name: metrics['expanded'][name] for name in ('aqe', 'dba', 'alpha')} == {'aqe': 3, 'dba': 4, 'alpha': 1}
    assert metrics['expanded']['map_trapezoid'] > metrics['map_trapezoid']
    assert metrics['multi']['by'] == 'max'


def test_re_ranking_is_recorded_with_its_settings(place, capsys):
    run(evaluate_rerank, '--name', 'good', '--k1', '12')
    assert 're-ranked Rank@1' in capsys.readouterr().out
    again = json.loads((place / 'model/good/metrics.json').read_text())['rerank']
    assert (again['k1'], again['k2'], again['lambda_value'], again['distance']) == (12, 6, 0.3, 'squared')


def test_cameras_that_are_not_known(place, capsys):
    path = place / 'model/good/pytorch_result.mat'
    (query, gallery), _ = results.load(path, 'query', 'gallery')
    query, gallery = (part._replace(cams=np.full(len(part.ids), -1)) for part in (query, gallery))
    results.save(place, 'own', {}, query=query, gallery=gallery._replace(paths=None))
    run(evaluate_gpu, 'own.mat', '--report')
    out = capsys.readouterr().out
    assert 'there is no table of them' in out
    assert '1 in 100' in out
    assert (place / 'own.report.png').is_file()


def test_from_inside_a_folder_of_arrays(place, monkeypatch, capsys):
    parts = results.load(place / 'model/good/pytorch_result.mat', 'query', 'gallery')[0]
    monkeypatch.setattr(results, 'LIMIT', 100)
    monkeypatch.chdir(results.save(place, 'arrays', {}, query=parts[0], gallery=parts[1]))
    run(evaluate_gpu, 'header.json')
    assert (place / 'arrays.metrics.json').is_file()


def change(place, **content):
    """The result of the good run with some of its variables replaced, or left out where they are None."""
    (query, gallery), _ = results.load(place / 'model/good/pytorch_result.mat', 'query', 'gallery')
    whole = {}
    for part, features in (('query', query), ('gallery', gallery)):
        whole |= {f'{part}_f': features.f, f'{part}_label': features.ids, f'{part}_cam': features.cams}
    whole |= content
    savemat(place / 'bad.mat', {name: value for name, value in whole.items() if value is not None})


def with_row(place, value):
    (query, _), _ = results.load(place / 'model/good/pytorch_result.mat', 'query', 'gallery')
    query.f[5] = value
    change(place, query_f=query.f)


BAD = {
    'nan': (lambda place: with_row(place, np.nan), 'feature 5 holds nan'),
    'zero': (lambda place: with_row(place, 0), 'feature 5 is all zeros'),
    'labels': (lambda place: change(place, gallery_label=np.arange(7)), 'with 7 labels'),
    'no gallery': (lambda place: change(place, gallery_f=None), 'gallery_f expected, found'),
    'empty': (lambda place: change(place, gallery_f=np.zeros((0, 16)), gallery_label=[], gallery_cam=[]), 'is empty'),
    'strangers': (lambda place: change(place, query_label=np.full(60, 77)), 'no query has a good image'),
    'other length': (lambda place: change(place, query_f=np.ones((60, 3))), 'differ in the length'),
    'a picture': (lambda place: (place / 'bad.mat').write_bytes(b'\xff\xd8\xff\xe0' * 99), 'cannot be read'),
    'infinite': (lambda place: change(place, query_label=np.full(60, np.inf)), 'whole numbers are expected'),
    'sparse': (lambda place: change(place, query_f=sparse.eye_array(60, format='csc')), 'holds no array of numbers'),
    'nothing': (lambda place: (place / 'bad.mat').write_bytes(b''), 'cannot be read'),
    'no file': (lambda place: None, 'there is no such file'),
    'a folder': (lambda place: (place / 'bad.mat').mkdir(), 'is a folder without a header.json'),
}


@pytest.mark.parametrize('case', BAD)
@pytest.mark.parametrize('card', [evaluate_gpu, evaluate_rerank])
def test_bad_results_are_one_sentence(place, case, card, capsys):
    make, words = BAD[case]
    make(place)
    capsys.readouterr()
    assert words in refused(card, 'bad.mat', capsys=capsys)


def test_a_truncated_result_is_one_sentence(place, capsys):
    path = place / 'model/good/pytorch_result.mat'
    path.write_bytes(path.read_bytes()[:-5000])
    assert 'cannot be read' in refused(evaluate_gpu, '--name', 'good', capsys=capsys)


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['--name', 'nobody'], 'Runs that are there: good, noisy'),
        (['--name', 'good', '--versus', 'nobody'], 'Runs that are there: good, noisy'),
        (['--name', 'good', '--versus', 'model/x.mat'], 'there is no such file'),
        (['--name', 'good', '--aqe', '501'], '--aqe 501: there are only 500 images'),
        (['--name', 'good', '--dba', '500'], '--dba 500: there are only 499 images'),
        (['--name', 'noisy', '--multi_by', 'max'], '--multi_by needs several pictures'),
    ],
)
def test_wrong_options_are_one_sentence(place, words, sentence, capsys):
    assert sentence in refused(evaluate_gpu, *words, capsys=capsys)


def test_more_neighbours_than_images(place, capsys):
    sentence = refused(evaluate_rerank, '--name', 'good', '--k1', '501', capsys=capsys)
    assert '--k1 501: the gallery holds only 500 images' in sentence
