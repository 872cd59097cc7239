"""More than one process, as torchrun starts them. Alone, every function here is the identity.

torchrun --nproc_per_node 4 evaluate_gpu.py --name ft_ResNet50
"""

import atexit
import os

import numpy as np
import torch
from torch import distributed

from reid.problem import Problem


def start(device):
    """Join the others, if torchrun started us."""
    if int(os.environ.get('WORLD_SIZE', '1')) < 2:
        return
    distributed.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    atexit.register(distributed.destroy_process_group)
    if device.type == 'cuda':
        torch.cuda.set_device(device)


def alone():
    """For what several processes would only do several times."""
    if int(os.environ.get('WORLD_SIZE', '1')) > 1:
        raise Problem('this script runs in one process: start it with python, not with torchrun')


def together():
    return distributed.is_available() and distributed.is_initialized()


def first():
    return not together() or distributed.get_rank() == 0


def share(n):
    """The slice of n things that is this process' own."""
    if not together():
        return slice(0, n)
    rank, count = distributed.get_rank(), distributed.get_world_size()
    return slice(n * rank // count, n * (rank + 1) // count)


def total(array):
    """The sum over all processes."""
    return reduce(array, 'SUM')


def most(number):
    """The greatest of all processes."""
    return float(reduce(np.array([number]), 'MAX')[0])


def reduce(array, how):
    if not together():
        return array
    device = 'cuda' if distributed.get_backend() == 'nccl' else 'cpu'
    tensor = torch.from_numpy(array).to(device)
    distributed.all_reduce(tensor, getattr(distributed.ReduceOp, how))
    return tensor.cpu().numpy()
