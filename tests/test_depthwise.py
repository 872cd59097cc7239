"""Depthwise convolution against torch's own: python -m pytest tests/test_depthwise.py"""

import copy

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from reid.depthwise import Depthwise, QuickBackward

LAYERS = [(3, 2, 1), (3, 2, 0), (5, 1, 2), (5, 2, 2), (5, 2, 0), (7, 1, 3), (7, 2, 3)]  # kernel, stride, padding


def gradients(y, *inputs, seed=0):
    """Of a weighted sum of y, with weights by lot."""
    g = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.autograd.grad(y, inputs, g.to(y.dtype))


def layer(kernel, stride, padding, channels=6):
    torch.manual_seed(0)
    return Depthwise(channels, kernel, stride, padding)


def picture(dtype=torch.float32, size=(13, 10), channels=6):
    x = torch.randn(3, channels, *size, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_()


def takes_quick_way(y):
    return y.grad_fn.name() == 'QuickBackwardBackward'


@given(
    k=st.sampled_from([1, 2, 3, 4, 5, 6, 7, 9]),
    s=st.integers(1, 3),
    p=st.integers(0, 5),
    size=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    b=st.integers(1, 3),
    c=st.integers(1, 4),
    form=st.sampled_from([torch.channels_last, torch.contiguous_format]),
)
@settings(max_examples=300, deadline=None)
def test_same_gradients_as_torch_for_every_size(k, s, p, size, b, c, form):
    assume(min(size) + 2 * p >= k)
    draw = torch.Generator().manual_seed(k + 10 * s + 100 * p)
    x = torch.randn(b, c, *size, dtype=torch.float64, generator=draw).contiguous(memory_format=form).requires_grad_()
    w = torch.randn(c, 1, k, k, dtype=torch.float64, generator=draw).requires_grad_()
    ours, theirs = QuickBackward.apply(x, w, s, p), F.conv2d(x, w, None, s, p, 1, c)
    assert torch.equal(ours, theirs)
    for one, other in zip(gradients(ours, x, w), gradients(theirs, x, w), strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('kernel, stride, padding', LAYERS)
def test_gradients_against_finite_differences(kernel, stride, padding):
    x = torch.randn(1, 2, 8, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    w = torch.randn(2, 1, kernel, kernel, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert torch.autograd.gradcheck(lambda x, w: QuickBackward.apply(x, w, stride, padding), (x, w.requires_grad_()))


@pytest.mark.parametrize('kernel, stride, padding', LAYERS)
@pytest.mark.parametrize('form', [torch.channels_last, torch.contiguous_format])
def test_bfloat16_is_near_float64(kernel, stride, padding, form):
    net = layer(kernel, stride, padding).bfloat16()
    x = picture(torch.bfloat16).detach().contiguous(memory_format=form).requires_grad_()
    y = net(x)
    assert takes_quick_way(y) and y.dtype == torch.bfloat16
    exact = copy.deepcopy(net).double()
    x64 = x.detach().double().requires_grad_()
    for one, other in zip(gradients(y, x, net.weight), gradients(exact(x64), x64, exact.weight), strict=True):
        assert one.dtype == torch.bfloat16
        assert (one - other).norm() < 0.01 * other.norm()  # a bfloat16 has 8 bits: 0.4 % at most in each number


@pytest.mark.parametrize('kernel, stride, padding', LAYERS)
def test_autocast_as_with_a_plain_convolution(kernel, stride, padding):
    net = layer(kernel, stride, padding)
    plain = nn.Conv2d(6, 6, kernel, stride, padding, groups=6, bias=False)
    plain.load_state_dict(net.state_dict())
    x = picture()
    with torch.autocast('cpu', torch.bfloat16):
        ours, theirs = net(x), plain(x)
        assert takes_quick_way(ours) and ours.dtype == theirs.dtype == torch.bfloat16
        assert torch.equal(ours, theirs) and ours.stride() == theirs.stride()
    for one, other in zip(gradients(ours, x, net.weight), gradients(theirs, x, plain.weight), strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 0.01 * other.norm()


def test_autocast_leaves_float64_alone():
    with torch.autocast('cpu', torch.bfloat16):
        assert layer(5, 2, 2).double()(picture(torch.float64)).dtype == torch.float64


def test_channels_last_stays():
    for kernel, stride, padding in LAYERS:
        net, x = layer(kernel, stride, padding).bfloat16(), picture(torch.bfloat16)
        y = net(x)
        (dx,) = gradients(y, x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert dx.is_contiguous(memory_format=torch.channels_last)


def test_backward_under_another_autocast():
    """Backward passes compute as their forward pass did, whatever surrounds the call."""
    net, x = layer(5, 2, 2).bfloat16(), picture(torch.bfloat16)
    expected = gradients(net(x), x, net.weight)
    y = net(x)
    with torch.autocast('cpu', torch.float16):
        found = gradients(y, x, net.weight)
    assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_only_what_is_wanted():
    net, x = layer(5, 2, 2).bfloat16(), picture(torch.bfloat16)
    both = gradients(net(x), x, net.weight)
    assert torch.equal(gradients(net(x.detach()), net.weight)[0], both[1])
    net.weight.requires_grad_(False)
    assert torch.equal(gradients(net(x), x)[0], both[0])
    assert net(x.detach()).grad_fn is None


@pytest.mark.parametrize('kernel, stride, padding', LAYERS)
def test_float32_takes_it_for_wide_filters(kernel, stride, padding):
    net, x = layer(kernel, stride, padding), picture()
    y = net(x)
    assert takes_quick_way(y) == (kernel > 3)
    theirs = gradients(F.conv2d(x, net.weight, None, stride, padding, 1, 6), x, net.weight)
    for one, other in zip(gradients(y, x, net.weight), theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_plain_where_that_is_as_quick():
    x = picture(torch.bfloat16)
    assert not takes_quick_way(layer(3, 1, 1).bfloat16()(x))
    assert not takes_quick_way(layer(5, 2, 2).double()(x.double()))
    with torch.no_grad():
        assert layer(5, 2, 2).bfloat16()(x).grad_fn is None


def test_a_bias_that_was_folded_in_counts():
    net, norm, x = layer(5, 2, 2).eval(), nn.BatchNorm2d(6).eval(), picture()
    nn.init.normal_(norm.bias)
    folded = nn.utils.fusion.fuse_conv_bn_eval(net, norm)
    torch.testing.assert_close(folded(x), norm(net(x)))
    assert (folded.bfloat16()(x.bfloat16()) - norm(net(x))).abs().max() < 0.1


def test_no_second_derivative():
    net, x = layer(5, 2, 2).bfloat16(), picture(torch.bfloat16)
    (dx,) = torch.autograd.grad(net(x).float().square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='once_differentiable'):
        dx.float().sum().backward()


def test_same_names_as_a_convolution():
    plain = nn.Conv2d(6, 6, 5, 2, 2, groups=6, bias=False)
    assert {k: v.shape for k, v in plain.state_dict().items()} == {
        k: v.shape for k, v in layer(5, 2, 2).state_dict().items()
    }


@pytest.mark.filterwarnings('ignore:.*torch.jit.trace.*:FutureWarning')
def test_recorded_as_a_plain_convolution():
    """With gradients on and nothing said about eval: an export must not meet a function that only torch knows."""
    net, x = layer(5, 2, 2).bfloat16(), picture(torch.bfloat16).detach()
    exported = torch.export.export(net, (x,))
    calls = [node.target for node in exported.graph.nodes if node.op == 'call_function']
    assert calls == [torch.ops.aten.conv2d.default]
    traced = torch.jit.trace(net, x)
    assert 'QuickBackward' not in str(traced.inlined_graph) and 'aten::_convolution' in str(traced.inlined_graph)
    assert torch.equal(exported.module()(x), net(x)) and torch.equal(traced(x), net(x))
