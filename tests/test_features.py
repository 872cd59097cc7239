"""Descriptors: mirrored views, scales, parts, order: python -m pytest tests/test_features.py"""

import argparse

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import model
from reid import data, features, heatmap
from reid.problem import Problem


class Toy(nn.Module):
    """A network whose feature depends on left and right, and on the size of the picture."""

    def __init__(self, parts=1):
        super().__init__()
        torch.manual_seed(0)
        self.parts, self.conv = parts, nn.Conv2d(3, 8, 3, padding=1)
        self.seen, self.dim = [], 8 * parts

    def maps(self, x):
        self.seen.append(tuple(x.shape[2:]))
        return self.conv(x).relu()

    def pool(self, maps):
        ramp = torch.linspace(0, 1, maps.shape[3])
        return (F.adaptive_avg_pool2d(maps * ramp, (self.parts, 1))).flatten(1)

    def embed(self, x):
        return self.pool(self.maps(x))


@torch.no_grad()
def test_a_descriptor_is_the_sum_of_both_views_of_unit_length():
    net, x = Toy(), torch.randn(4, 3, 16, 8)
    total = net.embed(x) + net.embed(x.flip(3))
    torch.testing.assert_close(features.describe(net, x), total / total.norm(dim=1, keepdim=True))
    plain = net.embed(x)
    torch.testing.assert_close(features.describe(net, x, flip=False), plain / plain.norm(dim=1, keepdim=True))


@torch.no_grad()
def test_each_part_has_the_same_say():
    net, x = Toy(parts=6), torch.randn(4, 3, 24, 8)
    total = (net.embed(x) + net.embed(x.flip(3))).view(4, 8, 6)  # channel-major
    expected = total / (total.norm(dim=1, keepdim=True) * 6**0.5)
    found = features.describe(net, x)
    torch.testing.assert_close(found, expected.reshape(4, 48))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(4))


@torch.no_grad()
def test_scales_are_areas_of_the_original_picture():
    net, x = Toy(), torch.randn(2, 3, 40, 20)
    features.describe(net, x, flip=False, scales=(1, 1.21, 1.44))
    assert net.seen == [(40, 20), (44, 22), (48, 24)]  # and not 1.1 * 1.2 of it


def test_areas_are_read_from_text():
    assert features.areas('1,1.1') == [1.0, 1.1]
    for text in ('', '1,', 'x', '0', '-1', 'nan'):
        with pytest.raises(Problem, match='--ms'):
            features.areas(text)


@pytest.fixture
def pictures(tmp_path):
    """Eleven noisy pictures of two sizes."""
    rng = np.random.default_rng(0)
    for i in range(11):
        size = (30, 20) if i % 2 else (16, 8)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / f'{i:02d}.png')
    return sorted(str(path) for path in tmp_path.glob('*.png'))


@pytest.mark.parametrize(('workers', 'held'), [(0, 1), (0, 2), (2, 16)])
def test_extraction_keeps_the_order_and_the_last_batch(workers, held, pictures, monkeypatch):
    monkeypatch.setattr(features, 'HELD', held)
    net, transform = Toy(), data.test_transform(16, 8)
    f = features.extract(net, pictures, (16, 8), torch.device('cpu'), 4, workers=workers)
    assert f.shape == (11, 8)
    assert f.dtype == np.float32
    x = torch.stack([transform(data.read(path)) for path in pictures])
    with torch.no_grad():
        np.testing.assert_allclose(f, features.describe(net.eval(), x).numpy(), atol=1e-6)


def test_a_batch_that_is_too_large_for_a_gpu_is_a_sentence_with_one_that_fits(pictures):
    class Small(Toy):
        def embed(self, x):
            if len(x) > 6:  # two views of each picture
                raise torch.OutOfMemoryError('out of memory')
            return super().embed(x)

    with pytest.raises(Problem, match='--batchsize 8 needs; 2 fits'):
        features.extract(Small(), pictures, (16, 8), torch.device('cpu'), 8)
    assert features.extract(Small(), pictures, (16, 8), torch.device('cpu'), 3).shape == (11, 8)


def test_heat_is_where_the_likeness_is():
    """A channel that fires at bright spots, another at dark ones, a bright query: a picture's bright spot is warm."""
    net = Toy()
    with torch.no_grad():
        net.conv.weight.zero_()
        net.conv.bias.zero_()
        net.conv.weight[2, :, 1, 1], net.conv.weight[5, :, 1, 1] = 1, -1
    x = torch.zeros(2, 3, 16, 8)
    x[0, :, 12, 3] = x[1, :, 4, 6] = 1
    x[1, :, 13, 2] = -1
    heat = heatmap.heat(net, x)
    assert heat.shape == (2, 16, 8)
    for picture, place in zip(heat, ((12, 3), (4, 6)), strict=True):
        assert divmod(int(picture.argmax()), 8) == place
        assert picture.max() == 1
    assert heat[1, 13, 2] < 0.5  # not 0: enlarging a dark spot makes a bright fringe


@pytest.mark.parametrize(('head', 'pool'), [('classblock', 'avg'), ('pcb', 'avg'), ('bnneck', 'gem')])
def test_the_shares_of_all_places_add_up_to_the_score(head, pool):
    opts = argparse.Namespace(backbone='resnet18', head=head, pool=pool, droprate=0.5, nclasses=5)
    vars(opts).update(dict.fromkeys(('height', 'width', 'stride', 'linear_num', 'loss_feature', 'test_feature')))
    torch.manual_seed(0)
    net = model.build(model.complete(opts))
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.running_mean.normal_()
            layer.bias.data.normal_()
    net.eval()
    x, target = torch.randn(2, 3, 192, 64), torch.randn(net.dim)
    with torch.no_grad():
        score = net.embed(x) @ target
    torch.testing.assert_close(heatmap.shares(net, x, target).mean((1, 2)), score, rtol=1e-3, atol=1e-3)
