"""Pictures without names: python -m pytest tests/test_unlabelled.py"""

from contextlib import nullcontext

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from reid import optim, unlabelled
from reid.problem import Problem


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(4, 5)

    def forward(self, x):
        return [self.last(x), -self.last(x)], x


def test_the_network_has_to_agree_with_its_average():
    torch.manual_seed(0)
    net = Small()
    average = optim.average(net, 'ema', 0.9)
    batches = [(torch.randn(3, 4), torch.zeros(3)), (torch.randn(3, 4), torch.zeros(3))]
    extra = unlabelled.Agreement(net, average, batches, look=lambda x: 2 * x)
    extra.set_epoch(1)
    assert extra(None, None, nullcontext()) == 0  # nobody to agree with yet
    average.update_parameters(net)
    assert extra(None, None, nullcontext()).item() == pytest.approx(0, abs=1e-6)
    nn.init.normal_(net.last.weight)
    value = extra(None, None, nullcontext())
    x = 2 * batches[1][0]
    expected = 0.0
    for z, answer in zip(net(x)[0], average.module(x)[0], strict=True):
        p, q = answer.softmax(1), z.softmax(1)
        expected += (p * (p / q).log()).sum() / 3
    torch.testing.assert_close(value, unlabelled.WEIGHT * expected / 2)
    value.backward()
    assert net.last.weight.grad.norm() > 0
    assert all(p.grad is None for p in average.module.parameters())
    again = extra(None, None, nullcontext())  # the third batch is the first one again
    x = 2 * batches[0][0]
    one = sum(
        F.kl_div(z.log_softmax(1), a.softmax(1), reduction='batchmean')
        for z, a in zip(net(x)[0], average.module(x)[0], strict=True)
    )
    torch.testing.assert_close(again, unlabelled.WEIGHT * one / 2)


def test_pictures_at_any_depth(tmp_path):
    for name in ('b.jpg', 'deep/er/a.png', 'deep/._a.png', 'readme.txt'):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new('RGB', (4, 8)).save(path) if name.endswith(('jpg', 'png')) else path.write_text('')
    found = unlabelled.pictures(tmp_path)
    assert [path[len(str(tmp_path)) + 1 :].replace('\\', '/') for path in found] == ['b.jpg', 'deep/er/a.png']


def test_no_pictures_is_a_sentence(tmp_path):
    with pytest.raises(Problem, match='no such folder'):
        unlabelled.pictures(tmp_path / 'nowhere')
    (tmp_path / 'notes.txt').write_text('')
    with pytest.raises(Problem, match=r'found notes\.txt'):
        unlabelled.pictures(tmp_path)
