"""Depthwise convolution, one k x k filter a channel, that learns quickly on a CPU as well.

oneDNN, which convolves for torch on a CPU, is quick forwards, and backwards for 3x3 at stride 1. Two gradients take it
much longer than they need to: the one of the input at stride 2, in bfloat16 some twenty times and more, and the one of
a filter wider than 3, in bfloat16 about ten times, in float32 up to three. `QuickBackward` makes both of them from what
is quick.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class Depthwise(nn.Conv2d):
    """nn.Conv2d(channels, channels, kernel, stride, padding, groups=channels, bias=False), with the same state_dict."""

    def __init__(self, channels, kernel, stride=1, padding=0):
        super().__init__(channels, channels, kernel, stride, padding, groups=channels, bias=False)

    def forward(self, x):  # (B, C, H, W) -> (B, C, h, w)
        if self.quick_anyway(x):
            return super().forward(x)
        x, w = x.to(computes_in(x)), self.weight.to(computes_in(x))  # what autocast does before a conv2d
        return QuickBackward.apply(x, w, self.stride[0], self.padding[0])

    def quick_anyway(self, x):
        """Is torch's own backward pass as quick, or not wanted? A graph that is recorded to run elsewhere stays plain,
        and so does a layer into which a batch norm was folded: it has a bias."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or self.bias is not None or x.device.type != 'cpu':
            return True
        wanted = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        large, strided = self.kernel_size[0] > 3, self.stride[0] > 1
        slow = {torch.bfloat16: large or strided, torch.float32: large}
        return not (wanted and slow.get(computes_in(x)))


def computes_in(x):
    """The type in which a conv2d of x on a CPU computes; autocast leaves float64 alone."""
    cast = torch.is_autocast_enabled('cpu') and x.dtype != torch.float64
    return torch.get_autocast_dtype('cpu') if cast else x.dtype


class QuickBackward(torch.autograd.Function):
    """conv2d(x, w) with stride s and padding p on all sides, x (B, C, H, W) and w (C, 1, k, k)."""

    @staticmethod
    @torch.amp.custom_fwd(device_type='cpu')
    def forward(ctx, x, w, s, p):
        ctx.save_for_backward(x, w)
        ctx.s, ctx.p = s, p
        return F.conv2d(x, w, None, s, p, 1, len(w))

    @staticmethod
    @once_differentiable  # asked for the gradient of a gradient, it says that it has none
    @torch.amp.custom_bwd(device_type='cpu')
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        dx = input_gradient(g, x, w, ctx.s, ctx.p) if ctx.needs_input_grad[0] else None
        dw = weight_gradient(g, x, w, ctx.s, ctx.p) if ctx.needs_input_grad[1] else None
        return dx, dw, None, None


def input_gradient(g, x, w, s, p):
    """dx[u] = sum over i of w[i] g[(u + p - i) / s], where that is whole. Zeros between the elements of g make it as
    large as at stride 1, and then this is what it is at stride 1: the convolution with the flipped w."""
    k = w.shape[-1]
    if s == 1 or g.dtype == torch.float32 or p >= k:  # so wide a padding would become a negative one here
        return torchs_own(g, x, w, s, p, (True, False))[0]
    b, c, height, width = x.shape
    spread = g.new_zeros(b, height + 2 * p - k + 1, width + 2 * p - k + 1, c).permute(0, 3, 1, 2)  # channels_last
    spread[:, :, ::s, ::s] = g
    return F.conv2d(spread, w.flip(2, 3), None, 1, k - 1 - p, 1, c)


def weight_gradient(g, x, w, s, p):
    """dw[i, j] = sum over b, u, v of g[u, v] x[s u + i - p, s v + j - p]. Three columns of it from j on are those of a
    filter that is three wide, over x from j on. Two such, which overlap, cover 5x5."""
    k = w.shape[-1]
    if k <= 3:
        return torchs_own(g, x, w, s, p, (False, True))[1]
    dw, width = torch.zeros_like(w), x.shape[3]
    wide = (g.shape[3] - 1) * s + 3  # what such a filter sees of x
    for j in [*range(0, k - 3, 3), k - 3]:
        left = p - j  # this much padding comes first; if it is negative, so much of x is cut off
        if -width < left < wide:  # else there is only padding to be seen
            seen = F.pad(x, (left, wide - width - left, p, p))
            dw[..., j : j + 3] = torchs_own(g, seen, w[..., j : j + 3], s, 0, (False, True))[1]
    return dw


def torchs_own(g, x, w, s, p, wanted):
    """The gradients of x and w, those that are wanted, as torch computes them."""
    mask = (*wanted, False)
    return torch.ops.aten.convolution_backward(g, x, w, None, (s, s), (p, p), (1, 1), False, (0, 0), len(w), mask)[:2]
