"""Adversarial queries: python -m pytest tests/test_adversary.py"""

from contextlib import nullcontext

import torch
from torch import nn
from torch.nn import functional as F

from reid import adversary
from reid.data import MEAN, STD


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), nn.Linear(8, 5)

    def embed(self, x):
        return self.norm(self.conv(x)).relu().mean((2, 3)) - 0.3

    def forward(self, x):
        f = self.embed(x)
        return [self.last(f)], f


def pictures():
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (torch.rand(6, 3, 16, 8) - mean) / std, mean, std


def test_the_feature_turns_away_within_the_limit():
    torch.manual_seed(0)
    net = Small().train()
    x, mean, std = pictures()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    changed = adversary.turned(net, x)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())  # statistics too
    assert net.training
    assert all(p.grad is None for p in net.parameters())
    assert not changed.requires_grad
    raw = changed * std + mean
    assert raw.min() >= -1e-6
    assert raw.max() <= 1 + 1e-6
    moved = ((changed - x) * std).abs()
    assert moved.max() <= adversary.LIMIT + 1e-6
    assert moved.max() >= adversary.LIMIT * 0.9
    net.eval()
    likeness = F.cosine_similarity(net.embed(changed), net.embed(x))
    noise = x + adversary.LIMIT / std * torch.randn_like(x).sign()
    assert (likeness < F.cosine_similarity(net.embed(noise), net.embed(x))).all()


def test_every_tenth_batch_has_a_loss_of_its_own():
    torch.manual_seed(0)
    net = Small().eval()  # statistics that stay as they are, to do it again
    x, _, _ = pictures()
    y = torch.arange(6) % 5
    extra = adversary.Adversary(net, nn.CrossEntropyLoss(), weight=0.5, every=3)
    for epoch in (1, 2):  # each begins to count anew, as a resumed run does
        extra.set_epoch(epoch)
        values = [extra(x, y, nullcontext()) for _ in range(4)]
        assert [isinstance(value, torch.Tensor) for value in values] == [True, False, False, True]
    value = values[3]
    value.backward()
    assert net.last.weight.grad.norm() > 0
    expected = 0.5 * F.cross_entropy(net(adversary.turned(net, x))[0][0], y)
    torch.testing.assert_close(value, expected)
