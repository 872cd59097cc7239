"""What the scripts run on, in words for tables of figures."""

import os
import platform
from pathlib import Path


def cores():
    """The CPU cores that this process may use, which may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def processor():
    """'AMD EPYC (family 26 model 2)': Linux knows more than a name, which says little of a server's."""
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        said = {key.strip(): value.strip() for key, _, value in (line.partition(':') for line in lines)}
        return f'{said["model name"]} (family {said["cpu family"]} model {said["model"]})'
    except (OSError, KeyError):
        return platform.processor() or platform.machine()


def describe(device):
    """A GPU by its name, a CPU with the number of its cores."""
    if device.type == 'cuda':
        import torch  # not everybody who counts cores needs it

        return torch.cuda.get_device_name(device)
    return f'{processor()}, {cores()} cores' if device.type == 'cpu' else f'GPU of {processor()}'
