"""Where people are in a picture: detectors by name.

    detect = load('yolox_nano')           # or hog, or one of torchvision's networks, or FILE.onnx
    boxes, scores = detect(picture)

picture: uint8 (H, W, 3), RGB. boxes: float32 (N, 4), left, top, right, bottom in its pixels, inside of it.
scores: float32 (N,), 0 ... 1, the best first. Those of different detectors cannot be compared.
"""

import difflib
import hashlib
import sys
from collections import namedtuple
from functools import partial
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from torch.hub import download_url_to_file, get_dir
from torchvision import models
from torchvision.ops import nms

from reid.frames import fit, opencv
from reid.problem import Problem

OVERLAP = 0.6  # intersection over union: of two boxes with more, the better one stays


def load(name='yolox_nano', weights=None, device='cpu', threads=0, least=None):
    """-> detect(picture) -> boxes, scores.

    weights: a file, in place of a download. device: torch's name of it. A file .onnx is run there if the ONNX Runtime
    that is installed can, else on the processor, as hog always is. threads: of ONNX Runtime and of OpenCV, 0 for all;
    torch has its own setting. least: the score that a box needs, by default what suits the detector. Less suits
    trackers that look at faint boxes as well, of those who are half hidden.
    """
    detector = DETECTORS.get(str(name))
    if str(name).lower().endswith('.onnx'):
        detector = FILE
    if detector is None:
        near = difflib.get_close_matches(str(name), DETECTORS, 3, 0.5) or DETECTORS
        raise Problem(f'there is no detector {name}. {", ".join(near)} or a file .onnx is expected')
    if weights is not None and not detector.weights:
        raise Problem(f'{name} takes no file of weights beside itself: leave {weights} out')
    find = detector.make(str(name), weights, device, threads)
    return partial(detect, find, detector.least if least is None else least)


def detect(find, least, picture):
    boxes, scores = find(np.require(picture, None, 'CW'))  # in one piece, and writable, as torch wants it
    return tidy(boxes, scores, picture.shape[:2], least)


