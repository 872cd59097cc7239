"""Detectors say where people are: python -m pytest tests/test_detecting.py

The detector that is downloaded is looked at if it has been: it lies in torch's cache.
"""

import hashlib
import http.server
import math
import sys
import threading
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import models

from reid import detecting, toy
from reid.problem import Problem

SIZE = (64, 96)  # height, width of the small files here
PLACES = [(s, y, x) for s in (8, 16, 32) for y in range(SIZE[0] // s) for x in range(SIZE[1] // s)]


def load(name, **given):
    return detecting.load(name, threads=1, **given)


def black(height, width):
    return np.zeros((height, width, 3), np.uint8)


# ---------------------------------------------------------------------------------------------------------------------
# 1. what all have in common


def overlap(a, b):
    """Intersection over union, in plain numbers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0
    return width * height / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height)


@pytest.mark.parametrize('seed', range(5))
def test_of_boxes_that_overlap_the_best_one_stays(seed):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(-20, 100, (200, 2)), rng.uniform(0, 60, (200, 2))
    boxes, scores = np.concatenate([corner, corner + size], 1), rng.permutation(200) / 200
    kept = []
    for i in sorted(range(200), key=lambda i: -scores[i]):
        box = [max(0, min(limit, side)) for side, limit in zip(boxes[i].tolist(), (100, 80, 100, 80), strict=True)]
        counts = scores[i] >= 0.2 and box[2] - box[0] >= 1 and box[3] - box[1] >= 1
        if counts and all(overlap(box, other) <= 0.5 for other, _ in kept):
            kept.append((box, scores[i]))
    found, left = detecting.tidy(boxes, scores, (80, 100), 0.2, 0.5)
    assert 20 < len(kept) < 150
    assert found.dtype == left.dtype == np.float32
    np.testing.assert_allclose(found, [box for box, _ in kept], atol=1e-4)
    np.testing.assert_allclose(left, [score for _, score in kept], atol=1e-6)


def test_nothing_found_has_the_shape_of_something():
    for boxes, scores in [([], []), ([[np.nan] * 4, [5, 5, 5, 9]], [1, 1])]:
        found, left = detecting.tidy(boxes, scores, (80, 100), 0.2)
        assert found.shape == (0, 4) and left.shape == (0,) and found.dtype == left.dtype == np.float32


def test_a_wrong_name_is_a_sentence():
    with pytest.raises(Problem, match='there is no detector yolox_nan. yolox_nano'):
        load('yolox_nan')
    with pytest.raises(Problem, match='there is no detector zzz. yolox_nano, hog, .*ssdlite320_mobilenet_v3_large'):
        load('zzz')
    with pytest.raises(Problem, match='hog takes no file of weights beside itself: leave x.pth out'):
        load('hog', weights='x.pth')
    with pytest.raises(Problem, match='a.onnx takes no file of weights'):
        load('a.onnx', weights='x.pth')


# ---------------------------------------------------------------------------------------------------------------------
# 2. ONNX files


def save(path, out, seen=(), channel=0, shape=(1, 3, *SIZE), kind='FLOAT'):
    """A file that always gives `out`; to the places `seen` it adds the mean of a channel of what it was given."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    kind = getattr(onnx.TensorProto, kind)
    number = onnx.helper.tensor_dtype_to_np_dtype(kind)
    mask = np.zeros_like(out)
    for place in seen:
        mask[place] = 1
    given = {'c': np.array([channel]), 'mask': mask.astype(number), 'out': out.astype(number)}
    nodes = [
        onnx.helper.make_node('Gather', ['images', 'c'], ['one'], axis=1),
        onnx.helper.make_node('ReduceMean', ['one'], ['mean'], keepdims=0),
        onnx.helper.make_node('Mul', ['mean', 'mask'], ['more']),
        onnx.helper.make_node('Add', ['more', 'out'], ['output']),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        'g',
        [onnx.helper.make_tensor_value_info('images', kind, shape)],
        [onnx.helper.make_tensor_value_info('output', kind, [str(i) for i in range(out.ndim)])],
        [onnx.numpy_helper.from_array(value, name) for name, value in given.items()],
    )
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid('', 13)], ir_version=8), path)
    return str(path)


# Boxes in the picture that the network sees (left, top, right, bottom), scores.
BOXES = [((8, 20, 28, 44), 0.9), ((50, 16, 60, 40), 0.7), ((70, 30, 90, 48), 0.2)]


def yolov8(boxes=BOXES, places=None):
    out = np.zeros((1, 84, places or len(PLACES)), np.float32)
    for i, ((left, top, right, bottom), score) in enumerate(boxes):
        out[0, :4, 5 + i] = (left + right) / 2, (top + bottom) / 2, right - left, bottom - top
        out[0, 4, 5 + i] = score
        out[0, 5:, 5 + i] = 0.3  # other classes
    out[0, 0:4, 50], out[0, 7, 50] = (40, 40, 20, 20), 0.99  # no person
    return out


