"""Pictures without names in training: the averaged network says who they look like, and the network has to agree.

Made for pictures that a generator dressed anew (DG-Net, arXiv 1904.07223), good for any folder of people.
"""

from pathlib import Path

import torch
from torch.nn import functional as F

from reid.datasets import is_picture
from reid.files import holds
from reid.problem import Problem

WEIGHT = 0.1  # beside cross entropy: a teacher that errs should not lead


def pictures(folder):
    """All pictures in a folder, at any depth, sorted."""
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise Problem(f'--DG {folder}: there is no such folder. Any folder of pictures of people will do')
    paths = sorted(str(path) for path in folder.rglob('*') if is_picture(str(path)))
    if len(paths) < 2:
        raise Problem(f'--DG {folder}: pictures are expected at any depth, found {holds(folder)}')
    return paths


class Agreement:
    """A loss on a batch of unlabelled pictures: WEIGHT times KL(teacher || network), where the teacher is the averaged
    network. As long as there is no average, there is nothing to agree with."""

    def __init__(self, model, average, batches, look):
        self.model, self.average, self.batches, self.look = model, average, batches, look

    def set_epoch(self, epoch):
        """Begin the pictures anew, in an order that this epoch's seed draws."""
        self.stream = endless(self.batches)

    def __call__(self, x, y, cast):
        if self.average.n_averaged == 0:
            return 0.0
        x = self.look(next(self.stream)[0])  # (B, 3, H, W), others than those that have names
        with cast:
            logits, _ = self.model(x)
            with torch.no_grad():
                self.average.eval()
                answers, _ = self.average(x)
        apart = [
            F.kl_div(z.float().log_softmax(1), answer.float().softmax(1), reduction='batchmean')
            for z, answer in zip(logits, answers, strict=True)
        ]
        return WEIGHT * sum(apart) / len(apart)


def endless(batches):
    while True:
        yield from batches
