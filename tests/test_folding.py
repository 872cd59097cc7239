"""Quicker networks give the same numbers: python -m pytest tests/test_folding.py"""

import argparse
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import model
from reid import folding

SIZE = (64, 32)


def lived(net):
    """As if it had been trained: no statistic is what it was at the beginning."""
    torch.manual_seed(0)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
            layer.running_mean.normal_(std=0.2)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.data.uniform_(0.5, 1.5)
            layer.bias.data.normal_(std=0.2)
    return net.eval()


def built(backbone, head='classblock'):
    opts = argparse.Namespace(backbone=backbone, head=head, pool='avg', droprate=0.5, nclasses=5)
    vars(opts).update(dict.fromkeys(('stride', 'linear_num', 'loss_feature', 'test_feature')))
    opts.height, opts.width = SIZE
    return lived(model.build(model.complete(opts)))


def norms(net):
    return sum(isinstance(layer, nn.BatchNorm2d) for layer in net.modules())


@pytest.mark.parametrize(
    ('backbone', 'head', 'left'),
    [
        ('resnet18', 'classblock', 0),
        ('resnet18', 'pcb', 0),
        ('efficientnet_lite0', 'bnneck', 0),
        ('densenet121', 'classblock', 62),  # 121 in all: those that look at several layers at once stay
        ('resnet50_ibn_a', 'classblock', 13),  # half of their channels only
        ('osnet_x0_25', 'classblock', 0),
        ('mobilenet_v3_small', 'linear', 0),
        ('convnext_tiny', 'bnneck', 0),  # it has none
    ],
)
@torch.no_grad()
def test_the_features_stay_and_the_norms_go(backbone, head, left):
    net, x = built(backbone, head), torch.randn(3, 3, *SIZE)
    expected, before = net.embed(x), copy.deepcopy(net.state_dict())
    quick = folding.quick(net, SIZE)
    assert norms(quick) == left
    torch.testing.assert_close(quick.embed(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    torch.testing.assert_close(net.embed(x), expected)


class Odd(nn.Module):
    """Folding would harm it, for `way` it goes: what the convolution gives is used twice, or a norm is."""

    parts = 1

    def __init__(self, way):
        super().__init__()
        self.way, self.conv, self.other = way, nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)

    def embed(self, x):
        y = self.conv(x)
        if self.way == 'both':
            y = y + self.norm(y)
        elif self.way == 'norm twice':
            y = self.norm(y) + self.norm(self.other(x))
        elif self.way == 'conv twice':
            y = self.norm(y) + self.conv(x.flip(3))
        elif self.way == 'between':
            y = self.norm(F.relu(y))
        return y.mean((2, 3))


@pytest.mark.parametrize('way', ['both', 'norm twice', 'conv twice', 'between'])
@torch.no_grad()
def test_what_cannot_be_folded_is_left_alone(way):
    net, x = lived(Odd(way)), torch.randn(3, 3, *SIZE)
    quick = folding.quick(net, SIZE)
    assert norms(quick) == 1
    torch.testing.assert_close(quick.embed(x), net.embed(x))


@torch.no_grad()
def test_in_half_precision_the_weights_are_halved_once():
    net, x, cast = built('resnet18'), torch.randn(3, 3, *SIZE), torch.autocast('cpu', torch.bfloat16)
    quick = folding.quick(net, SIZE, cast)
    kinds = {type(layer): layer.weight.dtype for layer in quick.modules() if hasattr(layer, 'weight')}
    assert kinds[nn.Conv2d] == kinds[nn.Linear] == torch.bfloat16
    assert kinds[nn.BatchNorm1d] == torch.float32
    with cast:
        found, expected = quick.embed(x).float(), net.embed(x).float()
    assert F.cosine_similarity(found, expected).min() > 0.999