def yolox(boxes=BOXES, decoded=False):
    """By the formula of its paper, place by place: the places that the boxes are seen from are in all three grids."""
    out = np.zeros((1, len(PLACES), 85), np.float32)
    if decoded:
        out[0, :, :2] = [((x + 0.5) * s, (y + 0.5) * s) for s, y, x in PLACES]
    for i, (box, score) in enumerate(boxes):
        at = (17, 100, 125)[i]
        s, y, x = PLACES[at]
        centre, size = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), (box[2] - box[0], box[3] - box[1])
        out[0, at, :4] = (*centre, *size)
        if not decoded:
            out[0, at, :4] = centre[0] / s - x, centre[1] / s - y, math.log(size[0] / s), math.log(size[1] / s)
        out[0, at, 4], out[0, at, 5] = 0.95, score / 0.95
    return out


def check(found, expected, atol=1e-3):
    boxes, scores = found
    np.testing.assert_allclose(boxes, [box for box, _ in expected], atol=atol)
    np.testing.assert_allclose(scores, [score for _, score in expected], atol=atol)


@pytest.mark.parametrize('out', [yolov8(), yolox(), yolox(decoded=True)], ids=['yolov8', 'yolox', 'decoded'])
def test_boxes_are_those_of_the_graph(tmp_path, out):
    file = save(tmp_path / 'x.onnx', out)
    check(load(file)(black(*SIZE)), BOXES[:2])
    check(load(file, least=0.1)(black(*SIZE)), BOXES)
    check(load(file, least=0.8)(black(*SIZE)), BOXES[:1])
    # Twice as large; three times, and wider or higher: below are rows of grey, or above and below.
    check(load(file)(black(128, 192)), [([2 * side for side in box], score) for box, score in BOXES[:2]])
    rows = 16 if out.shape[1] == 84 else 0
    expected = [([3 * box[0], 3 * (box[1] - rows), 3 * box[2], 3 * (box[3] - rows)], s) for box, s in BOXES[:2]]
    for box, _ in expected:
        box[1], box[3] = max(0, box[1]), min(96, box[3])
    check(load(file)(black(96, 288)), expected)
    columns = 24 if out.shape[1] == 84 else 0
    expected = [(np.clip([b[0] - columns, b[1], b[2] - columns, b[3]], 0, [48, 64, 48, 64]), s) for b, s in BOXES]
    expected = [(box, score) for box, score in expected[:2] if box[2] - box[0] >= 1]
    check(load(file)(black(64, 48)), expected)


@pytest.mark.parametrize('channel', [0, 1, 2])
def test_pictures_are_given_as_each_was_trained(tmp_path, channel):
    """A picture of one colour, half as high as the network's: the mean of a channel shows order, range and grey."""
    colour = (200, 100, 40)
    picture = black(32, 96) + np.array(colour, np.uint8)
    file = save(tmp_path / '8.onnx', yolov8([(BOXES[0][0], 0)]), [(0, 4, 5)], channel)
    assert load(file)(picture)[1][0] == pytest.approx((colour[channel] + 114) / 2 / 255, abs=1e-4)
    out = yolox([(BOXES[0][0], 0)])
    out[0, 17, 4] = 1 / 255
    file = save(tmp_path / 'x.onnx', out, [(0, 17, 5)], channel)
    assert load(file, least=0)(picture)[1][0] == pytest.approx((colour[2 - channel] + 114) / 2 / 255, abs=1e-4)


def test_sizes_that_are_left_open_are_640(tmp_path):
    file = save(tmp_path / 'x.onnx', yolov8(places=8400), shape=('batch', 3, 'height', 'width'))
    check(load(file)(black(640, 640)), BOXES[:2])


def test_half_precision_is_taken(tmp_path):
    check(load(save(tmp_path / 'x.onnx', yolov8(), kind='FLOAT16'))(black(*SIZE)), BOXES[:2], atol=0.02)


def test_pictures_need_be_neither_writable_nor_in_one_piece(tmp_path):
    detect = load(save(tmp_path / 'x.onnx', yolov8()))
    picture = np.broadcast_to(np.uint8(7), (128, 192, 3))[:, ::-1, ::-1]
    check(detect(picture), [([2 * side for side in box], score) for box, score in BOXES[:2]])


