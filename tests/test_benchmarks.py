"""The benchmarks run, and measure work that is done right: python -m pytest tests/test_benchmarks.py"""

import csv
import importlib.util

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from reid import cli, ranking, rerank, results


@pytest.fixture
def benchmark(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location('benchmark', ROOT / 'benchmarks' / 'ranking.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'TABLE', tmp_path / 'results' / 'ranking.csv')
    return module


@pytest.fixture
def features(benchmark, tmp_path):
    path = benchmark.draw(tmp_path / 'features', 40, 1500, 96)
    return path, *results.load(path, 'query', 'gallery')[0]


def test_features_are_of_the_shape_that_they_claim(features):
    _, query, gallery = features
    assert (len(query.f), len(gallery.f), query.f.shape[1]) == (40, 1500, 96)
    assert (gallery.ids == -1).sum() == int(0.19 * 1500)
    assert (gallery.ids == 0).sum() > 200
    figures = ranking.evaluate(query, gallery)
    assert 0.1 < figures['map_trapezoid'] < 0.9  # neither hopeless nor easy: there is something to count
    assert figures['queries_without_good'] < 20


def test_every_job_can_be_measured(benchmark, features):
    for job in benchmark.JOBS:
        row = benchmark.measure(job, str(features[0]))
        assert row == {'missing': 'faiss'} or (row['seconds'] >= 0 and row['peak_mb'] > 100), job


def test_the_yardsticks_do_the_same_work(benchmark, features, monkeypatch):
    """What ours is compared with has to give the same figures, or the comparison is worth nothing."""
    _, query, gallery = features
    seen = []
    monkeypatch.setattr(benchmark.ranking, 'figures', lambda ranks: seen.append(ranks))
    assert benchmark.by_sorting(query, gallery) == 1
    benchmark.evaluate(query, gallery)
    for ours, theirs in zip(*seen, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    small = gallery._replace(f=gallery.f[:400], ids=gallery.ids[:400], cams=gallery.cams[:400])
    blocks = []
    monkeypatch.setattr(benchmark.ranking, 'ranks_in', lambda found, *_: blocks.extend(found))
    benchmark.dense_rerank(query, small)
    expected = np.concatenate([block.numpy() for _, block in rerank.rerank(query.f, small.f)])
    np.testing.assert_allclose(blocks[0][1], expected, atol=1e-5)


def test_a_table_and_a_picture(benchmark, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, 'SIZES', {'20k': 1200, '100k': 1500})
    words = ['--sizes', '20k', '100k', '--dims', '512', '--jobs', 'product', 'evaluate', 'ten nearest']
    monkeypatch.setattr(benchmark, 'run', benchmark.measure)  # in this process, which knows the smaller sizes
    for _ in range(2):  # the second time replaces the first
        benchmark.main(benchmark.cli.parse(benchmark.options(), [*words, '--plot']))
        with benchmark.TABLE.open(newline='') as file:
            rows = list(csv.DictReader(file))
        assert [(row['job'], row['gallery']) for row in rows] == [
            (job, size) for size in ('1200', '1500') for job in ('product', 'evaluate', 'ten nearest')
        ]
    assert [row['ratio'] for row in rows if row['job'] == 'product'] == ['1.0', '1.0']
    assert benchmark.TABLE.with_suffix('.png').stat().st_size > 10_000
    assert 'evaluate' in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------------------
# throughput


@pytest.fixture
def throughput(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location('throughput', ROOT / 'benchmarks' / 'throughput.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, 'TABLE', tmp_path / 'throughput.csv')
    monkeypatch.setattr(module, 'PICTURE', tmp_path / 'throughput.png')
    monkeypatch.setattr(module, 'best_product', lambda device, precision: 1e12)
    for i in range(6):
        path = tmp_path / f'train_all/000{i // 3}/000{i // 3}_c1s1_00000{i}_00.jpg'
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 20, 3), 40 * i, np.uint8)).save(path)
    return module


SMALL = '--backbone resnet18 --height 64 --width 32 --batchsize 3 --batches 2 --gpu_ids -1 --precision bf16'.split()


def test_each_job_does_the_same_work_as_the_plain_one(throughput, tmp_path, monkeypatch):
    def in_this_process(job):
        opts = cli.parse(throughput.options(), [*words, '--one', job])
        return throughput.measure(opts, torch.device('cpu'))

    monkeypatch.setattr(throughput, 'run', in_this_process)
    words = ['--data_dir', str(tmp_path), *SMALL]
    throughput.main(cli.parse(throughput.options(), [*words, '--plot']))
    with throughput.TABLE.open() as file:
        rows = {row['job']: row for row in csv.DictReader(file)}
    assert list(rows) == list(throughput.JOBS)
    for job, row in rows.items():
        assert float(row['images_s']) > 0
        assert row['precision'] == ('float32' if job.startswith('plain') else 'bf16')
        assert (row['ratio'] == '') == job.startswith('plain')
        assert (row['backward'] == '') == (not job.endswith('training'))
    assert throughput.PICTURE.stat().st_size > 10_000
    throughput.main(cli.parse(throughput.options(), [*words, '--jobs', 'plain loading', 'loading']))
    with throughput.TABLE.open() as file:  # what was measured again takes the place of what was
        assert len(list(csv.DictReader(file))) == len(rows)


def test_both_describe_the_same_pictures_alike(throughput, tmp_path, monkeypatch):
    opts = cli.parse(throughput.options(), ['--data_dir', str(tmp_path), *SMALL])
    x, _ = next(iter(throughput.plain_batches(opts, torch.device('cpu'), train=False)))
    model = throughput.network(opts).eval()
    with torch.no_grad():
        plain = torch.nn.functional.normalize(model.embed(x) + model.embed(x.flip(3)))
    ours = throughput.features.extract(model, throughput.pictures(opts)[0][:3], (64, 32), torch.device('cpu'), 3)
    np.testing.assert_allclose(ours, plain.numpy(), atol=1e-5)


def test_operations_are_counted(throughput, tmp_path):
    """ResNet-50 at 256x128 and stride 1 takes 4.1 billion multiplications and additions each, forwards; backwards twice
    that, but for the first layer, which has nobody to pass a gradient to."""
    opts = cli.parse(throughput.options(), ['--data_dir', str(tmp_path), '--backbone', 'resnet50'])
    assert throughput.flops(opts, torch.device('cpu')) == pytest.approx(3 * 2 * 4.06e9, rel=0.02)


def test_the_video_benchmark_goes_both_ways_over_the_same_frames(tmp_path):
    pytest.importorskip('cv2')
    spec = importlib.util.spec_from_file_location('video', ROOT / 'benchmarks' / 'video.py')
    video = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(video)
    path = video.drawn(tmp_path / 'x.avi', 1.0)
    embedder, box = video.untrained(torch.device('cpu')), np.array([[100.0, 100, 200, 400]])
    seen = []

    def detect(picture):
        seen.append(picture.shape)
        return box, np.array([0.9])

    row = video.plain(path, detect, embedder)
    assert seen == [(576, 768, 3)] * 25
    assert row['people'] == 1
    row = video.ours(path, detect, embedder, 5, tmp_path / 'found')
    assert len(seen) == 25 + 5
    assert row['tracks'] == 1
    assert {'read', 'detect', 'track', 'embed', 'write', 'frames_s'} <= set(row)
    assert set(row) <= set(video.COLUMNS)
