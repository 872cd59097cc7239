"""Result files, ours and other people's: python -m pytest tests/test_results.py"""

import json
import os

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from reid import ranking, results
from reid.problem import Problem
from reid.results import Features


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)

    def part(n, name):
        f = rng.standard_normal((n, 8)).astype(np.float32)
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        paths = [f'{name}/{i:04d}/é {i}.jpg' for i in range(n)]
        return Features(f, rng.integers(1, 4, n), rng.integers(1, 4, n), paths)

    return {'gallery': part(30, 'gallery'), 'query': part(7, 'query')}


def test_the_keys_that_matlab_and_the_baseline_read(parts, tmp_path):
    path = results.save(tmp_path, 'pytorch_result', {'data_dir': '/x'}, **parts)
    assert path == tmp_path / 'pytorch_result.mat'
    content = loadmat(path)
    assert content['gallery_f'].dtype == np.float32
    assert content['gallery_f'].shape == (30, 8)
    assert content['gallery_label'].shape == content['gallery_cam'].shape == (1, 30)
    assert content['query_label'].dtype == content['query_cam'].dtype == np.int64


@pytest.mark.parametrize('limit', [2**32, 100])
def test_what_is_saved_is_loaded(parts, tmp_path, limit, monkeypatch, capsys):
    monkeypatch.setattr(results, 'LIMIT', limit)
    path = results.save(tmp_path, 'pytorch_result', {'data_dir': '/a b', 'ms': '1,1.1'}, **parts)
    assert path.name == ('pytorch_result' if limit == 100 else 'pytorch_result.mat')
    assert ('do not fit into a .mat file' in capsys.readouterr().out) == (limit == 100)
    assert results.find(tmp_path) == path
    found, about = results.load(path, 'gallery', 'query')
    assert about == {'data_dir': '/a b', 'ms': '1,1.1'}
    for ours, theirs in zip(found, (parts['gallery'], parts['query']), strict=True):
        for column in ('f', 'ids', 'cams'):
            np.testing.assert_array_equal(getattr(ours, column), getattr(theirs, column))
        assert list(ours.paths) == theirs.paths
        assert isinstance(ours.f, np.memmap) == (limit == 100)


def test_a_result_replaces_the_other_kind(parts, tmp_path, monkeypatch):
    results.save(tmp_path, 'pytorch_result', {}, **parts)
    monkeypatch.setattr(results, 'LIMIT', 100)
    results.save(tmp_path, 'pytorch_result', {}, **parts)
    assert [path.name for path in tmp_path.iterdir()] == ['pytorch_result']
    monkeypatch.setattr(results, 'LIMIT', 2**32)
    results.save(tmp_path, 'pytorch_result', {}, **parts)
    assert [path.name for path in tmp_path.iterdir()] == ['pytorch_result.mat']


def test_a_folder_of_arrays_is_a_result_like_any_other(parts, tmp_path, monkeypatch):
    expected = ranking.figures(results.evaluate(results.save(tmp_path, 'a', {}, **parts), 'cpu')[2])
    monkeypatch.setattr(results, 'LIMIT', 100)
    path = results.save(tmp_path, 'b', {}, **parts)
    results.evaluate(path, 'cpu')
    assert json.loads((tmp_path / 'b.metrics.json').read_text()) == expected
    assert results.at(path / 'header.json') == path
    halved = {name: part._replace(f=part.f.astype(np.float16)) for name, part in parts.items()}
    (query, _), _ = results.load(results.save(tmp_path, 'c', {}, **halved), 'query', 'gallery')
    assert query.f.dtype == np.float16


@pytest.mark.parametrize('break_it', ['no header', 'no json', 'a missing array', 'another shape', 'a truncated array'])
def test_broken_folders_are_sentences(parts, tmp_path, break_it, monkeypatch):
    monkeypatch.setattr(results, 'LIMIT', 100)
    path = results.save(tmp_path, 'b', {}, **parts)
    array, header = path / 'gallery_f.npy', path / 'header.json'
    {
        'no header': header.unlink,
        'no json': lambda: header.write_text('{"about": '),
        'a missing array': array.unlink,
        'another shape': lambda: np.save(array, np.ones((3, 3))),
        'a truncated array': lambda: array.write_bytes(array.read_bytes()[:500]),
    }[break_it]()
    with pytest.raises(Problem):
        results.load(path, 'query', 'gallery')


def test_results_of_the_baseline_have_no_paths(parts, tmp_path):
    query, gallery = parts['query'], parts['gallery']
    content = {'query_f': query.f, 'query_label': query.ids.tolist(), 'query_cam': query.cams.tolist()}
    content |= {'gallery_f': gallery.f, 'gallery_label': gallery.ids.tolist(), 'gallery_cam': gallery.cams.tolist()}
    savemat(tmp_path / 'theirs.mat', content)
    (found, _), about = results.load(tmp_path / 'theirs.mat', 'gallery', 'query')
    assert found.paths is None
    assert about == {}
    np.testing.assert_array_equal(found.ids, gallery.ids)


