"""More than one process, as torchrun starts them. Alone, every function here is the identity, or does nothing.

    torchrun --nproc_per_node 4 train.py --name ft_ResNet50

In training each process gets its part of every batch. Gradients of the network are averaged (DistributedDataParallel),
features are gathered, so that losses compare all pictures of the batch; the first process alone reports and writes.
"""

import atexit
import gc
import os
import subprocess
import sys
from itertools import chain, islice

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from reid.problem import Problem

# ---------------------------------------------------------------------------------------------------------------------
# 1. who is there


def start(device):
    """Join the others, if torchrun started us."""
    if int(os.environ.get('WORLD_SIZE', '1')) < 2:
        return
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    distributed.init_process_group(nccl() if device.type == 'cuda' else 'gloo')
    atexit.register(leave)


def nccl():
    """What GPUs talk by: not on Windows."""
    if not distributed.is_available() or not distributed.is_nccl_available():
        raise Problem('several GPUs need NCCL, which PyTorch for Windows has not: --gpu_ids 0, or Linux (WSL is one)')
    return 'nccl'


def leave():
    gc.collect()  # a network that still knows of the others would keep threads from ending, and that is an abort
    distributed.destroy_process_group()


def alone():
    """For what several processes would only do several times."""
    if int(os.environ.get('WORLD_SIZE', '1')) > 1:
        raise Problem('this script runs in one process: start it with python, not with torchrun')


def several(count):
    """This very command once more in `count` processes, as torchrun would start it, and out with its exit code."""
    nccl()
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', str(count)]
    try:
        sys.exit(subprocess.call([*command, *sys.argv]))
    except KeyboardInterrupt:  # which they got as well, and tell of
        sys.exit(130)


def together():
    return distributed.is_available() and distributed.is_initialized()


def rank():
    return distributed.get_rank() if together() else 0


def count():
    return distributed.get_world_size() if together() else 1


def here():
    """How many of them are on this machine."""
    return int(os.environ.get('LOCAL_WORLD_SIZE', '1')) if together() else 1


def first():
    return rank() == 0


def hidden():
    """For tqdm(disable=...): the first process alone shows a bar, and that on a terminal only."""
    return None if first() else True


def wait():
    """Until all have come here."""
    if together():
        distributed.barrier()


# ---------------------------------------------------------------------------------------------------------------------
# 2. sharing work, adding up results


def share(n):
    """The slice of n things that is this process' own."""
    return slice(n * rank() // count(), n * (rank() + 1) // count())


def total(array):
    """The sum over all processes."""
    return reduce(array, 'SUM')


def totals(*numbers):
    """The same of numbers, or of tensors of one: as numbers."""
    return total(np.array([torch.as_tensor(number).item() for number in numbers], np.float64)).tolist()


def most(number):
    """The greatest of all processes."""
    return float(reduce(np.array([number]), 'MAX')[0])


def reduce(array, how):
    if not together():
        return array
    tensor = torch.from_numpy(array).to(place())
    distributed.all_reduce(tensor, getattr(distributed.ReduceOp, how))
    return tensor.cpu().numpy()


def joined(rows, n):
    """The rows (n, D) of which each process has made its share(n), to all of them."""
    if not together():
        return rows
    out = np.empty((n, *rows.shape[1:]), rows.dtype)
    for sender in range(count()):
        part = slice(n * sender // count(), n * (sender + 1) // count())
        mine = rows if sender == rank() else np.empty_like(out[part])
        tensor = torch.from_numpy(mine).to(place())
        distributed.broadcast(tensor, sender)
        out[part] = tensor.cpu().numpy()
    return out


def place():
    """Where tensors have to be that are sent."""
    return 'cuda' if distributed.get_backend() == 'nccl' else 'cpu'


# ---------------------------------------------------------------------------------------------------------------------
# 3. training


def parallel(model, device, unused=(), sync_bn=False):
    """The network as the loop calls it: the same, but each process gets the mean of all their gradients. Parameters
    whose names begin as in `unused` have no part in it. BatchNorm looks at the own part of a batch, or with sync_bn at
    all of it."""
    if not together() or not any(p.requires_grad for p in model.parameters()):  # what is frozen has no gradients
        return model
    if sync_bn:
        if device.type != 'cuda':
            raise Problem('--sync_bn: torch synchronises BatchNorm on GPUs only. Leave it out')
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    for name, p in model.named_parameters():
        if name.startswith(unused):
            p.requires_grad_(False)
    return DistributedDataParallel(model, device_ids=[device.index] if device.type == 'cuda' else None)


class Gathered(torch.autograd.Function):
    """x (b, ...) of each process -> (B, ...), in order of their ranks.

    All of them compute the same loss of it, so each finds its own part of the gradient at home. It counts as often as
    there are processes, since DistributedDataParallel will take the mean where the sum is meant.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.own, parts = len(x), [torch.empty_like(x) for _ in range(count())]
        distributed.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient):
        return count() * gradient[ctx.own * rank() : ctx.own * (rank() + 1)]


def gathered(x):
    return Gathered.apply(x) if together() else x


def same(*modules):
    """From here on all have the weights, and the statistics of BatchNorm, that the first has."""
    for tensor in (t for module in modules for t in module.state_dict().values()) if together() else ():
        distributed.broadcast(tensor, 0)


def blend(module):
    """Each statistic of BatchNorm becomes the mean of what the processes have, of which each saw its part."""
    for buffer in module.buffers() if together() else ():
        if buffer.is_floating_point():
            distributed.all_reduce(buffer)
            buffer /= count()


def own(turns):
    """Lists of positions, one a batch -> the part of each that is this process' own."""
    return Own(turns) if together() else turns


class Own:
    """All processes draw the same order, whatever they draw besides."""

    def __init__(self, turns):
        self.turns = turns

    def __len__(self):
        return len(self.turns)

    def __iter__(self):
        turns = iter(self.turns)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch.initial_seed() - apart())
            first = list(islice(turns, 1))  # the order of all is drawn with the first
        for positions in chain(first, turns):
            if len(positions) % count():
                raise Problem(
                    f'a batch of {len(positions)} pictures cannot be shared by {count()} processes: --batchsize is '
                    'that of all of them together, and has to be a multiple of their number'
                )
            yield positions[share(len(positions))]


def apart():
    """To be added to a seed, where augmentation and dropout are to be drawn by each process for itself."""
    return 10**6 * rank()
