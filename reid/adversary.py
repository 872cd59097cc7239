"""Adversarial queries: pictures changed by less than one sees, so that their feature turns round (arXiv 1809.02681)."""

import torch

from reid.data import MEAN, STD

LIMIT, ROUNDS = 16 / 255, 10  # how far a value may be moved, and in how many steps


class Adversary:
    """In the first batch of an epoch, and then in each `every`-th, a loss on the batch turned round: what the network
    answers then, by `criterion`."""

    def __init__(self, model, criterion, weight, every):
        self.model, self.criterion, self.weight, self.every, self.count = model, criterion, weight, every, 0

    def set_epoch(self, epoch):
        self.count = 0

    def __call__(self, x, y, cast):
        self.count += 1
        if (self.count - 1) % self.every:
            return 0.0
        with cast:
            changed = turned(self.model, x)
        with cast:  # anew: the weights in half precision that it keeps would be those of the attack, without gradients
            logits, _ = self.model(changed)
        return self.weight * sum(self.criterion(z.float(), y) for z in logits)


def turned(model, x):
    """x (B, 3, H, W), normalised -> the same within LIMIT of it, and within the range of a picture, where the feature
    f(x') comes close to -f(x): steps against the sign of the gradient of ||f(x') + f(x)||^2."""
    std, mean = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (STD, MEAN))
    lowest, highest = torch.maximum(x - LIMIT / std, -mean / std), torch.minimum(x + LIMIT / std, (1 - mean) / std)
    training = model.training
    model.eval()  # the attack leaves BatchNorm's statistics alone
    with torch.no_grad():
        target = -model.embed(x)
    turning = x.clone()
    for _ in range(ROUNDS):
        turning.requires_grad_()
        with torch.enable_grad():
            loss = (model.embed(turning) - target).float().square().sum()
        (gradient,) = torch.autograd.grad(loss, turning)
        turning = turning.detach() - 2 * LIMIT / ROUNDS / std * gradient.sign()
        turning = torch.minimum(torch.maximum(turning, lowest), highest)
    model.train(training)
    return turning
