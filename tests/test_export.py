"""Exported files say what the network says: python -m pytest tests/test_export.py

Other formats than ONNX, smaller files and the C++ program are in test_export_formats.py.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch import nn

import export
import model
import utils
from reid import augment, cli, comparing, exporting, features, runtime
from reid.problem import Problem
from reid.results import Features

SIZE = (64, 32)
ABOUT = {'run': 'x', 'which_epoch': 'last', 'size': SIZE, 'bounds': None}


def built(backbone='resnet18', head='classblock', pool='avg', **given):
    """A network as if it had been trained: no statistic is what it was at the beginning."""
    opts = argparse.Namespace(backbone=backbone, head=head, pool=pool, droprate=0.5, nclasses=5)
    vars(opts).update({name: given.get(name) for name in ('stride', 'linear_num', 'loss_feature', 'test_feature')})
    opts.height, opts.width = SIZE
    torch.manual_seed(0)
    net = model.build(model.complete(opts))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.2)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 1.5)
    return net.eval()


KEPT = tempfile.TemporaryDirectory()
PLAIN = {'linear_num': 32}


@functools.cache
def made(form, flip, kind, how):
    """A network, and the folder with what was made of it, once for all tests."""
    net, folder = built(**dict(how)), Path(tempfile.mkdtemp(dir=KEPT.name))
    path = folder / f'x{exporting.FORMATS[form][0]}'
    exporting.write(form, net, SIZE, path, ABOUT | {'dim': net.dim}, flip, kind)
    return net, path


def written(form, folder, flip=True, kind='uint8', **how):
    """A network, and in this folder the file that was made of it."""
    for package in exporting.FORMATS[form][1].split():
        pytest.importorskip(package)
    net, path = made(form, flip, kind, tuple(how.items()))
    for part in path.parent.iterdir():
        shutil.copyfile(part, folder / part.name)
    return net, folder / path.name


def noise(n):
    return np.random.default_rng(n).integers(0, 256, (n, *SIZE, 3), dtype=np.uint8)


@torch.no_grad()
def expected(net, pictures, flip=True):
    """As test.py describes pictures."""
    return features.describe(net, augment.normalise(torch.from_numpy(pictures).permute(0, 3, 1, 2)), flip).numpy()


def same(describe, net, flip=True):
    """Batches of several sizes: equal numbers, and vectors that are not all alike, or that would prove nothing."""
    for n in (1, 2, 5):
        found, right = describe(noise(n)), expected(net, noise(n), flip)
        assert found.shape == right.shape
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, right, atol=1e-5)
        assert (found * right).sum(1).min() > 0.99999
    assert not np.allclose(found[0], found[1], atol=1e-3)


@pytest.mark.parametrize(
    ('how', 'flip'),
    [
        (PLAIN, True),
        ({'head': 'pcb'}, True),
        ({'head': 'bnneck', 'pool': 'gem', 'test_feature': 'before'}, True),
        ({'backbone': 'efficientnet_lite0', 'head': 'bnneck'}, True),
        ({'backbone': 'convnext_tiny', 'head': 'linear'}, False),
    ],
)
def test_batches_of_any_size_give_what_the_network_gives(how, flip, tmp_path):
    net, path = written('onnx', tmp_path, flip, **how)
    describe = runtime.opened(path, threads=1)
    assert (describe.size, describe.dim, describe.runtime) == (SIZE, net.dim, 'onnx')
    said = {name: describe.about[name] for name in ('run', 'format', 'numbers', 'flip', 'parts', 'input')}
    numbers = {'run': 'x', 'format': 'onnx', 'numbers': 'float32', 'flip': flip, 'input': 'uint8'}
    assert said == numbers | {'parts': net.parts}
    same(describe, net, flip)


def test_pictures_may_be_float(tmp_path):
    net, path = written('onnx', tmp_path, kind='float32', **PLAIN)
    same(runtime.opened(path, threads=1), net)
    session = pytest.importorskip('onnxruntime').InferenceSession(path)
    found = session.run(None, {'pictures': np.float32(noise(3))})[0]
    np.testing.assert_allclose(found, expected(net, noise(3)), atol=1e-5)


def test_files_that_are_none_of_ours_are_sentences(tmp_path):
    with pytest.raises(Problem, match='no such file. python export.py'):
        runtime.opened(tmp_path / 'gone.onnx')
    _, path = written('onnx', tmp_path, **PLAIN)
    content = path.read_bytes()
    for name, damaged in (('text', b'no network'), ('half', content[: len(content) // 2]), ('empty', b'')):
        (tmp_path / f'{name}.onnx').write_bytes(damaged)
        with pytest.raises(Problem, match=f'{name}.onnx (cannot be run|can be read, but is none of export.py)'):
            runtime.opened(tmp_path / f'{name}.onnx')
    import onnx

    proto = onnx.load(path)
    del proto.metadata_props[:]
    for told in (None, '[]', '{"size": 3}', 'no json'):
        if told:
            onnx.helper.set_model_props(proto, {runtime.KEY: told})
        onnx.save(proto, tmp_path / 'other.onnx')
        with pytest.raises(Problem, match='none of export.py'):
            runtime.opened(tmp_path / 'other.onnx')


def test_packages_that_are_missing_are_named(tmp_path, monkeypatch):
    net, path = written('onnx', tmp_path, **PLAIN)
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(Problem, match='pip install onnx onnxscript onnxruntime'):
        exporting.write('onnx', net, SIZE, path, ABOUT)
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(Problem, match='pip install onnxruntime'):
        runtime.opened(path)


@pytest.mark.parametrize('form', ['onnx', 'openvino'])
def test_a_process_without_torch_reads_the_file(form, tmp_path):
    net, path = written(form, tmp_path, **PLAIN)
    np.save(tmp_path / 'x.npy', noise(3))
    script = """
