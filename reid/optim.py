"""The optimisers, the course of the learning rate, and averaged weights."""

import math
import re
from functools import partial

from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from reid import backbones

OPTIMIZERS = {'sgd': partial(SGD, momentum=0.9, nesterov=True), 'adam': Adam, 'adamw': AdamW}


def optimizers(model, also, opts):
    """The optimiser of a network and of the weights that losses learn; and one for centers, if there are any.

    The new heads and the weights of losses learn at lr; everything that was pretrained at lr * backbone_lr, and with
    layer_decay < 1 each stage slower, by that factor, than the one after it (arXiv 1801.06146).
    """
    heads = [p for head in model.heads() for p in head.parameters() if p.requires_grad]
    new = {id(p) for p in heads}
    idle = unused(model)
    stages, last = {}, ''
    for name, p in model.named_parameters():
        if p.requires_grad and id(p) not in new and not name.startswith(idle):
            last = (stage(name) or last) if opts.layer_decay < 1 else ''
            stages.setdefault(last, []).append(p)
    stages = with_norms(stages.values())
    rates = [opts.lr * opts.backbone_lr * opts.layer_decay**i for i in reversed(range(len(stages)))]
    groups = [{'params': group, 'lr': rate} for group, rate in zip(stages, rates, strict=True)]
    centers = also.centers()
    others = [p for p in also.parameters() if not any(p is c for c, _ in centers)]
    groups += [{'params': heads + others, 'lr': opts.lr}]
    fused = {p.device.type for p in heads + others} <= {'cpu', 'cuda'}  # one pass over all weights, instead of several
    main = OPTIMIZERS[opts.optimizer](groups, lr=opts.lr, weight_decay=opts.weight_decay, fused=fused)
    # Centers move by SGD at 0.5 on the gradient of the mean squared distance, whatever their loss weighs (its authors'
    # alpha). The loss is half of that mean, times its weight: so the rate is 1 / weight.
    return [main] + [SGD([c], lr=1 / weight) for c, weight in centers if weight > 0]


def unused(model):
    """How the names of parameters begin that have no part in what a network says."""
    return tuple(f'model.{name}' for name in backbones.unused(model.model))


def stage(name):
    """'model.layer3.0.conv1.weight' -> 'layer3', 'model.features.4.1.weight' -> 'features.4': the parts of a backbone
    that are counted by layer_decay go by the first number in their names. What has none belongs to the part before."""
    numbered = re.match(r'\D*\d+', name.removeprefix('model.'))
    return numbered[0] if numbered else None


def with_norms(stages):
    """[the parameters of each stage], where a norm that stands alone, which has vectors only, is a part of the stage
    before it: of ResNet's bn1 and DenseNet's norm5."""
    found = []
    for stage in stages:
        if found and all(p.ndim == 1 for p in stage):
            found[-1] += stage
        else:
            found.append(list(stage))
    return found


def schedule(optimizer, opts, steps):
    """The learning rate, step by step (`steps` an epoch): a tenth of what it was after each of --milestones (default:
    two thirds of the epochs), or a --cosine that ends at 0.01 lr; in --warm_epoch epochs it rises to that, from its
    --warm_from-th part. It is the rate that warms up, never the loss."""
    epochs, warm_epoch, warm_from = opts.total_epoch, opts.warm_epoch, opts.warm_from
    milestones = opts.milestones or [max(1, epochs * 2 // 3)]

    def factor(base):
        floor = min(1.0, 0.01 * opts.lr / base) if base > 0 else 1.0

        def at(step):
            epoch = step // steps
            warm = min(1.0, warm_from + (1 - warm_from) * step / (warm_epoch * steps)) if warm_epoch > 0 else 1.0
            if opts.cosine:
                return warm * (floor + (1 - floor) * (1 + math.cos(math.pi * epoch / max(1, epochs))) / 2)
            return warm * 0.1 ** sum(epoch >= milestone for milestone in milestones)

        return at

    return LambdaLR(optimizer, [factor(group['lr']) for group in optimizer.param_groups])


def finite(*modules):
    """Is every weight of them a number?"""
    return all(p.isfinite().all() for module in modules for p in module.parameters())


def grown(share, epoch, epochs):
    """The size of the pictures in an epoch, from 1 on, as a part of the whole: it grows evenly from `share` in the
    first two thirds of the epochs, and the last third sees all of it (arXiv 2104.00298 grows in stages)."""
    return 1 - (1 - share) * max(0.0, 1 - (epoch - 1) / max(1, epochs * 2 // 3))


def average(model, kind, decay=0.996):
    """'ema': after every step, decay times the average plus the rest of the network as it is. 'swa': the plain mean of
    the networks after each epoch (arXiv 1803.05407). BatchNorm statistics are not averaged: they are made anew."""
    rules = {'ema': get_ema_multi_avg_fn(decay), 'swa': get_swa_multi_avg_fn()}
    return AveragedModel(model, multi_avg_fn=rules[kind])
