"""Random changes to training pictures: a whole batch at a time, where it lies, with a draw of its own for each picture.

    changed = Augment(height, width, erasing_p=0.5)(batch)  # uint8 (B, 3, H, W) -> float (B, 3, H, W), normalised

What is drawn comes from torch's default generator on the CPU: a seed gives the same on all devices. Inside, a batch is
(B, H, 3W): rows of r g b r g b ..., since broadcasting along a last dimension of 3 is ten times slower. So what goes
out is channels_last. The work is done on bytes as far as possible; float comes last.
"""

import math

import torch
from torch import nn
from torchvision import transforms as T
from torchvision.transforms.v2 import functional as V

from reid.data import MEAN, STD

# What random erasing writes, as it is after normalisation; None: N(0, 1), drawn for each value.
ERASING = {
    'mean': (0.0, 0.0, 0.0),  # the mean colour
    'black': tuple(-mean / std for mean, std in zip(MEAN, STD, strict=True)),
    'shifted': MEAN,  # the mean colour's numbers as the strong baseline writes them: a light grey, in truth
    'noise': None,
}

# Of torchvision, for one picture at a time (on a batch they would draw once for all): POLICIES[name]() is a function
# uint8 (3, H, W) -> uint8 (3, H, W) that can be sent to other processes.
POLICIES = {
    'none': nn.Identity,
    'autoaugment': T.AutoAugment,  # arXiv 1805.09501
    'randaugment': T.RandAugment,  # arXiv 1909.13719
    'trivialaugment': T.TrivialAugmentWide,  # arXiv 2103.10158
    'augmix': T.AugMix,  # arXiv 1912.02781
}

GREY = (0.299, 0.587, 0.114)  # how much red, green and blue weigh, as in Pillow


def each(policy, x):
    """A policy on every picture of x (B, 3, H, W) by itself."""
    return x if isinstance(policy, nn.Identity) else torch.stack([policy(picture) for picture in x])


class Augment:
    """The changes of a training run, by its options."""

    def __init__(self, height, width, shift=True, erasing_p=0.0, erasing='mean', color_jitter=False, gray_patch_p=0.0):
        self.height, self.width, self.shift = height, width, shift  # PCB does not shift: its stripes stay in place
        self.erasing_p, self.erasing = erasing_p, erasing
        self.color_jitter, self.gray_patch_p = color_jitter, gray_patch_p

    def __call__(self, x, scale=1.0):
        """x uint8 (B, 3, H, W) -> float (B, 3, H', W'), smaller by `scale` for progressive resizing."""
        x = self.resized(x, scale)
        height = x.shape[2]
        x = rows(x)
        if self.color_jitter:
            x = jitter(x)
        x = mirror_and_shift(x, round(10 * height / 256) if self.shift else 0)  # 10 pixels at 256x128
        if self.gray_patch_p > 0:
            x = gray_patch(x, self.gray_patch_p)
        x = standardise(x)
        if self.erasing_p > 0:
            x = erase(x, self.erasing_p, ERASING[self.erasing])
        return pictures(x)

    def plain(self, x, scale=1.0):
        """The same size, but nothing changed: for val, which a network that grows sees as it sees its lessons."""
        return normalise(self.resized(x, scale))

    def resized(self, x, scale):
        size = self.size(scale)
        if tuple(x.shape[2:]) == size:
            return x
        return V.resize(x, list(size), T.InterpolationMode.BILINEAR, antialias=True)

    def size(self, scale):
        """Height and width at a scale: below 1 whole multiples of 16, since backbones halve four times or more."""
        if scale == 1:
            return self.height, self.width
        return tuple(max(1, round(side * scale / 16)) * 16 for side in (self.height, self.width))


class Unchanged(Augment):
    """For what is no picture any more: the features of a frozen network."""

    def __call__(self, x, scale=1.0):
        return x

    plain = __call__


def normalise(x):
    """uint8 (B, 3, H, W) -> float (B, 3, H, W), as data.test_transform has it, channels_last."""
    return pictures(standardise(rows(x)))


# ---------------------------------------------------------------------------------------------------------------------
# 1. between (B, 3, H, W), of any memory format, and (B, H, 3W)


def rows(x):
    return x.permute(0, 2, 3, 1).flatten(2).contiguous()


def pictures(x):
    return x.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# 2. the steps, on x (B, H, 3W)