import sys
sys.modules['torch'] = sys.modules['torchvision'] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
from reid.runtime import opened
describe = opened(sys.argv[2], threads=1)
assert describe.size == (64, 32) and describe.about['run'] == 'x'
np.save('f.npy', describe(np.load('x.npy')))
"""
    subprocess.run([sys.executable, '-c', script, str(ROOT), path.name], cwd=tmp_path, check=True)
    np.testing.assert_allclose(np.load(tmp_path / 'f.npy'), expected(net, noise(3)), atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------------
# the command


@pytest.fixture(scope='module')
def place(tmp_path_factory, card):
    """A toy data set, and a run of one epoch."""
    cwd = tmp_path_factory.mktemp('place')
    assert card('prepare.py', '--dataset', 'toy', '--ids', 12, '--images', 6, cwd=cwd).returncode == 0
    words = '--name a --data_dir data/toy --train_all --total_epoch 1 --backbone resnet18 --height 64 --width 32 '
    words += '--linear_num 32 --weights none --batchsize 8 --num_workers 0 --seed 3 --gpu_ids -1'
    done = card('train.py', *words.split(), cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


def run(place, monkeypatch, *words):
    """The command, in a run folder where it may write."""
    if '--format' not in words:
        for package in ('onnx', 'onnxscript', 'onnxruntime'):
            pytest.importorskip(package)
    monkeypatch.chdir(place)
    cli.start(export.main, export.options, ['--name', 'a', '--threads', '1', *words])


def test_the_command_compares_and_remembers(place, monkeypatch, capsys):
    run(place, monkeypatch, '--compare', '30')
    said = capsys.readouterr().out
    saved = json.loads((place / 'model/a/a.onnx.json').read_text())
    assert saved['file'] == 'a.onnx'
    assert saved['weights']['file'] == 'net_last.pth'
    found = saved['compared']
    assert found['float32']['difference'] < 1e-5
    assert found['float32']['bytes'] == (place / 'model/a/a.onnx').stat().st_size
    figures = {key: value for key, value in found['original'].items() if key != 'images_s'}
    assert figures['queries'] > 4
    assert figures == pytest.approx({key: found['float32'][key] for key in figures}, abs=0.02)
    assert 30 <= found['pictures'] < 60
    assert f'{found["pictures"]} pictures and a few random ones (threads: 1)' in said
    assert 'without thresholds: model/a/threshold.json: no threshold has been chosen yet' in said
    assert not [name for name in os.listdir(place / 'model/a') if name.startswith('.') or name.endswith('.part')]


def test_int8_is_a_quarter_and_reports_its_price(place, monkeypatch, capsys, tmp_path):
    run(place, monkeypatch, '--int8', '--calibrate', '24', '--compare', '30', '--out', str(tmp_path / 'x.onnx'))
    said = capsys.readouterr().out
    found = json.loads((tmp_path / 'x.onnx.json').read_text())['compared']
    for name in ('original', 'float32', 'int8'):
        assert found[name]['images_s'] > 0
        assert f'\n  {name}' in said
    assert f'mAP {found["int8"]["map_trapezoid"] - found["original"]["map_trapezoid"]:+.4f}' in said
    assert found['int8']['bytes'] < 0.3 * found['float32']['bytes']
    assert found['float32']['difference'] < 1e-5 < found['int8']['difference']
    assert found['int8']['cosine'] > 0.9
    assert sorted(os.listdir(tmp_path)) == ['x.onnx', 'x.onnx.json']
    describe, net = runtime.opened(tmp_path / 'x.onnx', threads=1), utils.load_run('a')[0]
    assert (describe.about['numbers'], describe.about['run']) == ('int8', 'a')
    assert (describe(noise(5)) * expected(net, noise(5))).sum(1).min() > 0.9


def test_a_file_that_differs_is_not_kept(place, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(export, 'DIFFERENCE', 0.0)
    with pytest.raises(SystemExit):
        run(place, monkeypatch, '--format', 'torchscript', '--compare', '10', '--out', str(tmp_path / 'other.pt'))
    assert 'the file differs from the network' in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_a_file_that_gives_no_numbers_is_not_kept(place, monkeypatch, capsys, tmp_path):
    nothing = {'float32': {'difference': np.nan, 'cosine': np.nan, 'images_s': 1.0, 'bytes': 1}, 'apart': 0}
    nothing |= {'pictures': 0, 'threads': 1}
    monkeypatch.setattr(export.comparing, 'compared', lambda *_: ({}, nothing))
    with pytest.raises(SystemExit):
        run(place, monkeypatch, '--format', 'torchscript', '--out', str(tmp_path / 'other.pt'))
    assert 'it was not kept' in capsys.readouterr().err
    assert not os.listdir(tmp_path)


def test_a_smaller_file_tells_what_becomes_of_its_threshold():
    """Against plain loops; and one who is not there, or a camera's own picture, is no pair."""
    rng = np.random.default_rng(0)
    query, gallery = (
        Features(rng.normal(size=(n, 4)) / 2, rng.integers(least, 4, n), rng.integers(0, 3, n), None)
        for n, least in ((20, 0), (50, -1))
    )
    counts = {True: [0, 0], False: [0, 0]}
    for i in range(20):
        for j in range(50):
            same = query.ids[i] == gallery.ids[j]
            if gallery.ids[j] == -1 or same and query.cams[i] == gallery.cams[j]:
                continue
            counts[bool(same)][0] += query.f[i] @ gallery.f[j] >= 0.3
            counts[bool(same)][1] += 1
    found = comparing.accepted(query, gallery, 0.3)
    assert found['genuine_accepted'] == pytest.approx(counts[True][0] / counts[True][1])
    assert found['impostors_accepted'] == pytest.approx(counts[False][0] / counts[False][1])
    row = {'images_s': 1.0, 'rank1': 0.5, 'map_trapezoid': 0.5, 'queries': 20, **found}
    told = {'pictures': 70, 'threads': 1, 'apart': 0.0, 'original': row, 'int8': row | {'genuine_accepted': 0.125}}
    assert 'by the threshold: 12.50 % of genuine pairs (original ' in list(comparing.lines(told, 'int8'))[-1]


