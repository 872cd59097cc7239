"""The optimiser and the course of the learning rate."""

import math

from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR


def sgd(model, lr, backbone_lr=0.1, weight_decay=5e-4, also=()):
    """SGD with Nesterov momentum: the new heads and `also`, the weights of losses, at lr; everything that was
    pretrained at lr * backbone_lr."""
    heads = [p for head in model.heads() for p in head.parameters()] + list(also)
    new = {id(p) for p in heads}
    backbone = [p for p in model.parameters() if id(p) not in new]
    groups = [{'params': backbone, 'lr': lr * backbone_lr}, {'params': heads, 'lr': lr}]
    return SGD(groups, lr=lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)


def schedule(optimizer, lr, epochs, steps, warm_epoch=0, cosine=False):
    """The learning rate, step by step (`steps` an epoch): a tenth of it after two thirds of the epochs, or a cosine
    that ends at 0.01 lr; warm_epoch epochs rise to it from a tenth. It is the rate that warms up, never the loss."""

    def factor(base):
        floor = min(1.0, 0.01 * lr / base) if base > 0 else 1.0

        def at(step):
            epoch = step // steps
            warm = min(1.0, 0.1 + 0.9 * step / (warm_epoch * steps)) if warm_epoch > 0 else 1.0
            if cosine:
                return warm * (floor + (1 - floor) * (1 + math.cos(math.pi * epoch / max(1, epochs))) / 2)
            return warm * (0.1 if epoch >= max(1, epochs * 2 // 3) else 1.0)

        return at

    return LambdaLR(optimizer, [factor(group['lr']) for group in optimizer.param_groups])