def standardise(x):
    """Bytes -> float, minus the mean, by the standard deviation."""
    mean, std = (255 * torch.tensor(v, device=x.device).repeat(x.shape[2] // 3) for v in (MEAN, STD))  # (3W,)
    return x.float().sub_(mean).mul_(1 / std)


def jitter(x, most=0.1):
    """Brightness, contrast and saturation by factors from 1 - most to 1 + most, in an order drawn for each picture."""
    order = torch.rand(len(x), 3).argsort(1)  # (B, 3)
    factor = torch.empty(len(x), 3).uniform_(1 - most, 1 + most)
    x = x.float()
    for kind, f in zip(order.T, factor.T, strict=True):
        x = adjust(x, kind, f)
    return x.round_().to(torch.uint8)


def adjust(x, kind, f):
    """f x + (1 - f) other, where other is black (kind 0: brightness), the picture's mean grey (1: contrast) or each
    pixel's own grey (2: saturation). x (B, H, 3W) float, which is changed, kind (B,), f (B,)"""
    f = f.view(-1, 1, 1)
    parts = torch.stack([f, (1 - f) * (kind == 1).view(-1, 1, 1), (1 - f) * (kind == 2).view(-1, 1, 1)])
    f, contrast, saturation = parts.to(x.device, non_blocking=True)  # (B, 1, 1) each
    own = grey(x)  # (B, H, W)
    other = saturation * own + contrast * own.mean((1, 2), keepdim=True)
    x.mul_(f).unflatten(2, (-1, 3)).add_(other[..., None])
    return x.clamp_(0, 255)


def grey(x):
    """(B, H, 3W) float -> (B, H, W)"""
    return x.unflatten(2, (-1, 3)) @ torch.tensor(GREY, device=x.device)


def mirror_and_shift(x, pad):
    """Mirror, by a coin; then frame with `pad` black pixels and cut the old size out at a random place."""
    b, height, width = x.shape  # in values: three to a pixel
    both = x.new_zeros(2, b, height + 2 * pad, width + 6 * pad)
    both[0, :, pad : pad + height, 3 * pad : 3 * pad + width] = x
    both[1, :, pad : pad + height, 3 * pad : 3 * pad + width] = x.unflatten(2, (-1, 3)).flip(2).flatten(2)
    windows = both.unfold(2, height, 1).unfold(3, width, 3)  # (2, B, 1 + 2 pad, 1 + 2 pad, H, 3W), a view
    coin = (torch.rand(b) < 0.5).long()
    top, left = torch.randint(0, 2 * pad + 1, (2, b))
    chosen = torch.stack([coin, torch.arange(b), top, left]).to(x.device, non_blocking=True)
    return windows[tuple(chosen)]


def gray_patch(x, p):
    """Local grayscale, arXiv 2101.08533: with probability p a box of the picture loses its colours."""
    inside, _ = boxes(x, p)
    grey_x = grey(x.float()).round_().to(torch.uint8).repeat_interleave(3, 2)
    return torch.where(inside, grey_x, x, out=x)


def erase(x, p, colour):
    """Random erasing, arXiv 1708.04896: with probability p a box of the picture is overwritten."""
    inside, n = boxes(x, p)
    if colour is None:
        return x.masked_scatter_(inside, torch.randn(n).to(x.device, non_blocking=True))
    return torch.where(inside, torch.tensor(colour, device=x.device).repeat(x.shape[2] // 3), x, out=x)


# ---------------------------------------------------------------------------------------------------------------------
# 3. boxes


def boxes(x, p):
    """What lies inside of the boxes, True or False in the shape of x (B, H, 3W), and how many of its values that are.
    The boxes are drawn on the CPU, which so knows the number without waiting for the device."""
    b, height, width = len(x), x.shape[1], x.shape[2] // 3
    top, left, h, w = draw(b, height, width, p)
    starts = torch.stack([top, top + h, 3 * left, 3 * (left + w)]).to(x.device, non_blocking=True)[..., None]
    down, across = torch.arange(height, device=x.device), torch.arange(3 * width, device=x.device)
    down = (starts[0] <= down) & (down < starts[1])  # (B, H)
    across = (starts[2] <= across) & (across < starts[3])  # (B, 3W)
    # As bytes, since `and` of booleans is forty times slower on a CPU.
    inside = down.view(torch.uint8)[:, :, None] & across.view(torch.uint8)[:, None]
    return inside.view(torch.bool), int(3 * (h * w).sum())


def draw(b, height, width, p, scale=(0.02, 0.4), ratio=(0.3, 1 / 0.3), tries=10):
    """top, left, height, width (B,) of boxes, which are empty for a share 1 - p of the pictures.

    Area and aspect ratio are drawn until the box is smaller than the picture. After ten tries there is none (for a
    tall picture wide boxes of great area never fit). The ratio is drawn evenly in its logarithm, as torchvision does:
    at 256x128 40 boxes of 100 are wider than tall. The paper draws the ratio itself evenly: 18 of 100.
    """
    area = height * width * torch.empty(b, tries).uniform_(*scale)
    ratio = torch.empty(b, tries).uniform_(*map(math.log, ratio)).exp()
    h, w = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
    fits = (h < height) & (w < width)
    first = fits.byte().argmax(1, keepdim=True)
    wanted = fits.any(1) & (torch.rand(b) < p)
    h, w = (side.gather(1, first)[:, 0] * wanted for side in (h, w))
    top, left = (torch.rand(b) * (whole - side + 1) for whole, side in ((height, h), (width, w)))
    return top.long(), left.long(), h, w
