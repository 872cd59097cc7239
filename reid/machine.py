"""What the scripts run on: its cores and GPU in words, its memory, its compiler."""

import ctypes
import os
import platform
import re
import traceback
from pathlib import Path

from reid.problem import Problem


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
    count = cores()
    return f'{processor()}, {count} core{"s" * (count > 1)}' if device.type == 'cpu' else f'GPU of {processor()}'


def held():
    """The bytes of memory that this process holds now. Linux alone tells without a package."""
    try:
        return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGE_SIZE')
    except OSError:
        return None


def free_memory():
    """The bytes of memory that may be taken, or None: macOS does not say without a package."""
    try:
        return 1024 * int(re.search(r'MemAvailable:\s*(\d+) kB', Path('/proc/meminfo').read_text(encoding='utf-8'))[1])
    except (OSError, TypeError):  # not Linux, or an old one
        pass
    try:
        return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        pass
    status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its size in bytes, all memory, what is free of it, ...
    try:
        return status[2] if ctypes.windll.kernel32.GlobalMemoryStatusEx(status) else None
    except AttributeError:
        return None


def keep_memory():
    """On Linux, hold on to memory that was freed. Its C library (glibc) would give large pieces back at once, and the
    system has to clear each page of them when they are asked for again: where a CPU computes, that is a quarter of the
    time of a training step, and almost half of a description."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another system, or another C library
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def too_large(error, batchsize, try_out):
    """What to say when the memory of a GPU has ended: a Problem that names a batch with which try_out(b) ends well."""
    import torch

    traceback.clear_frames(error.__traceback__)  # they hold on to the pictures of the batch and what was made of them
    full = f"the GPU's memory does not hold what --batchsize {batchsize} needs"
    while (batchsize := batchsize // 2) > 1:
        torch.cuda.empty_cache()
        try:
            try_out(batchsize)
        except torch.OutOfMemoryError:
            continue
        return Problem(f'{full}; {batchsize} fits. Or take --bf16 or --fp16, which need half of it, or several GPUs')
    return Problem(f'{full}, nor even a batch of two. Do other programs use it (nvidia-smi)?')


def compiled(call, device):
    """torch.compile, where there is what it needs."""
    import torch

    try:
        torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
    except Exception as error:  # of many types, some of them its own
        reason = str(error).strip().splitlines()[0]
        print(f'--compile: going on without, since this machine cannot ({reason})')
        return call
    return torch.compile(call)
