"""Other formats, smaller files, and the C++ program: python -m pytest tests/test_export_formats.py"""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_export import ABOUT, PLAIN, SIZE, expected, noise, same, written

from reid import exporting, runtime, shrinking
from reid.problem import Problem

GEM = {'head': 'bnneck', 'pool': 'gem', 'test_feature': 'before'}


@pytest.mark.parametrize(
    ('form', 'how', 'flip'),
    [
        ('torchscript', PLAIN, True),
        ('torchscript', PLAIN, False),
        ('torchscript', {'head': 'pcb'}, True),
        ('torchscript', GEM, True),
        ('torchscript', {'backbone': 'osnet_x0_25'}, True),
        ('pt2', PLAIN, True),
        ('pt2', PLAIN, False),
        ('pt2', {'head': 'pcb'}, True),
        ('pt2', GEM, True),
        ('openvino', PLAIN, True),
        ('openvino', {'head': 'pcb'}, False),
        ('openvino', GEM, True),
        ('ncnn', PLAIN, True),
        ('ncnn', PLAIN, False),
        ('ncnn', {'head': 'pcb'}, True),
        ('ncnn', GEM, True),
        ('ncnn', {'backbone': 'efficientnet_lite0', 'head': 'bnneck'}, True),
    ],
)
def test_each_format_says_what_the_network_says(form, how, flip, tmp_path):
    net, path = written(form, tmp_path, flip, **how)
    describe = runtime.opened(path, threads=1)
    assert (describe.size, describe.dim, describe.about['format']) == (SIZE, net.dim, form)
    assert (describe.about['flip'], describe.about['parts'], describe.about['run']) == (flip, net.parts, 'x')
    same(describe, net, flip)


def test_openvino_runs_onnx_too(tmp_path):
    pytest.importorskip('openvino')
    net, path = written('onnx', tmp_path, **PLAIN)
    describe = runtime.opened(path, 'openvino', threads=1)
    assert (describe.runtime, describe.about['format']) == ('openvino', 'onnx')
    same(describe, net)


def test_a_file_and_a_runtime_that_do_not_go_together(tmp_path):
    for name in ('x.onnx', 'x.xml', 'x.ncnn.param', 'x.pth'):
        (tmp_path / name).write_text('')
    for name, how, sentence in (
        ('x.ncnn.param', 'onnx', 'cannot be run by onnx, but by ncnn'),
        ('x.onnx', 'torch', 'cannot be run by torch, but by onnx or openvino or tensorrt'),
        ('x.xml', 'tensorrt', 'but by openvino'),
        ('x.pth', None, r'ends in .onnx, .xml, .pt, .pt2, .param'),
    ):
        with pytest.raises(Problem, match=sentence):
            runtime.opened(tmp_path / name, how)
    assert set(runtime.RUNTIMES) == {'onnx', 'openvino', 'tensorrt', 'torch', 'ncnn'}


def test_tensorrt_that_is_not_there_is_a_sentence(tmp_path):
    _, path = written('onnx', tmp_path, **PLAIN)
    import onnxruntime

    if runtime.TENSORRT in onnxruntime.get_available_providers():
        pytest.skip('it may be there')
    with pytest.raises(Problem, match='needs an NVIDIA GPU, and pip install onnxruntime-gpu tensorrt'):
        runtime.opened(path, 'tensorrt')


@pytest.mark.parametrize('form', ['openvino', 'ncnn'])
def test_files_that_belong_together_stay_together(form, tmp_path):
    _, path = written(form, tmp_path, **PLAIN)
    other = path.with_suffix('.bin')
    content = bytearray(other.read_bytes())
    content[-8:] = bytes(8)  # of another export, it might be
    other.write_bytes(content)
    with pytest.raises(Problem, match='not written together with'):
        runtime.opened(path)
    other.unlink()
    with pytest.raises(Problem, match=r'cannot be run|is not there'):
        runtime.opened(path)


def test_ncnn_without_its_json_is_a_sentence(tmp_path):
    _, path = written('ncnn', tmp_path, **PLAIN)
    (tmp_path / 'x.ncnn.param.json').unlink()
    with pytest.raises(Problem, match='none of export.py'):
        runtime.opened(path)


@pytest.mark.parametrize('suffix', ['.xml', '.pt', '.pt2', '.ncnn.param'])
def test_damaged_files_are_sentences(suffix, tmp_path, capfd):
    pytest.importorskip({'.xml': 'openvino', '.ncnn.param': 'ncnn'}.get(suffix, 'torch'))
    path = tmp_path / f'x{suffix}'
    for content in (b'', b'nothing of the sort', os.urandom(500)):
        path.write_bytes(content)
        with pytest.raises(Problem, match='cannot be run|none of export.py'):
            runtime.opened(path)


def test_weights_are_not_unpickled(tmp_path):
    """A .pt that torch.save wrote may hold any code: it is refused, and nothing of it is run."""

    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'sprung'),)

    torch.save({'weights': Trap()}, tmp_path / 'x.pt')
    with pytest.raises(Problem, match='cannot be run'):
        runtime.opened(tmp_path / 'x.pt')
    assert not (tmp_path / 'sprung').exists()


