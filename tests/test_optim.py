"""The learning rate's course: python -m pytest tests/test_optim.py"""

import pytest
import torch
from torch import nn

from reid import optim


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.model, self.classifier = nn.Linear(2, 2), nn.Linear(2, 2)

    def heads(self):
        return [self.classifier]


def course(epochs, steps=5, lr=0.05, **settings):
    """[(rate of the backbone, rate of the head)] at the beginning of each epoch."""
    net = Two()
    optimizer = optim.sgd(net, lr)
    schedule = optim.schedule(optimizer, lr, epochs, steps, **settings)
    rates = []
    for _ in range(epochs):
        rates.append(tuple(group['lr'] for group in optimizer.param_groups))
        for _ in range(steps):
            optimizer.step()
            schedule.step()
    return rates


def test_the_backbone_learns_at_a_tenth():
    net = Two()
    backbone, head = optim.sgd(net, 0.05).param_groups
    assert (backbone['lr'], head['lr']) == (pytest.approx(0.005), 0.05)
    assert {id(p) for p in backbone['params']} == {id(p) for p in net.model.parameters()}
    assert backbone['nesterov']
    assert (backbone['momentum'], backbone['weight_decay']) == (0.9, 5e-4)


def test_one_step_at_two_thirds():
    rates = course(60)
    assert rates[39] == pytest.approx((0.005, 0.05))
    assert rates[40] == rates[59] == pytest.approx((0.0005, 0.005))


def test_cosine_equals_torch():
    net = Two()
    optimizer = optim.sgd(net, 0.05)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30, eta_min=0.01 * 0.05)
    for ours in course(30, cosine=True):
        assert ours == pytest.approx([group['lr'] for group in optimizer.param_groups])
        optimizer.step()
        theirs.step()


def test_the_rate_warms_up():
    rates = course(60, warm_epoch=5)
    assert rates[0] == pytest.approx((0.0005, 0.005))
    assert rates[1][1] == pytest.approx(0.05 * (0.1 + 0.9 / 5))
    assert rates[5] == pytest.approx((0.005, 0.05))


def test_a_frozen_backbone():
    net = Two()
    optimizer = optim.sgd(net, 0.05, backbone_lr=0)
    optim.schedule(optimizer, 0.05, 10, 5, cosine=True)
    assert [group['lr'] for group in optimizer.param_groups] == [0, 0.05]


@pytest.mark.parametrize('epochs', [1, 2])
def test_short_runs_learn_at_the_full_rate_first(epochs):
    assert course(epochs)[0] == pytest.approx((0.005, 0.05))
