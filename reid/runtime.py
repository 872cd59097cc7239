"""An exported file, run by whatever runs it best here. No torch is needed, but for the formats of torch itself.

describe = opened('ft_ResNet50.onnx')
f = describe(pictures)      # uint8 (B, H, W, 3), RGB, of describe.size -> float32 (B, D) of unit length

Each runtime is a function (path, threads, gpu) -> (what the file says of itself, pictures -> features).
"""

import hashlib
import json
import sys
import warnings
from pathlib import Path

import numpy as np

from reid.problem import Problem

KEY = 'reid'  # of the metadata, which is a text in JSON
# What is written there: the run, its epoch and weights ({file, size, sha256}, as in threshold.json), the size of
# pictures [height, width], how long descriptors are and of how many parts, whether mirrored views count, and the bounds
# of threshold.json; the format, in what numbers it computes, what pictures it takes, and the files beside it.
ABOUT = ('run', 'which_epoch', 'weights', 'size', 'dim', 'parts', 'flip', 'test_feature', 'bounds', 'versions')
ABOUT += ('format', 'numbers', 'input', 'beside')

# Through this package OpenVINO tells its makers whenever it is imported. Without it, it does not.
sys.modules.setdefault('openvino_telemetry', None)


class Exported:
    """`about` it, by the names in ABOUT; its `size` and `dim`, which are in there too; and the `runtime` it runs by."""

    def __init__(self, about, runtime, run):
        self.about, self.runtime, self.run = about, runtime, run
        self.size, self.dim = tuple(about['size']), about['dim']

    def __call__(self, pictures):
        return self.run(np.ascontiguousarray(pictures, self.about['input']))


def opened(path, runtime=None, threads=0, gpu=None):
    """A file of export.py -> Exported. `runtime`: one of RUNTIMES, or what suits the file; threads: 0 for all cores;
    gpu: the number of one, for ONNX Runtime that can use it, or None for the CPU."""
    path = Path(path)
    if not path.is_file():
        raise Problem(f'{path}: there is no such file. python export.py --name NAME writes one')
    able = [name for name, (_, suffixes, _) in RUNTIMES.items() if path.suffix in suffixes]
    if not able:
        known = dict.fromkeys(suffix for _, suffixes, _ in RUNTIMES.values() for suffix in suffixes)
        raise Problem(f'{path}: a file of export.py is expected, which ends in {", ".join(known)}')
    if runtime and runtime not in able:
        raise Problem(f'{path} cannot be run by {runtime}, but by {" or ".join(able)}')
    runtime = runtime or able[0]
    packages, _, load = RUNTIMES[runtime]
    try:
        text, run = load(path, threads, gpu)
    except Problem:
        raise
    except ImportError:
        raise Problem(f'{path} is run by a package that is not here: pip install {packages}') from None
    except Exception as error:  # of types that the C++ parts make up
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise Problem(f'{path} cannot be run: is it damaged, or not complete? ({reason})') from None
    try:
        about = json.loads(text)
        exported, beside = Exported(about, runtime, run), about['beside']
    except (KeyError, TypeError, ValueError):
        raise Problem(f'{path} can be read, but is none of export.py: it does not say what it takes') from None
    whole(path, beside)
    return exported


def whole(path, beside):
    """Are the other files that belong to this one ({suffix: sha256}) those that were written with it?"""
    for suffix, expected in beside.items():
        other = path.with_suffix(suffix)
        if not other.is_file() or sha256(other) != expected:
            raise Problem(f'{other} is not there, or was not written together with {path}: copy both, or export again')


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# 1. ONNX Runtime

CUDA, TENSORRT = 'CUDAExecutionProvider', 'TensorrtExecutionProvider'


def by_onnx(path, threads, gpu, compiled=False):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    there = onnxruntime.get_available_providers()
    wanted = [('CPUExecutionProvider', {})]
    if gpu is not None:
        wanted.insert(0, (CUDA, {'device_id': str(gpu), 'use_tf32': '0'}))  # TF32 would cost three digits
    if compiled:
        wanted.insert(0, (TENSORRT, {'device_id': str(gpu or 0)}))
    wanted = [(name, how) for name, how in wanted if name in there]
    session = onnxruntime.InferenceSession(str(path), options, wanted)
    if compiled and TENSORRT not in session.get_providers():  # it goes on without, silently
        raise Problem(
            f'{path} cannot be run by TensorRT here: it needs an NVIDIA GPU, and '
            f'pip install {RUNTIMES["tensorrt"][0]}. --runtime onnx needs neither'
        )
    text = session.get_modelmeta().custom_metadata_map.get(KEY)
    return text, lambda pictures: session.run(None, {'pictures': pictures})[0]


