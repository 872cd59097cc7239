"""OSNet against its paper's figures and a second way to write it: python -m pytest tests/test_osnet.py"""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from reid.depthwise import Depthwise
from reid.osnet import OSNet

# Published for 256x128: width, weights and multiply-adds in millions. The classifier of ImageNet is not counted.
PUBLISHED = [(1.0, 2.2, 978.9), (0.75, 1.3, 571.8), (0.5, 0.6, 272.9), (0.25, 0.2, 82.3)]


def lively(width, seed=0, **settings):
    """Weights by lot, the norms and biases too, such that every layer matters to what comes out."""
    torch.manual_seed(seed)
    net = OSNet(width, **settings)
    for name, value in net.state_dict().items():
        if value.dim() == 4:
            value.normal_(std=(2 / value[0].numel()) ** 0.5)
        elif name.endswith(('bn.weight', 'running_var')):
            value.uniform_(0.5, 1.5)
        elif name.endswith(('bias', 'running_mean')):
            value.normal_()
    return net.eval()


# ---------------------------------------------------------------------------------------------------------------------
# 1. a reference: functions over a dict of tensors, by the names in the authors' files


def convolve(s, name, x, relu=True, stride=1):
    weight = s[f'{name}.conv.weight']
    x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
    return normalise(s, f'{name}.bn', x, relu)


def normalise(s, name, x, relu):
    mean, var, weight, bias = (
        s[f'{name}.{part}'].view(1, -1, 1, 1) for part in ('running_mean', 'running_var', 'weight', 'bias')
    )
    x = (x - mean) / torch.sqrt(var + 1e-5) * weight + bias
    return x.clamp(min=0) if relu else x


def lite(s, name, x):
    x = F.conv2d(x, s[f'{name}.conv1.weight'])
    return normalise(s, f'{name}.bn', F.conv2d(x, s[f'{name}.conv2.weight'], padding=1, groups=x.shape[1]), True)


def block(s, name, x):
    y = convolve(s, f'{name}.conv1', x)
    total = 0
    for depth, letter in enumerate('abcd', 1):
        stream = y
        for i in range(depth):
            stream = lite(s, f'{name}.conv2{letter}' + (f'.{i}' if depth > 1 else ''), stream)
        pooled = stream.mean((2, 3), keepdim=True)
        hidden = F.conv2d(pooled, s[f'{name}.gate.fc1.weight'], s[f'{name}.gate.fc1.bias']).clamp(min=0)
        z = F.conv2d(hidden, s[f'{name}.gate.fc2.weight'], s[f'{name}.gate.fc2.bias'])
        total = total + stream / (1 + (-z).exp())
    y = convolve(s, f'{name}.conv3', total, relu=False)
    identity = convolve(s, f'{name}.downsample', x, relu=False) if f'{name}.downsample.conv.weight' in s else x
    return (y + identity).clamp(min=0)


def reference(s, x):
    x = F.max_pool2d(convolve(s, 'conv1', x, stride=2), 3, 2, 1)
    for stage in ('conv2', 'conv3', 'conv4'):
        x = block(s, f'{stage}.1', block(s, f'{stage}.0', x))
        if stage != 'conv4':
            x = F.avg_pool2d(convolve(s, f'{stage}.2.0', x), 2)
    maps = convolve(s, 'conv5', x)
    feature = maps.mean((2, 3)) @ s['fc.0.weight'].T + s['fc.0.bias']
    feature = (feature - s['fc.1.running_mean']) / torch.sqrt(s['fc.1.running_var'] + 1e-5)
    feature = (feature * s['fc.1.weight'] + s['fc.1.bias']).clamp(min=0)
    return maps, feature @ s['classifier.weight'].T + s['classifier.bias']


# ---------------------------------------------------------------------------------------------------------------------
# 2. tests