def tidy(boxes, scores, size, least, overlap=OVERLAP):
    """Boxes of any detector, those alone that count: with the least score, at least a pixel wide and high inside the
    picture of size (height, width), and not what a better one covers."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    scores = np.asarray(scores, np.float32).reshape(-1)
    boxes = boxes.clip(0, np.array([size[1], size[0]] * 2, np.float32))
    keep = (scores >= least) & (boxes[:, 2] - boxes[:, 0] >= 1) & (boxes[:, 3] - boxes[:, 1] >= 1)
    boxes, scores = boxes[keep], scores[keep]
    keep = nms(torch.from_numpy(boxes), torch.from_numpy(scores), overlap).numpy()  # the best first
    return boxes[keep], scores[keep]


# ---------------------------------------------------------------------------------------------------------------------
# 1. YOLO, as ONNX files

STRIDES = (8, 16, 32)  # of three grids of places, each of which may see something
GREY = 114  # around pictures of another shape

# Of what a file takes: where a picture lies in it, its channels' order, what 255 becomes. And what its output says:
# decode(out, size) -> centres (P, 2) and sizes (P, 2) in pixels, scores (P,).
Form = namedtuple('Form', 'centre bgr white decode')


def file(name, weights, device, threads):
    """A file of YOLOX, or of YOLOv8 and what came after it, told apart by what they put out. Persons are the first
    class, as in COCO."""
    path = Path(weights or name)
    session = opened(path, device, threads)
    run, size, out = tried(session, path)
    places = sum((size[0] // stride) * (size[1] // stride) for stride in STRIDES)
    if out.ndim == 3 and out.shape[1] == places and out.shape[2] > 5:
        form = Form(False, True, 255, yolox)
    elif out.ndim == 3 and out.shape[2] == places and out.shape[1] > 4:
        form = Form(True, False, 1, yolov8)
    else:
        raise unknown(session, path)
    return partial(look, run, size, form)


def look(run, size, form, picture):
    whole, (left, top, right, bottom) = fit(picture, size[::-1], GREY, form.centre)
    out = run(np.multiply(whole[:, :, ::-1] if form.bgr else whole, form.white / 255, dtype=np.float32))
    centres, sizes, scores = form.decode(out[0], size)
    corners = np.concatenate([centres - sizes / 2, centres + sizes / 2], 1) - [left, top, left, top]
    height, width = picture.shape[:2]
    across, down = width / (right - left), height / (bottom - top)
    return corners * [across, down, across, down], scores


def yolox(out, size):
    """arXiv 2107.08430. out (P, 5 + classes): centres from their places and logarithms of sizes, both in strides; the
    score that something is there; classes. Some files have done this sum themselves: their centres are pixels."""
    if out[:, :2].max() < STRIDES[-1]:
        grids = [np.mgrid[: size[0] // stride, : size[1] // stride] for stride in STRIDES]  # (2, h, w)
        places = np.concatenate([grid[::-1].reshape(2, -1) for grid in grids], 1).T  # (P, 2), x before y
        stride = np.concatenate([np.full(grid[0].size, stride) for grid, stride in zip(grids, STRIDES, strict=True)])
        centres, sizes = (out[:, :2] + places) * stride[:, None], np.exp(out[:, 2:4]) * stride[:, None]
    else:
        centres, sizes = out[:, :2], out[:, 2:4]
    return centres, sizes, out[:, 4] * out[:, 5]


def yolov8(out, size):
    """out (4 + classes, P): centres and sizes in pixels, then classes."""
    return out[:2].T, out[2:4].T, out[4]


PROVIDERS = {'cuda': 'CUDAExecutionProvider', 'mps': 'CoreMLExecutionProvider'}


def opened(path, device, threads):
    try:
        import onnxruntime
    except ImportError:
        raise Problem(f'{path} is run by a package that is not here: pip install onnxruntime') from None
    if not path.is_file():
        raise Problem(f'{path}: there is no such file. A detector as ONNX is expected, of YOLOX or YOLOv8 and later')
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    wanted = PROVIDERS.get(torch.device(device).type), 'CPUExecutionProvider'
    providers = [name for name in onnxruntime.get_available_providers() if name in wanted]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers)
    except Exception as error:  # of types that its C++ part makes up
        raise Problem(f'{path} cannot be run ({str(error).splitlines()[0]})') from None


def tried(session, path):
    """-> run(float32 (H, W, 3)) -> output, the size (H, W) that it takes, and what it says to a black picture: shapes
    in a file may be names in place of numbers."""
    taken = session.get_inputs()[0]
    shape = [side if isinstance(side, int) else None for side in taken.shape]
    kind = {'tensor(float)': np.float32, 'tensor(float16)': np.float16}.get(taken.type)
    if len(shape) != 4 or shape[0] not in (None, 1) or shape[1] not in (None, 3) or not kind:
        raise unknown(session, path)
    size = shape[2] or 640, shape[3] or 640

    def run(x):
        x = np.ascontiguousarray(x.transpose(2, 0, 1)[None], kind)  # (1, 3, H, W)
        return session.run(None, {taken.name: x})[0].astype(np.float32)

    try:
        return run, size, run(np.zeros((*size, 3), np.float32))
    except Exception:
        raise unknown(session, path) from None


def unknown(session, path):
    def told(several):
        return ', '.join(f'{one.name} {one.type} {"x".join(map(str, one.shape))}' for one in several)

    return Problem(
        f'{path} takes {told(session.get_inputs())} and gives {told(session.get_outputs())}. Expected is what YOLOX '
        f'gives (1 x places x 5 + classes) or YOLOv8 and later, without NMS (1 x 4 + classes x places), from pictures '
        f'1x3xHxW'
    )


# ---------------------------------------------------------------------------------------------------------------------
# 2. the one that is downloaded

URL = 'https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/yolox_nano.onnx'  # 3.7 MB, Apache-2.0
SHA256 = '695e750a5d5754bb5a8d5325643b59282191a7e7a564e435a415fd3c578eab14'


def nano(name, weights, device, threads):
    return file(name, weights or downloaded(), device, threads)


def downloaded():
    """The path of yolox_nano.onnx, which lies where torch keeps the weights that it downloads (TORCH_HOME)."""
    path = kept(URL)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(URL, str(path), SHA256, progress=bool(sys.stderr and sys.stderr.isatty()))
        except BLOCKED as error:  # half a file has another checksum, which is a RuntimeError, and not this name
            raise absent('yolox_nano', URL, error, ' Or name it: --detector FILE.onnx') from None
    elif hashlib.sha256(path.read_bytes()).hexdigest() != SHA256:
        raise Problem(f'{path} is not the file that it should be (its SHA-256 is not {SHA256[:12]}...): remove it')
    return path


BLOCKED = (OSError, RuntimeError, HTTPException)


def kept(url):
    return Path(get_dir()) / 'checkpoints' / url.rpartition('/')[2]


def absent(name, url, error, more=''):
    return Problem(
        f'the detector {name} could not be downloaded ({error}).\n'
        f'  With a copy of {url}: put it at {kept(url)}.{more}\n'
        f'  Without one: --detector hog, which finds fewer people'
    )


# ---------------------------------------------------------------------------------------------------------------------
# 3. torchvision's networks


def network(name, weights, device, threads):
    if weights is None:
        try:
            net = models.get_model(name, weights='DEFAULT')
        except BLOCKED as error:
            raise absent(name, models.get_model_weights(name).DEFAULT.url, error) from None
    else:
        net = models.get_model(name, weights=None, weights_backbone=None)
        try:
            net.load_state_dict(torch.load(weights, map_location='cpu', weights_only=True))
        except Exception as error:  # torch.load raises a dozen types
            why = str(error).strip().splitlines()[0]
            raise Problem(f'{weights} is not a file of torchvision with the weights of {name} ({why})') from None
    return partial(see, net.to(device).eval(), device)


@torch.inference_mode()
def see(net, device, picture):
    x = torch.from_numpy(picture).to(device).permute(2, 0, 1) / 255  # (3, H, W)
    found = net([x])[0]
    person = found['labels'] == 1
    return found['boxes'][person].cpu().numpy(), found['scores'][person].cpu().numpy()


# ---------------------------------------------------------------------------------------------------------------------
# 4. without any file


PERSON = 0.5, 0.66  # of a window's width and height: in the median of a street scene, against the boxes of YOLOX


def hog(name, weights, device, threads):
    """Histograms of oriented gradients (Dalal and Triggs, CVPR 2005), as OpenCV was trained with them: upright people,
    seen whole and 90 pixels high, at least."""
    cv2 = opencv()
    if not hasattr(cv2, 'HOGDescriptor'):
        raise Problem(f'OpenCV {cv2.__version__} has no hog any more: pip install "opencv-python-headless<5"')
    if threads:
        cv2.setNumThreads(threads)
    descriptor = cv2.HOGDescriptor()
    descriptor.setSVMDetector(cv2.HOGDescriptor_getDefaultPeopleDetector())
    return partial(slide, descriptor)


def slide(descriptor, picture):
    if picture.shape[0] < 128 or picture.shape[1] < 64:  # less than a window: OpenCV writes where it may not
        return [], []
    boxes, margins = descriptor.detectMultiScale(picture, winStride=(8, 8), padding=(16, 16), scale=1.05)
    if not len(boxes):
        return [], []
    left, top, width, height = np.array(boxes, np.float32).T
    x, y = left + width / 2, top + height / 2
    width, height = width * PERSON[0], height * PERSON[1]
    boxes = np.stack([x - width / 2, y - height / 2, x + width / 2, y + height / 2], 1)
    return boxes, 1 / (1 + np.exp(-margins.ravel()))  # how far from the SVM's border, brought to 0.5 ... 1


Detector = namedtuple('Detector', 'make least weights')
FILE = Detector(file, 0.3, False)
NETWORK = Detector(network, 0.5, True)
DETECTORS = {
    'yolox_nano': Detector(nano, 0.3, True),
    'hog': Detector(hog, 0.5, False),
    **dict.fromkeys(models.list_models(module=models.detection), NETWORK),
}