def test_a_gpu_is_used_only_where_it_was_asked_for(tmp_path, monkeypatch):
    """CUDA is told to be there: what ONNX Runtime is asked for."""
    onnxruntime = pytest.importorskip('onnxruntime')
    _, path = written('onnx', tmp_path, **PLAIN)
    asked, begin = [], onnxruntime.InferenceSession

    def session(path, options, providers):
        asked.append(dict(providers))
        return begin(path, options, ['CPUExecutionProvider'])

    monkeypatch.setattr(onnxruntime, 'InferenceSession', session)
    monkeypatch.setattr(onnxruntime, 'get_available_providers', lambda: [runtime.CUDA, 'CPUExecutionProvider'])
    monkeypatch.setattr(utils.embedding, 'of_file', lambda path, threads, how, gpu: runtime.opened(path, how, 1, gpu))
    for gpu_ids in ('-1', '1', '2,3'):
        utils.embedder(argparse.Namespace(model=path, runtime=None, gpu_ids=gpu_ids, given=set()))
    assert [one.get(runtime.CUDA, {}).get('device_id') for one in asked] == [None, '1', '2']
    assert all('CPUExecutionProvider' in one for one in asked)


def test_without_a_tree_random_pictures_are_compared(place, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(export.data, 'tree', lambda *_: (_ for _ in ()).throw(Problem('data/toy: not there')))
    run(place, monkeypatch, '--format', 'torchscript', '--out', str(tmp_path / 'other.pt'), '--batchsize', '4')
    assert 'random pictures only, without Rank-1 and mAP: data/toy: not there' in capsys.readouterr().out
    found = json.loads((tmp_path / 'other.pt.json').read_text())['compared']
    assert found['pictures'] == 0
    assert 'rank1' not in found['original']
    assert found['float32']['images_s'] > 0
    with pytest.raises(SystemExit):
        run(place, monkeypatch, '--int8', '--out', str(tmp_path / 'other.onnx'))
    assert 'data/toy: not there' in capsys.readouterr().err


def test_mistakes_are_sentences(place, monkeypatch, capsys):
    for words, sentence in (
        (['--out', 'nowhere/x.onnx'], 'there is no folder nowhere'),
        (['--out', 'x.onnx', '--format', 'pt2'], 'a file of --format pt2 ends in .pt2'),
        (['--name', 'b'], 'Runs that are there: a'),
        (['--test_dir', 'nowhere'], 'there is no such folder'),
        (['--int8', '--format', 'torchscript'], '--int8 is made of --format onnx, not of torchscript'),
        (['--fp16', '--format', 'pt2'], '--fp16 is made of --format onnx or openvino, not of pt2'),
        (['--fp16', '--int8'], 'one of them, please'),
    ):
        with pytest.raises(SystemExit):
            run(place, monkeypatch, *words)
        assert sentence in capsys.readouterr().err
