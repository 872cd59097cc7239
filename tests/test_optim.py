"""Optimisers, the learning rate's course, averages: python -m pytest tests/test_optim.py"""

from argparse import Namespace

import pytest
import torch
from torch import nn

import model as networks
from reid import losses, optim


class Two(nn.Module):
    """A backbone of three stages and a head, of which one weight is frozen."""

    def __init__(self):
        super().__init__()
        self.model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ('conv1', 'layer1', 'layer2')})
        self.classifier = nn.Linear(2, 2)
        self.classifier.bias.requires_grad_(False)

    def heads(self):
        return [self.classifier]

    def forward(self, x):
        for layer in self.model.values():
            x = layer(x)
        return self.classifier(x)


def options(**given):
    base = {'optimizer': 'sgd', 'lr': 0.05, 'backbone_lr': 0.1, 'weight_decay': 5e-4, 'layer_decay': 1.0}
    base |= {'total_epoch': 60, 'warm_epoch': 0, 'warm_from': 0.1, 'milestones': None, 'cosine': False}
    return Namespace(**base | given)


def made(chosen=(), **given):
    net, also = Two(), losses.Sum(list(chosen), 3, [2])
    return net, also, optim.optimizers(net, also, options(**given))


def course(epochs, steps=5, **given):
    """[(rate of the backbone, rate of the head)] at the beginning of each epoch."""
    _, _, (optimizer,) = made(**given)
    schedule = optim.schedule(optimizer, options(total_epoch=epochs, **given), steps)
    rates = []
    for _ in range(epochs):
        rates.append(tuple(group['lr'] for group in optimizer.param_groups))
        for _ in range(steps):
            optimizer.step()
            schedule.step()
    return rates


def test_the_backbone_learns_at_a_tenth_and_what_is_frozen_not_at_all():
    net, _, (optimizer,) = made()
    backbone, head = optimizer.param_groups
    assert (backbone['lr'], head['lr']) == (pytest.approx(0.005), 0.05)
    assert {id(p) for p in backbone['params']} == {id(p) for p in net.model.parameters()}
    assert [id(p) for p in head['params']] == [id(net.classifier.weight)]
    assert backbone['nesterov']
    assert (backbone['momentum'], backbone['weight_decay']) == (0.9, 5e-4)