@pytest.mark.parametrize(
    ('out', 'given', 'words'),
    [
        ((1, 300, 6), {}, r'images tensor\(float\) 1x3x64x96'),  # NMS is in it
        ((1, 3 * len(PLACES), 85), {}, 'gives output'),  # YOLOv5
        ((1, 1000), {}, 'gives output'),
        ((1, 84, len(PLACES)), {'shape': (4, 3, *SIZE)}, '4x3x64x96'),
        ((1, 84, len(PLACES)), {'shape': (1, *SIZE, 3)}, '1x64x96x3'),
        ((1, 84, len(PLACES)), {'shape': (1, 3, 64)}, '1x3x64'),
        ((1, 84, len(PLACES)), {'kind': 'DOUBLE'}, 'double'),
    ],
)
def test_other_files_are_a_sentence_with_their_shapes(tmp_path, out, given, words):
    file = save(tmp_path / 'x.onnx', np.zeros(out, np.float32), **given)
    with pytest.raises(Problem, match=words) as raised:
        load(file)
    assert 'YOLOX' in str(raised.value)


def test_what_is_no_onnx_file_is_a_sentence(tmp_path, monkeypatch):
    pytest.importorskip('onnxruntime')
    with pytest.raises(Problem, match='there is no such file'):
        load(str(tmp_path / 'x.onnx'))
    (tmp_path / 'x.onnx').write_bytes(b'hello')
    with pytest.raises(Problem, match='x.onnx cannot be run'):
        load(str(tmp_path / 'x.onnx'))
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(Problem, match='pip install onnxruntime'):
        load(str(tmp_path / 'x.onnx'))


# ---------------------------------------------------------------------------------------------------------------------
# 3. the one that is downloaded


@pytest.fixture
def release(tmp_path, monkeypatch):
    """A server on this machine in place of the release; torch's cache in tmp_path."""
    content = Path(save(tmp_path / 'small.onnx', yolox())).read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            server.asked += 1
            self.send_response(server.code)
            self.send_header('Content-Length', str(len(content)))
            self.end_headers()
            self.wfile.write(server.content)

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.asked, server.code, server.content = 0, 200, content
    server.path = tmp_path / 'torch/hub/checkpoints/yolox_nano.onnx'
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    monkeypatch.setattr(detecting, 'URL', f'http://127.0.0.1:{server.server_port}/yolox_nano.onnx')
    monkeypatch.setattr(detecting, 'SHA256', hashlib.sha256(content).hexdigest())
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_is_downloaded_once(release):
    for _ in range(2):
        check(load('yolox_nano')(black(*SIZE)), BOXES[:2])
    assert release.asked == 1
    assert release.path.read_bytes() == release.content


@pytest.mark.parametrize('how', ['half', 'another', 'none'])
def test_what_is_not_the_file_never_gets_its_name(release, how):
    release.content = {'half': release.content[:-200], 'another': release.content[::-1], 'none': b''}[how]
    release.code = 404 if how == 'none' else 200
    with pytest.raises(Problem, match='yolox_nano could not be downloaded') as raised:
        load('yolox_nano')
    assert not list(release.path.parent.iterdir())
    for words in (detecting.URL, str(release.path), '--detector FILE.onnx', '--detector hog'):
        assert words in str(raised.value)


def test_another_file_of_this_name_is_a_sentence(release):
    release.path.parent.mkdir(parents=True)
    release.path.write_bytes(b'hello')
    with pytest.raises(Problem, match='is not the file that it should be .*: remove it'):
        load('yolox_nano')
    check(load('yolox_nano', weights=release.path.parents[3] / 'small.onnx')(black(*SIZE)), BOXES[:2])
    assert not release.asked


def test_a_cache_that_cannot_be_written_to_is_a_sentence(release):
    release.path.parents[2].write_bytes(b'')  # a file where the folder would be
    with pytest.raises(Problem, match='yolox_nano could not be downloaded'):
        load('yolox_nano')


# ---------------------------------------------------------------------------------------------------------------------
# 4. people


@pytest.fixture(scope='module')
def scene():
    """Three drawn people, of 64 x 128 made twice as large -> the picture, and the middles of the people."""
    picture = np.full((480, 640, 3), 150, np.uint8)
    for who, x, camera in ((3, 60, 1), (8, 250, 2), (12, 450, 3)):
        person = toy.picture(0, 'person', who, camera, 0, True)[0].resize((128, 256))
        picture[150:406, x : x + 128] = np.array(person)
    return picture, [(124, 278), (314, 278), (514, 278)]


def sees(boxes, scores, people, height):
    """Whether each person is seen, in a box of about that height, and scores fall."""
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    seen = all(np.abs(middles - person).max(1).min() < 30 for person in people)
    heights = boxes[:, 3] - boxes[:, 1]
    return seen and (np.abs(heights - height) < 0.35 * height).all() and (np.diff(scores) <= 0).all()