def test_evaluate_prints_and_records(parts, tmp_path, capsys):
    path = results.save(tmp_path, 'pytorch_result', {}, **parts)
    _, _, ranks = results.evaluate(path, 'cpu')
    figures = ranking.figures(ranks)
    out = capsys.readouterr().out
    assert f'Rank@1:{figures["rank1"]:.6f}' in out
    assert '(trapezoid)' in out
    assert '(standard)' in out
    assert json.loads((tmp_path / 'metrics.json').read_text()) == figures
    pool = {'mquery': parts['query']._replace(paths=['x'] * 7)}
    results.save(tmp_path, 'multi_query', {}, **pool)
    results.record(path, 'kept', rerank={'rank1': 1})
    results.evaluate(path, 'cpu', multi='max')
    metrics = json.loads((tmp_path / 'metrics.json').read_text())
    assert metrics['multi']['by'] == 'max'
    assert set(metrics) == {*figures, 'multi', 'rerank'}
    assert len((tmp_path / 'result.txt').read_text().splitlines()) == 4


def test_another_result_in_the_folder_of_a_run_leaves_its_figures_alone(parts, tmp_path):
    run = results.save(tmp_path, 'pytorch_result', {}, **parts)
    results.save(tmp_path, 'multi_query', {}, mquery=parts['query'])
    results.evaluate(run, 'cpu')
    before = (tmp_path / 'metrics.json').read_bytes()
    results.evaluate(results.save(tmp_path, 'other', {}, **parts), 'cpu')
    assert (tmp_path / 'metrics.json').read_bytes() == before
    assert 'multi' not in json.loads((tmp_path / 'other.metrics.json').read_text())


def test_a_multi_query_of_another_test_is_left_out(parts, tmp_path, capsys):
    path = results.save(tmp_path, 'pytorch_result', {}, **parts)
    pool = parts['query']
    other = results.save(tmp_path, 'multi_query', {}, mquery=pool._replace(f=pool.f[:, :-1], paths=None))
    results.evaluate(path, 'cpu')
    assert 'of another length, and so of another network: left out' in capsys.readouterr().out
    results.save(tmp_path, 'multi_query', {}, mquery=pool)
    os.utime(other, (0, 0))
    results.evaluate(path, 'cpu')
    assert 'is older than pytorch_result.mat, and so of another test: left out' in capsys.readouterr().out
    assert 'multi' not in json.loads((tmp_path / 'metrics.json').read_text())


def test_figures_of_an_older_result_do_not_stay(parts, tmp_path):
    path = results.save(tmp_path, 'pytorch_result', {}, **parts)
    results.record(path, 'old', rerank={'rank1': 1})
    os.utime(tmp_path / 'metrics.json', (0, 0))
    results.evaluate(path, 'cpu')
    assert 'rerank' not in json.loads((tmp_path / 'metrics.json').read_text())


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'not a mat file', 'cannot be read'),
        ({'query_f': np.zeros((2, 3))}, 'query_label, query_cam expected, found query_f'),
        ({'query_f': np.ones((2, 3)), 'query_label': [1], 'query_cam': [1, 2]}, 'with 1 labels and 2 cameras'),
        ({'query_f': np.zeros((2, 3)), 'query_label': [1, 2], 'query_cam': [1, 2]}, 'feature 0 is all zeros'),
        ({'query_f': np.ones((2, 3)) * np.nan, 'query_label': [1, 2], 'query_cam': [1, 2]}, 'feature 0 holds nan'),
        ({'query_f': np.ones((0, 3)), 'query_label': [], 'query_cam': []}, 'query_f is empty'),
        ({'query_f': np.ones((2, 3)), 'query_label': [1, 1.5], 'query_cam': [1, 2]}, 'whole numbers are expected'),
        ({'query_f': ['ab', 'cd'], 'query_label': [1, 2], 'query_cam': [1, 2]}, 'query_f holds no array of numbers'),
    ],
)
def test_broken_files_are_sentences(content, words, tmp_path):
    path = tmp_path / 'x.mat'
    path.write_bytes(content) if isinstance(content, bytes) else savemat(path, content)
    with pytest.raises(Problem, match=words):
        results.load(path, 'query')


def test_a_truncated_file_is_a_sentence(parts, tmp_path):
    path = results.save(tmp_path, 'x', {}, **parts)
    for size in (0, 50, 128, 300, path.stat().st_size - 10):
        (tmp_path / 'cut.mat').write_bytes(path.read_bytes()[:size])
        with pytest.raises(Problem, match=r'cut\.mat'):
            results.load(tmp_path / 'cut.mat', 'query', 'gallery')


def test_features_of_any_length_are_brought_to_one(parts, tmp_path, capsys):
    longer = {name: part._replace(f=part.f * 7) for name, part in parts.items()}
    (query,), _ = results.load(results.save(tmp_path, 'x', {}, **longer), 'query')
    assert 'features of unit length are expected' in capsys.readouterr().out
    np.testing.assert_allclose(query.f, parts['query'].f, atol=1e-6)


def test_features_of_two_networks_are_refused(parts, tmp_path):
    path = results.save(tmp_path, 'x', {}, query=parts['query'], gallery=parts['gallery']._replace(f=np.ones((30, 9))))
    with pytest.raises(Problem, match='differ in the length'):
        results.load(path, 'query', 'gallery')