@pytest.mark.parametrize(
    ('name', 'kind'), [('sgd', torch.optim.SGD), ('adam', torch.optim.Adam), ('adamw', torch.optim.AdamW)]
)
def test_optimisers_by_name_take_the_step_of_torchs(name, kind):
    torch.manual_seed(0)
    net, _, (optimizer,) = made(optimizer=name, backbone_lr=1.0)
    twin = Two()
    twin.load_state_dict(net.state_dict())
    more = {'momentum': 0.9, 'nesterov': True} if name == 'sgd' else {}
    theirs = kind([p for p in twin.parameters() if p.requires_grad], lr=0.05, weight_decay=5e-4, **more)
    x = torch.randn(4, 2)
    for _ in range(3):
        for one, steps in ((net, optimizer), (twin, theirs)):
            steps.zero_grad()
            one(x).square().sum().backward()
            steps.step()
    for a, b in zip(net.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_earlier_stages_learn_slower():
    net, _, (optimizer,) = made(layer_decay=0.5)
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    expected = {'conv1': 0.00125, 'layer1': 0.0025, 'layer2': 0.005}
    assert {name: rates[id(net.model[name].weight)] for name in expected} == pytest.approx(expected)
    assert rates[id(net.classifier.weight)] == 0.05


def of_backbone(name):
    opts = Namespace(
        backbone=name,
        pool='avg',
        head='classblock',
        droprate=0.5,
        nclasses=3,
        **dict.fromkeys(('height', 'width', 'stride', 'linear_num', 'loss_feature', 'test_feature')),
    )
    with torch.device('meta'):
        return networks.build(networks.complete(opts))


STAGES = {
    'resnet50': ['conv1 bn1', 'layer1', 'layer2', 'layer3', 'layer4'],
    'densenet121': [
        *['features.conv0 features.norm0', 'features.denseblock1', 'features.transition1', 'features.denseblock2'],
        *['features.transition2', 'features.denseblock3', 'features.transition3'],
        'features.denseblock4 features.norm5',
    ],
    'efficientnet_lite0': ['conv_stem bn1', *(f'blocks.{i}' for i in range(6)), 'blocks.6 conv_head bn2'],
    'convnext_tiny': [f'features.{i}' for i in range(8)],
    'swin_t': [*(f'features.{i}' for i in range(7)), 'features.7 norm'],
    'osnet_x0_25': ['conv1', 'conv2', 'conv3', 'conv4', 'conv5'],
}


@pytest.mark.parametrize('name', STAGES)
def test_a_norm_that_stands_alone_is_no_stage(name):
    net = of_backbone(name)
    (optimizer,) = optim.optimizers(net, losses.Sum([], 3, [2]), options(layer_decay=0.5))
    rates = {id(p): group['lr'] for group in optimizer.param_groups[:-1] for p in group['params']}
    for i, parts in enumerate(reversed(STAGES[name])):
        begins = tuple(f'model.{part}.' for part in parts.split())
        (found,) = {rates.pop(id(p)) for n, p in net.named_parameters() if n.startswith(begins)}
        assert found == pytest.approx(0.005 * 0.5**i), parts
    assert not rates


@pytest.mark.parametrize('name', ['resnet18', 'convnext_tiny', 'efficientnet_b0', 'vit_b_16', 'osnet_x0_25'])
def test_the_last_stage_of_a_backbone_learns_at_its_full_rate(name):
    """Its unused classifier is no stage."""
    net = of_backbone(name)
    (optimizer,) = optim.optimizers(net, losses.Sum([], 3, [2]), options(layer_decay=0.5))
    assert optimizer.param_groups[-2]['lr'] == pytest.approx(0.005)
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    used = {n: rates.get(id(p)) for n, p in net.named_parameters() if n.startswith('model.')}
    unused = {n for n in used if n.startswith(('model.fc.', 'model.classifier.', 'model.heads.'))}
    assert {n for n, rate in used.items() if rate is None} == unused
    last = [rate for n, rate in used.items() if n not in unused][-1]
    assert last == pytest.approx(0.005)


@pytest.mark.parametrize(
    ('name', 'stage'),
    [
        ('model.conv1.weight', 'conv1'),
        ('model.layer3.0.conv1.weight', 'layer3'),
        ('model.features.4.1.block.0.weight', 'features.4'),
        ('model.features.denseblock2.denselayer1.conv1.weight', 'features.denseblock2'),
        ('model.blocks.5.2.conv_pw.weight', 'blocks.5'),
        ('model.conv_stem.weight', None),
    ],
)
def test_stages_of_backbones(name, stage):
    assert optim.stage(name) == stage


def test_weights_of_losses_learn_with_the_head():
    net, also, (optimizer,) = made([('arcface', 0.5, {})])
    before = also.losses['arcface'].compute.W.clone()
    value, _ = also(torch.randn(6, 2), torch.tensor([0, 0, 1, 1, 2, 2]))
    value.backward()
    optimizer.step()
    assert not torch.equal(before, also.losses['arcface'].compute.W)


@pytest.mark.parametrize('weight', [1.0, 5e-4])
def test_centers_go_half_way_whatever_their_loss_weighs(weight):
    """Wen et al., ECCV 2016, with alpha 0.5 on the mean of the squared distances: c -= 0.5 * d/dc mean ||x - c||^2."""
    torch.manual_seed(0)
    _, also, optimizers = made([('center', weight, {}), ('triplet', 1.0, {})], optimizer='adam')
    x, y = torch.randn(6, 2), torch.tensor([0, 0, 1, 1, 1, 2])
    centers = also.losses['center'].compute.centers
    expected = centers.detach().clone()
    for i in range(3):
        expected[i] -= 0.5 * (2 * (expected[i] - x[y == i])).sum(0) / len(x)
    value, _ = also(x, y)
    value.backward()
    for optimizer in optimizers:
        optimizer.step()
    torch.testing.assert_close(centers.detach(), expected)


def test_one_step_at_two_thirds():
    rates = course(60)
    assert rates[39] == pytest.approx((0.005, 0.05))
    assert rates[40] == rates[59] == pytest.approx((0.0005, 0.005))


def test_milestones_equal_torch():
    _, _, (optimizer,) = made()
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [4, 7])
    for ours in course(10, milestones=[4, 7]):
        assert ours == pytest.approx([group['lr'] for group in optimizer.param_groups])
        optimizer.step()
        theirs.step()


def test_cosine_equals_torch():
    _, _, (optimizer,) = made()
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
    assert course(60, warm_epoch=5, warm_from=0.01)[0] == pytest.approx((0.00005, 0.0005))


def test_a_frozen_backbone():
    _, _, (optimizer,) = made(backbone_lr=0.0)
    optim.schedule(optimizer, options(cosine=True, backbone_lr=0.0), 5)
    assert [group['lr'] for group in optimizer.param_groups] == [0, 0.05]


@pytest.mark.parametrize('epochs', [1, 2])
def test_short_runs_learn_at_the_full_rate_first(epochs):
    assert course(epochs)[0] == pytest.approx((0.005, 0.05))


def test_averages_are_what_they_say():
    torch.manual_seed(0)
    for kind, expected in (
        ('ema', lambda w: 0.9 * (0.9 * w[0] + 0.1 * w[1]) + 0.1 * w[2]),
        ('swa', lambda w: sum(w) / 3),
    ):
        net = Two()
        average, seen = optim.average(net, kind, 0.9), []
        for _ in range(3):
            nn.init.normal_(net.classifier.weight)
            seen.append(net.classifier.weight.detach().clone())
            average.update_parameters(net)
        torch.testing.assert_close(average.module.classifier.weight.detach(), expected(seen))


@pytest.mark.parametrize('share', [0.06, 0.5, 1.0])
def test_pictures_grow_for_two_thirds_of_the_epochs(share):
    sizes = [optim.grown(share, epoch, 60) for epoch in range(1, 61)]
    assert sizes[0] == pytest.approx(share)
    assert sizes[40:] == [1.0] * 20  # exactly: then nothing is resized
    assert sizes[20] == pytest.approx((1 + share) / 2)
    assert optim.grown(share, 1, 1) == pytest.approx(share)