def by_tensorrt(path, threads, gpu):
    """It compiles the network for this GPU when the first batch comes, which takes a while."""
    return by_onnx(path, threads, gpu, compiled=True)


# ---------------------------------------------------------------------------------------------------------------------
# 2. OpenVINO, which reads ONNX files too; on the CPU, as all that follow


def by_openvino(path, threads, gpu):
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    place = ['framework', KEY] if path.suffix == '.onnx' else [KEY]
    text = model.get_rt_info(place).value if model.has_rt_info(place) else None
    how = {'INFERENCE_PRECISION_HINT': 'f32'}  # left alone, it computes in bfloat16 where that is quicker
    compiled = core.compile_model(model, 'CPU', how | ({'INFERENCE_NUM_THREADS': threads} if threads else {}))
    return text, lambda pictures: compiled.infer_new_request({0: pictures})[0]


# ---------------------------------------------------------------------------------------------------------------------
# 3. torch


def by_torch(path, threads, gpu):
    """Such a file is a program: TorchScript may read and write files, and to read a .pt2 torch unpickles parts of it,
    which may be any code. So they are for those who know where a file comes from; the other formats hold a network and
    nothing else. A .pt file of weights, as torch.save writes it, is refused without being unpickled."""
    import torch

    if threads:
        torch.set_num_threads(threads)  # of the whole process
    extra = {KEY: ''}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # TorchScript is deprecated, which its users have heard
        if path.suffix == '.pt2':
            net = torch.export.load(path, extra_files=extra).module()
        else:
            net = torch.jit.load(path, map_location='cpu', _extra_files=extra)

    @torch.inference_mode()
    def run(pictures):
        return net(torch.from_numpy(pictures)).numpy()

    return extra[KEY], run


# ---------------------------------------------------------------------------------------------------------------------
# 4. ncnn, for phones and small boards


def by_ncnn(path, threads, gpu):
    """The file holds the network for one view of one picture. Mirrored views and unit length are added here."""
    import ncnn

    told = path.with_name(f'{path.name}.json')
    text = told.read_text(encoding='utf-8') if told.is_file() else '{}'
    about, net = json.loads(text), ncnn.Net()
    for name in ('use_fp16_packed', 'use_fp16_storage', 'use_fp16_arithmetic', 'use_bf16_storage'):
        setattr(net.opt, name, False)  # quicker on some, with three digits less
    if threads:
        net.opt.num_threads = threads
    if net.load_param(str(path)) or net.load_model(str(path.with_suffix('.bin'))):
        raise ValueError('ncnn refuses it')

    def one(view):  # (H, W, 3) -> (D,)
        planes = np.ascontiguousarray(view.transpose(2, 0, 1))  # (3, H, W); ncnn.Mat does not keep it alive itself
        extractor = net.create_extractor()
        extractor.input('in0', ncnn.Mat(planes))
        _, out = extractor.extract('out0')
        return np.array(out).ravel()

    def run(pictures):
        views = [pictures, pictures[:, :, ::-1]] if about['flip'] else [pictures]
        total = sum(np.stack([one(picture) for picture in view]) for view in views)  # (B, D)
        total = total.reshape(len(total), -1, about['parts'])
        total /= np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12) * about['parts'] ** 0.5
        return total.reshape(len(total), -1)

    return text, run


# name: the packages, the suffixes of files that it runs (the first name that knows a suffix is its default), how
RUNTIMES = {
    'onnx': ('onnxruntime', ('.onnx',), by_onnx),
    'openvino': ('openvino', ('.xml', '.onnx'), by_openvino),
    'tensorrt': ('onnxruntime-gpu tensorrt', ('.onnx',), by_tensorrt),
    'torch': ('torch', ('.pt', '.pt2'), by_torch),
    'ncnn': ('ncnn', ('.param',), by_ncnn),
}
