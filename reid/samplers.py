"""Batches of P identities x K pictures: pair losses need both same and other persons in a batch (arXiv 1703.07737)."""

import numpy as np
from torch.utils.data import Sampler

from reid import processes
from reid.problem import Problem


class PK(Sampler):
    """Lists of P * K positions in `labels`, for DataLoader(batch_sampler=...): K in a row for each of P identities.

    One epoch: the n pictures of each identity are dealt out in ceil(n / K) groups of K, every picture in one of them.
    Each batch takes one group each of P different identities, until there are none left. What is missing is filled up:
    a group with other pictures of its identity (if n < K, with the same again, each as often as any other, give or
    take one), the last batch with identities that are not in it yet, dealt out anew. That makes ceil(groups / P)
    batches. If one identity has more groups than this, there are as many batches as it has groups: it is in all of
    them, and others have to come again to fill up the last ones.

    With cams, a camera for each picture, the groups hold as many different cameras as the dealing allows, and as
    evenly; -1, unknown, is a camera like any other. The number of batches stays the same.

    Epochs differ by set_epoch only: without it, going through twice gives the same batches twice. So a resumed run
    gets what an uninterrupted one would have got.

    With more than one process each is to take its part of every batch (reid.processes.own), P / processes identities
    in a row. Labels, cams, seed and epoch have to be the same in all of them.
    """

    def __init__(self, labels, p, k, seed=0, cams=None):
        labels = np.asarray(labels)
        cams = np.zeros(len(labels), np.int64) if cams is None else np.asarray(cams)
        if len(cams) != len(labels):
            raise ValueError(f'{len(labels)} labels and {len(cams)} cameras: one for each picture is expected')
        _, identity, count = np.unique(labels, return_inverse=True, return_counts=True)
        check(count, p, k)
        self.pictures = np.split(np.argsort(identity, kind='stable'), np.cumsum(count)[:-1])  # positions, by identity
        self.cams = [cams[mine] for mine in self.pictures]
        self.groups = -(-count // k)  # of each identity, rounded up
        self.batches = int(max(-(-self.groups.sum() // p), self.groups.max()))
        self.p, self.k, self.seed, self.epoch = p, k, seed, 0

    def set_epoch(self, epoch):
        """To be called before every epoch, as with torch's DistributedSampler."""
        self.epoch = epoch

    def __len__(self):
        return self.batches

    def __iter__(self):
        rng = np.random.default_rng((self.seed + self.epoch) % 2**32)
        left = self.groups.copy()  # groups that each identity still has to give
        hands = [[] for _ in left]
        for remaining in range(len(self), 0, -1):
            batch = []
            for i in choose(left, remaining, self.p, rng):
                if not hands[i]:  # dealt when first needed; once more, if it fills up a batch
                    hands[i] = list(deal(self.cams[i], self.k, rng))
                batch.append(self.pictures[i][hands[i].pop()].tolist())
                left[i] = max(0, left[i] - 1)
            yield sum(batch, [])


def choose(left, remaining, p, rng):
    """P identities for the next of `remaining` batches. left (C,) groups of each identity -> (P,) different identities.

    Who has as many groups left as there are batches must be in all of them. Then come the others by lot, with chances
    in proportion to their groups, and who has none left comes last. So the groups always go into the batches.
    """
    turn = np.where(left == 0, 2, left < remaining)  # 0 must be in, 1 may be, 2 fills up
    lot = rng.exponential(size=len(left)) / np.maximum(left, 1)  # a race: twice the groups, twice the chance to win
    return rng.permutation(np.lexsort((lot, turn))[:p])


def deal(cams, k, rng):
    """One identity's pictures in groups of k. cams (n,) -> positions (ceil(n / k), k).

    Like cards: in turn, one to each group, and camera after camera. So the pictures of a camera go to different groups
    as long as there are some. The rarest camera is dealt last, for the groups that have to be filled up come next.
    """
    _, cam, count = np.unique(cams, return_inverse=True, return_counts=True)
    n, groups = len(cam), -(-len(cam) // k)
    order = np.lexsort((rng.random(n), rng.random(len(count))[cam], -count[cam]))  # shuffled within each camera
    hands = [list(order[i::groups]) for i in range(groups)]
    for hand in hands:
        while len(hand) < k:  # with the picture, then the camera, that it has least of
            pictures, cameras = np.bincount(hand, minlength=n), np.bincount(cam[hand], minlength=len(count))
            hand.append(np.lexsort((rng.random(n), cameras[cam], pictures))[0])
    return rng.permutation(np.array(hands))


def check(count, p, k):
    """P and K have to suit the identities, which have `count` pictures each."""
    asked, most = f'--pk {p} {k}', count.max(initial=0)
    if p < 2 or k < 2:
        raise Problem(f'{asked}: P and K of 2 or more are expected, since a loss needs pairs of the same and of others')
    if p > len(count):
        raise Problem(f'{asked}: a batch of {p} identities is expected, found {len(count)} in all. Take a smaller P')
    if k > most:
        raise Problem(f'{asked}: K is larger than any identity has, {most} pictures at most. Take a smaller K')
    if p % (world := processes.count()):
        raise Problem(f'{asked}: {world} processes share the identities of a batch, so P must be a multiple of {world}')