@pytest.mark.parametrize(
    ('form', 'package'), [('openvino', 'openvino'), ('ncnn', 'ncnn'), ('ncnn', 'pnnx'), ('onnx', 'onnxruntime')]
)
def test_packages_that_are_missing_are_named(form, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(Problem, match=f'--format {form} needs .* pip install .*{package}'):
        exporting.write(form, None, SIZE, tmp_path / 'x', ABOUT)
    path = tmp_path / f'x{exporting.FORMATS[form][0]}'
    path.write_text('')
    if package != 'pnnx':  # it writes, and is not needed to run
        with pytest.raises(Problem, match=f'is run by a package that is not here: pip install {package}'):
            runtime.opened(path)


def test_openvino_tells_nobody_that_it_runs():
    pytest.importorskip('openvino')
    script = 'import sys; import reid.runtime, openvino; assert not sys.modules["openvino_telemetry"]; openvino.Core()'
    subprocess.run([sys.executable, '-c', script], cwd=ROOT, check=True)


class Odd(torch.nn.Module):
    """What it computes depends on what it sees: no graph can say that."""

    parts = 1

    def embed(self, x):
        return x.flatten(1) if x.sum().item() > 0 else -x.flatten(1)


@pytest.mark.parametrize('form', ['onnx', 'pt2', 'openvino'])
def test_a_network_that_cannot_be_exported_is_a_sentence(form, tmp_path, monkeypatch, capfd):
    for package in exporting.FORMATS[form][1].split():
        pytest.importorskip(package)
    monkeypatch.setattr(exporting.folding, 'quick', lambda net, size: net)
    with pytest.raises(Problem, match=f'--format {form} cannot be made of this network') as caught:
        exporting.write(form, Odd(), SIZE, tmp_path / f'x{exporting.FORMATS[form][0]}', ABOUT | {'dim': 6144})
    assert '\n' not in str(caught.value)
    assert not capfd.readouterr().out


@pytest.mark.parametrize('form', ['onnx', 'openvino'])
def test_half_the_bits_are_half_the_size_and_nearly_the_same(form, tmp_path):
    net, path = written(form, tmp_path, **PLAIN)
    smaller = tmp_path / 'half' / path.name
    smaller.parent.mkdir()
    shrinking.shrink('fp16', path, smaller, runtime.opened(path).about)
    describe = runtime.opened(smaller, threads=1)
    assert (describe.about['numbers'], describe.about['run']) == ('float16', 'x')
    sizes = [sum(part.stat().st_size for part in folder.glob('x.*')) for folder in (tmp_path, smaller.parent)]
    assert sizes[1] < 0.55 * sizes[0]
    found, right = describe(noise(5)), expected(net, noise(5))
    assert 1e-6 < np.abs(found - right).max() < 0.01
    assert (found * right).sum(1).min() > 0.9999


# ---------------------------------------------------------------------------------------------------------------------
# C++


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    openvino = pytest.importorskip('openvino')
    if not shutil.which('cmake') or not (shutil.which('c++') or shutil.which('cl')):
        pytest.skip('no cmake, or no C++ compiler')
    build = tmp_path_factory.mktemp('build')
    where = f'-DOpenVINO_DIR={openvino.__path__[0]}/cmake'
    for words in (['-S', ROOT / 'examples' / 'cpp', '-B', build, where], ['--build', build, '--config', 'Release']):
        done = subprocess.run(['cmake', *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return next(path for path in build.rglob('describe*') if path.name in ('describe', 'describe.exe'))


def ppm(path, picture):
    height, width, _ = picture.shape
    path.write_bytes(b'P6\n# of noise\n%d %d\n255\n' % (width, height) + picture.tobytes())
    return path


def test_the_cpp_program_prints_the_same_vector(program, tmp_path):
    net, model = written('onnx', tmp_path, kind='float32', **PLAIN)
    _, xml = written('openvino', tmp_path, **PLAIN)
    describe, picture = runtime.opened(model, threads=1), noise(1)
    for path in (model, xml):
        done = subprocess.run([program, path, ppm(tmp_path / 'x.ppm', picture[0])], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found = np.array([float(line) for line in done.stdout.splitlines()], np.float32)
        np.testing.assert_allclose(found, describe(picture)[0], atol=1e-5)
        assert found @ expected(net, picture)[0] > 0.99999

    good = tmp_path / 'x.ppm'
    (tmp_path / 'text.ppm').write_text('P3 no')
    (tmp_path / 'short.ppm').write_bytes(good.read_bytes()[:-1])
    (tmp_path / 'head.ppm').write_bytes(b'P6\n# of nothing')
    (tmp_path / 'deep.ppm').write_bytes(b'P6 32 64 65535\n')
    (tmp_path / 'text.xml').write_text('nothing')
    large = ppm(tmp_path / 'large.ppm', np.zeros((128, 64, 3), np.uint8))
    for words, sentence in (
        ([model], 'usage: describe MODEL PICTURE'),
        ([model, large], 'the picture is 128x64 (height x width), but the network takes 64x32'),
        ([model, tmp_path / 'gone.ppm'], 'gone.ppm: there is no such file'),
        ([model, tmp_path / 'text.ppm'], 'begins with P6'),
        ([model, tmp_path / 'head.ppm'], 'its head is damaged'),
        ([model, tmp_path / 'deep.ppm'], '8 bits a colour'),
        ([model, tmp_path / 'short.ppm'], 'ends too early'),
        ([tmp_path / 'text.xml', good], 'text.xml: '),
    ):
        done = subprocess.run([program, *words], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, '')
        assert sentence in done.stderr