@pytest.mark.parametrize('width, size', [(1.0, (64, 32)), (0.75, (64, 32)), (0.5, (131, 70)), (0.25, (256, 128))])
@torch.no_grad()
def test_same_as_the_reference(width, size):
    net = lively(width).double()
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    maps, scores = reference(net.state_dict(), x)
    assert maps.shape == (2, net.channels, size[0] // 16, size[1] // 16) and net.channels == 512 * width
    assert maps.std() > 0.1 and (maps[0] - maps[1]).std() > 0.05  # of dead maps nothing could be told
    torch.testing.assert_close(net.maps(x), maps)
    torch.testing.assert_close(net(x), scores)


@pytest.mark.parametrize('width, weights, multiply_adds', PUBLISHED)
@torch.no_grad()
def test_as_large_as_published(width, weights, multiply_adds):
    net = OSNet(width).eval()
    counted = sum(p.numel() for name, p in net.named_parameters() if not name.startswith('classifier.'))
    with FlopCounterMode(display=False) as flops:
        net(torch.zeros(1, 3, 256, 128))
    counted_multiply_adds = flops.get_total_flops() / 2 - net.classifier.weight.numel()
    assert round(counted / 1e6, 1) == weights
    assert round(counted_multiply_adds / 1e6, 1) == multiply_adds


def test_names_and_shapes_of_the_authors_files():
    """Of width 1: one tensor of each kind, and how many there are."""
    state = OSNet().state_dict()
    expected = {
        'conv1.conv.weight': (64, 3, 7, 7),
        'conv1.bn.running_mean': (64,),
        'conv2.0.conv1.conv.weight': (64, 64, 1, 1),
        'conv2.0.conv2a.conv1.weight': (64, 64, 1, 1),
        'conv2.0.conv2a.conv2.weight': (64, 1, 3, 3),
        'conv2.0.conv2a.bn.weight': (64,),
        'conv2.0.conv2b.1.conv1.weight': (64, 64, 1, 1),
        'conv2.1.conv2d.3.conv2.weight': (64, 1, 3, 3),
        'conv2.0.gate.fc1.weight': (4, 64, 1, 1),
        'conv2.0.gate.fc1.bias': (4,),
        'conv2.0.gate.fc2.weight': (64, 4, 1, 1),
        'conv2.0.conv3.conv.weight': (256, 64, 1, 1),
        'conv2.0.downsample.conv.weight': (256, 64, 1, 1),
        'conv2.0.downsample.bn.bias': (256,),
        'conv2.2.0.conv.weight': (256, 256, 1, 1),
        'conv3.0.downsample.conv.weight': (384, 256, 1, 1),
        'conv3.2.0.bn.running_var': (384,),
        'conv4.1.conv1.conv.weight': (128, 512, 1, 1),
        'conv5.conv.weight': (512, 512, 1, 1),
        'conv5.bn.num_batches_tracked': (),
        'fc.0.weight': (512, 512),
        'fc.1.running_mean': (512,),
        'classifier.weight': (1000, 512),
    }
    assert {name: tuple(state[name].shape) for name in expected} == expected
    assert len(state) == 567
    assert not any(name.startswith(('conv4.2', 'conv2.1.downsample')) for name in state)


@pytest.mark.parametrize('width', [1.0, 0.25])
@torch.no_grad()
def test_stride_1_doubles_the_maps(width):
    fine, coarse = OSNet(width, stride=1).eval(), OSNet(width).eval()
    assert {k: v.shape for k, v in fine.state_dict().items()} == {k: v.shape for k, v in coarse.state_dict().items()}
    x = torch.zeros(1, 3, 128, 64)
    assert coarse.maps(x).shape == (1, coarse.channels, 8, 4)
    assert fine.maps(x).shape == (1, fine.channels, 16, 8)


def test_one_gate_for_all_streams():
    """Unified: the same few weights, asked once for each stream."""
    block = lively(0.25).conv3[0]
    x = torch.rand(2, 64, 8, 4, generator=torch.Generator().manual_seed(0))
    seen = []
    block.gate.register_forward_hook(lambda gate, given, result: seen.append(given[0]))
    block(x)
    assert len(seen) == 4
    assert sum(p.numel() for p in block.gate.parameters()) == 24 * 1 + 1 + 1 * 24 + 24


@pytest.mark.parametrize('depth, letter', [*enumerate('abcd', 1)])
def test_each_stream_sees_its_scale(depth, letter):
    """t lite layers see 2t + 1 pixels: where the middle of what comes out depends on what goes in."""
    stream = getattr(lively(0.5).conv3[0], f'conv2{letter}').double()
    x = torch.rand(1, 48, 15, 15, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    stream(x)[0, :, 7, 7].sum().backward()
    rows = x.grad[0].abs().sum((0, 2)).nonzero()[:, 0]
    assert [*rows] == [*range(7 - depth, 7 + depth + 1)]


def test_lite_layers_are_depthwise():
    layers = [layer for layer in OSNet(0.25).modules() if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    assert len(layers) == 6 * 10 and all(isinstance(layer, Depthwise) for layer in layers)


def test_begins_as_kaiming_says():
    torch.manual_seed(0)
    state = OSNet().state_dict()
    for name, fan_out in (('conv1.conv', 64 * 7 * 7), ('conv4.0.conv3.conv', 512), ('conv4.0.conv2a.conv2', 128 * 9)):
        assert state[f'{name}.weight'].std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
    assert not any(value.any() for name, value in state.items() if name.endswith('bias'))


def test_learns():
    """A few steps on one batch, under the autocast that training uses."""
    torch.manual_seed(0)
    net = OSNet(0.25, stride=1).to(memory_format=torch.channels_last)
    x, y = torch.randn(8, 3, 64, 32), torch.arange(8)
    step = torch.optim.Adam(net.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        with torch.autocast('cpu', torch.bfloat16):
            scores = net(x)
        losses.append(F.cross_entropy(scores.float(), y))
        step.zero_grad()
        losses[-1].backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        step.step()
    assert losses[-1] < 0.3 * losses[0]