def test_yolox_nano_sees_people(scene):
    pytest.importorskip('onnxruntime')
    path = detecting.kept(detecting.URL)
    if not path.is_file():
        pytest.skip(f'{path} is not there')
    picture, people = scene
    detect = load('yolox_nano')
    boxes, scores = detect(picture)
    assert sees(boxes, scores, people, 225)
    assert 3 <= len(boxes) <= 4  # somebody's leg and arm are at the first one's right edge
    assert scores[:3].min() > 0.7
    mirrored, _ = detect(picture[:, ::-1])
    assert sees(mirrored, scores, [(640 - x, y) for x, y in people], 225)
    boxes, _ = detect(np.asarray(Image.fromarray(picture).resize((1280, 960))))
    assert sees(boxes / 2, scores, people, 225)
    assert not len(detect(np.full((300, 500, 3), 130, np.uint8))[0])


def test_hog_sees_people(scene):
    cv2 = pytest.importorskip('cv2')
    if not hasattr(cv2, 'HOGDescriptor'):
        pytest.skip(f'OpenCV {cv2.__version__} has no hog')
    picture, people = scene
    detect = load('hog')
    boxes, scores = detect(picture)
    assert len(boxes) == 3 and sees(boxes, scores, people, 190)
    assert scores.min() >= 0.5 and scores.max() <= 1
    for height, width in [(480, 640), (128, 64), (127, 64), (128, 63), (10, 10), (1, 1)]:
        assert not len(detect(black(height, width))[0])


def test_opencv_5_and_no_opencv_are_sentences(monkeypatch):
    cv2 = pytest.importorskip('cv2')
    monkeypatch.delattr(cv2, 'HOGDescriptor', raising=False)
    with pytest.raises(Problem, match=r'has no hog any more: pip install "opencv-python-headless<5"'):
        load('hog')
    monkeypatch.setitem(sys.modules, 'cv2', None)
    with pytest.raises(Problem, match=r'OpenCV is needed here .*: pip install "opencv-python-headless<5"'):
        load('hog')


# ---------------------------------------------------------------------------------------------------------------------
# 5. torchvision's networks

NAME = 'ssdlite320_mobilenet_v3_large'


def test_a_network_of_torchvision_says_what_it_says_there(tmp_path):
    torch.manual_seed(0)
    net = models.get_model(NAME, weights=None, weights_backbone=None).eval()
    for layer in net.head.classification_head.module_list:
        layer[1].bias.data.view(-1, 91)[:, [1, 7]] += 3  # else none of the best 300 is a person
    torch.save(net.state_dict(), tmp_path / 'x.pth')
    picture = np.random.default_rng(0).integers(0, 256, (120, 200, 3), np.uint8)
    with torch.no_grad():
        found = net([torch.from_numpy(picture / 255).permute(2, 0, 1).float()])[0]
    expected = [
        (box, score)
        for box, score, label in zip(found['boxes'].tolist(), found['scores'].tolist(), found['labels'], strict=True)
        if label == 1 and box[2] - box[0] >= 1 and box[3] - box[1] >= 1
    ]
    assert expected and len(expected) < len(found['boxes'])
    check(load(NAME, weights=tmp_path / 'x.pth', least=0)(picture), expected)
    assert not len(load(NAME, weights=tmp_path / 'x.pth')(picture)[0])  # none is at all sure


def test_weights_that_are_not_its_own_are_a_sentence(tmp_path):
    torch.save({'a': torch.zeros(1)}, tmp_path / 'x.pth')
    (tmp_path / 'y.pth').write_bytes(b'hello')
    for name in ('x', 'y', 'z'):
        with pytest.raises(Problem, match=f'{name}.pth is not a file of torchvision with the weights of {NAME}'):
            load(NAME, weights=tmp_path / f'{name}.pth')


def test_blocked_weights_are_a_sentence(monkeypatch):
    def blocked(name, weights):
        raise URLError('blocked')

    monkeypatch.setattr(detecting.models, 'get_model', blocked)
    with pytest.raises(Problem, match='could not be downloaded') as raised:
        load(NAME)
    url = models.get_model_weights(NAME).DEFAULT.url
    for words in ('blocked', url, 'checkpoints', '--detector hog'):
        assert words in str(raised.value)


def test_every_network_of_torchvision_calls_a_person_1():
    names = [name for name, detector in detecting.DETECTORS.items() if detector is detecting.NETWORK]
    assert {NAME, 'fasterrcnn_mobilenet_v3_large_fpn', 'fasterrcnn_resnet50_fpn_v2'} <= set(names)
    for name in names:
        assert models.get_model_weights(name).DEFAULT.meta['categories'][1] == 'person'
