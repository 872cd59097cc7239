"""A run as one file for other programs: pictures in, descriptors out, nothing else to know.

The graph holds all of reid.features.describe: what a network expects of its pixels, the mirrored view, unit length. A
client brings a picture to the right size and hands in its bytes. The file says in its metadata, as JSON under `reid`,
what it is: run, commit, size of pictures and descriptors, thresholds (see ABOUT of reid.runtime, which reads it).

Only ncnn, made for one picture at a time, gets less: a network without mirrored view and unit length.
"""

import copy
import importlib
import json
import logging
import shutil
import subprocess
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from reid import folding
from reid.data import MEAN, STD
from reid.features import describe
from reid.problem import Problem
from reid.runtime import KEY, sha256

OPSET = 20


class Describer(nn.Module):
    """Pictures (B, H, W, 3), RGB from 0 to 255, bytes or float -> (B, D) of unit length."""

    def __init__(self, model, flip=True):
        super().__init__()
        self.model, self.flip = model, flip
        self.register_buffer('mean', 255 * torch.tensor(MEAN).view(3, 1, 1))
        self.register_buffer('std', 255 * torch.tensor(STD).view(3, 1, 1))

    def normalised(self, x):
        return (x - self.mean) / self.std

    def forward(self, pictures):
        x = pictures.permute(0, 3, 1, 2).float()  # (B, 3, H, W)
        return describe(self.model, self.normalised(x), self.flip)


class View(nn.Module):
    """(1, 3, H, W), float from 0 to 255 -> (1, D), raw: no mirrored view, no unit length."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net.model.embed(self.net.normalised(x))


def write(form, model, size, path, about, flip=True, kind='uint8'):
    """Write a file of FORMATS[form], and those that belong beside it. `about` is completed: see ABOUT of reid.runtime.
    It takes batches of any size (ncnn: pictures one by one), of bytes (kind 'uint8') or float numbers ('float32')."""
    ready(form)
    *_, writer = FORMATS[form]
    kind = 'float32' if form == 'ncnn' else kind
    about = {**about, 'format': form, 'numbers': 'float32', 'flip': flip, 'parts': model.parts, 'input': kind}
    # BatchNorm is folded. The copy is one that gradients could be asked of, and its memory lies as usual: folding works
    # in inference mode and for channels_last.
    net = copy.deepcopy(Describer(folding.quick(model, size), flip and form != 'ncnn').eval())
    net.to(memory_format=torch.contiguous_format)
    with torch.no_grad(), foreign(f'--format {form}'):
        writer(net, torch.zeros(2, *size, 3, dtype=getattr(torch, kind)), path, about | {'beside': {}})


def ready(form):
    """Are the packages there that make and run this format? Asked before any work is done."""
    packages = FORMATS[form][1]
    try:
        for package in packages.split():
            importlib.import_module(package)
    except ImportError:
        raise Problem(f'--format {form} needs packages that are not all here: pip install {packages}') from None


@contextmanager
def foreign(what):
    """Other people's exporters are at work: not a word of it, and what they stumble over is one sentence."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    except Exception as error:  # at a layer that they do not know they raise whatever they like
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Problem(f'{what} cannot be made of this network ({reason}). Another --format may do') from None
    finally:
        logging.disable(level)


# ---------------------------------------------------------------------------------------------------------------------
# writers: (net, pictures of a batch of two, path, about), net a Describer


def program(net, example):
    """The graph of the network, for batches of any size."""
    return torch.export.export(net, (example,), dynamic_shapes=({0: torch.export.Dim('batch', min=1)},))


def to_onnx(net, example, path, about):
    import onnx

    made = torch.onnx.export(
        program(net, example),
        dynamo=True,
        opset_version=OPSET,
        input_names=['pictures'],
        output_names=['features'],
        external_data=False,
        verbose=False,
    )
    save_onnx(onnx, made.model_proto, path, about)


def save_onnx(onnx, proto, path, about):
    onnx.helper.set_model_props(proto, {KEY: json.dumps(about)})
    onnx.checker.check_model(proto)
    path.write_bytes(proto.SerializeToString())


def to_torchscript(net, example, path, about):
    """Deprecated by torch, and still what many C++ programs read."""
    torch.jit.trace(net, example, check_trace=False).save(str(path), _extra_files={KEY: json.dumps(about)})


def to_pt2(net, example, path, about):
    torch.export.save(program(net, example), path, extra_files={KEY: json.dumps(about)})


def to_openvino(net, example, path, about):
    import openvino

    made = openvino.convert_model(program(net, example))
    made.reshape([-1, *example.shape[1:]])
    save_openvino(openvino, made, path, about)


def save_openvino(openvino, made, path, about, half=False):
    """Written twice: what is said of the weights has to be known before the second."""
    openvino.save_model(made, path, compress_to_fp16=half)
    made.set_rt_info(json.dumps(about | {'beside': {'.bin': sha256(path.with_suffix('.bin'))}}), [KEY])
    openvino.save_model(made, path, compress_to_fp16=half)


def to_ncnn(net, example, path, about):
    """By pnnx, a program, which writes a dozen files into the folder that it is started in."""
    import pnnx

    height, width = example.shape[1:3]
    view = torch.zeros(1, 3, height, width)
    with tempfile.TemporaryDirectory() as folder:
        torch.jit.trace(View(net), view, check_trace=False).save(f'{folder}/net.pt')
        command = [pnnx.EXEC_PATH, 'net.pt', f'inputshape=[1,3,{height},{width}]', 'fp16=0']
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors='replace')
        if done.returncode:
            raise ValueError((done.stderr or done.stdout).strip().rpartition('\n')[2] or 'pnnx failed')
        for suffix in ('.param', '.bin'):
            shutil.copyfile(Path(folder, f'net.ncnn{suffix}'), path.with_suffix(suffix))
    beside = {suffix: sha256(path.with_suffix(suffix)) for suffix in ('.param', '.bin')}
    path.with_name(f'{path.name}.json').write_text(json.dumps(about | {'beside': beside}), encoding='utf-8')


# name: how its files end, the packages that write and run it, how
FORMATS = {
    'onnx': ('.onnx', 'onnx onnxscript onnxruntime', to_onnx),
    'torchscript': ('.pt', 'torch', to_torchscript),
    'pt2': ('.pt2', 'torch', to_pt2),
    'openvino': ('.xml', 'openvino', to_openvino),
    'ncnn': ('.ncnn.param', 'ncnn pnnx', to_ncnn),
}
