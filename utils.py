"""What the scripts share: options of a network, the run folder, the device, seeds and precision.

A run lives in model/<name>/: opts.yaml (every option, and a block `run:` with what is known of it besides), net_*.pth,
log.csv, train.jpg, and what test.py and the evaluation add. `load_run` is the one way to get a trained network back.
"""

import argparse
import os
import platform
import random
import re
import subprocess
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torchvision
import yaml

import model as networks
from reid import results
from reid.files import replacing
from reid.problem import Problem

RUNS = Path('model')

# ---------------------------------------------------------------------------------------------------------------------
# 1. options


def network_options(parser):
    """The options that decide the shape of a network. train.py sets them; test.py checks them against opts.yaml."""
    group = parser.add_argument_group('network')
    group.add_argument(
        '--backbone',
        default='resnet50',
        choices=networks.BACKBONES,
        help='resnet50 (default), densenet121 (slower, better in published figures), resnet18 (small machines)',
    )
    group.add_argument(
        '--head',
        default='classblock',
        choices=networks.HEADS,
        help='classblock (default): one feature for the whole person; pcb: six stripes, for large pictures',
    )
    group.add_argument('--height', type=side, help='of the picture fed to the network (default 256, pcb 384)')
    group.add_argument('--width', type=side, help='of the picture fed to the network (default 128, pcb 192)')
    group.add_argument(
        '--stride',
        type=int,
        choices=(1, 2),
        help="the backbone's last stride: 2 (default), or 1 for twice finer maps: better and slower (pcb: 1)",
    )
    group.add_argument('--droprate', default=0.5, type=fraction, help='dropout before the classifier (default 0.5)')
    group.add_argument(
        '--linear_num',
        type=whole,
        help="length of the feature (default 512, pcb 256 a stripe); 0 keeps the backbone's own",
    )


def machine_options(parser):
    """The options that say where and how fast, not what: they may differ from run to run."""
    group = parser.add_argument_group('machine')
    gpu_option(group)
    group.add_argument(
        '--num_workers',
        default=default_workers(),
        type=whole,
        help='processes that load pictures (default here %(default)s); 0 if they make trouble, as on Windows',
    )
    group.add_argument(
        '--fp16', action='store_true', help='half precision on a GPU: half the memory, up to twice as fast'
    )
    group.add_argument(
        '--bf16', action='store_true', help='the same in bfloat16, for recent GPUs and CPUs; never overflows'
    )


def gpu_option(parser):
    parser.add_argument('--gpu_ids', default='0', help='the GPU to use (default 0); -1 for the CPU')


def result_options(parser):
    """The options that point an evaluator at a result."""
    parser.add_argument('mat', nargs='?', help='a result file; default: that of --name, else of the run last tested')
    parser.add_argument('--name', help='the run whose result it is')
    gpu_option(parser)


def default_workers():
    # Starting a process is cheap where it is forked and takes seconds where it is spawned, every epoch anew.
    return min(4, os.cpu_count() or 1) if platform.system() == 'Linux' else 0


def positive(text):
    return within(int(text), 1)


def side(text):
    return within(int(text), 32)  # all backbones make one place of 32 pixels


def whole(text):
    return within(int(text), 0)


def rate(text):
    return within(float(text), 0, 100)


def fraction(text):
    return within(float(text), 0, 1)


def within(value, least, most=float('inf')):
    """For argparse, which turns the error into a sentence with the option's name."""
    if not least <= value <= most:
        expected = f'{least} to {most}' if most < float('inf') else f'{least} or more'
        raise argparse.ArgumentTypeError(f'{value}: {expected} is expected')
    return value


# ---------------------------------------------------------------------------------------------------------------------
# 2. machine


def device(gpu_ids):
    """'0' -> the first GPU, Apple's GPU or, with a line of notice, the CPU. '-1' -> the CPU."""
    try:
        ids = [int(i) for i in str(gpu_ids).strip('[] ').split(',')]
    except ValueError:
        raise Problem(f'--gpu_ids {gpu_ids}: numbers such as 0 or 0,1 are expected, or -1 for the CPU') from None
    if ids[0] < 0:
        return torch.device('cpu')
    if torch.cuda.is_available():
        place = int(os.environ.get('LOCAL_RANK', '0'))  # torchrun starts several processes: to each its own GPU
        if 'LOCAL_RANK' not in os.environ and len(ids) > 1:
            print(f'one process uses one GPU: taking {ids[0]} of {gpu_ids}')
        ids = ids[place:] if len(ids) > 1 else [ids[0] + place]
        if not ids or ids[0] >= torch.cuda.device_count():
            raise Problem(f'--gpu_ids {gpu_ids}: this machine has GPUs 0 to {torch.cuda.device_count() - 1}')
        torch.backends.cudnn.benchmark = True
        return torch.device('cuda', ids[0])
    if torch.backends.mps.is_available():
        return torch.device('mps')
    print('no GPU found: going on with the CPU')
    return torch.device('cpu')


def precision(opts, device):
    """The autocast context of --fp16 and --bf16, and whether gradients need scaling."""
    if opts.fp16 and device.type != 'cpu':
        return torch.autocast(device.type, torch.float16), device.type == 'cuda'
    if opts.fp16:
        print('--fp16 needs a GPU: going on in float32 (on a recent CPU, try --bf16)')
    if opts.bf16:
        return torch.autocast(device.type, torch.bfloat16), False
    return nullcontext(), False


def seed(number):
    """From here on random, numpy and torch (its workers too) draw the same numbers again."""
    random.seed(number)
    np.random.seed(number % 2**32)  # noqa: NPY002 (what other people's augmentations draw from)
    torch.manual_seed(number)


def versions():
    """What made a run: enough to make it again."""
    here = Path(__file__).parent
    git = ['git', '-C', str(here), 'rev-parse', '--short', 'HEAD']
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=5).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):  # no git, or a copy that came as a zip file
        commit = None
    return {
        'python': platform.python_version(),
        'torch': str(torch.__version__),
        'torchvision': str(torchvision.__version__),
        'numpy': str(np.__version__),
        'commit': commit,
    }


# ---------------------------------------------------------------------------------------------------------------------
# 3. the run folder


def run_folder(name):
    """model/<name>, whether it is there or not. A name is a name, not a path."""
    if not re.fullmatch(r'[\w][\w.+-]*', name):
        raise Problem(f'--name {name}: letters, digits, and . _ + - are expected, such as ft_ResNet50')
    return RUNS / name


def find_run(name):
    """model/<name> of a run that is there, or a sentence that lists those that are."""
    folder = run_folder(name)
    if not (folder / 'opts.yaml').is_file():
        there = sorted(path.parent.name for path in RUNS.glob('*/opts.yaml'))
        listed = ', '.join(there) if there else f'none yet; python train.py --name {name} makes one'
        raise Problem(f'--name {name}: there is no {folder / "opts.yaml"}. Runs that are there: {listed}')
    return folder


def result_of(opts):
    """The result file that an evaluator is pointed at: opts.mat, the run opts.name, or the run last tested."""
    if opts.mat:
        if opts.name:
            raise Problem('give a file or --name, not both')
        return results.at(Path(opts.mat))
    if opts.name:
        return result_named(opts.name)
    tested = [path for folder in RUNS.glob('*') if (path := results.find(folder))]
    if not tested:
        raise Problem('no run has been tested yet: python test.py --name NAME writes model/NAME/pytorch_result.mat')
    path = max(tested, key=lambda path: path.stat().st_mtime)
    print(f'{path.parent.name}: the run last tested')
    return path


def result_named(name):
    """The result of a run, or a result file by its path."""
    if Path(name).suffix == '.mat' or Path(name).name != name:
        return results.at(Path(name))
    path = results.find(find_run(name))
    if path is None:
        raise Problem(f'{name} has not been tested yet: python test.py --name {name}')
    return path


NETWORK = ('backbone', 'head', 'height', 'width', 'stride', 'droprate', 'linear_num')


def save_opts(opts, folder):
    """opts.yaml: the options, and a block `run:` with what is no option."""
    none = ('given', 'config', 'nclasses', 'resume', 'overwrite')
    options = {name: value for name, value in vars(opts).items() if name not in none}
    run = {'nclasses': opts.nclasses, **versions()}
    with replacing(folder / 'opts.yaml') as temporary:
        temporary.write_text(
            yaml.safe_dump({**options, 'run': run}, sort_keys=True, allow_unicode=True), encoding='utf-8'
        )


def read_opts(folder):
    """The options of a run, as a dict with `nclasses`. opts.yaml files of the upstream baseline are translated."""
    path = folder / 'opts.yaml'
    try:
        saved = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Problem(f'{path} cannot be read: {error}') from None
    if not isinstance(saved, dict):
        raise Problem(f'{path} holds no options')
    run = saved.pop('run', None)
    if not isinstance(run, dict):
        return upstream_opts(saved, path)
    opts = {**saved, 'nclasses': run.get('nclasses')}
    missing = [name for name in (*NETWORK, 'nclasses') if opts.get(name) is None]
    if missing or opts['backbone'] not in networks.BACKBONES or opts['head'] not in networks.HEADS:
        what = f'does not say {", ".join(missing)}' if missing else 'asks for a network that is not built here'
        raise Problem(f'{path} {what}: was it edited, or made by another version?')
    return opts


def upstream_opts(saved, path):
    """A dict of the upstream baseline's flags -> of ours."""
    beyond = [name for name, value in saved.items() if name.startswith(('use_', 'ibn', 'usam')) and value]
    backbone = 'densenet121' if 'use_dense' in beyond else 'resnet50'
    if set(beyond) - {'use_dense'}:
        raise Problem(f'{path} asks for a network that is not built here: {", ".join(set(beyond) - {"use_dense"})}')
    if 'nclasses' not in saved:
        raise Problem(f'{path} does not say the number of identities: add a line such as "nclasses: 751"')
    opts = {'backbone': backbone, 'head': 'pcb' if saved.get('PCB') else 'classblock', 'nclasses': saved['nclasses']}
    opts |= networks.HEADS[opts['head']][1]
    if opts['head'] == 'classblock':
        opts |= {name: saved[name] for name in ('stride', 'linear_num') if name in saved}
    return {**opts, 'droprate': saved.get('droprate', 0.5), 'data_dir': saved.get('data_dir')}


def agree(opts, saved, names, where, advice='Leave it out, or name another run'):
    """A typed option that contradicts what a run was made with is an error, not something to overrule in silence."""
    for name in names:
        if name in opts.given and getattr(opts, name) != saved[name]:
            raise Problem(
                f'--{name} {getattr(opts, name)} contradicts {where}, which says {name}: {saved[name]}. {advice}'
            )


def load_run(name, which='last', device='cpu', typed=None):
    """A trained run -> (network in eval mode, its options). Never asks for ImageNet weights.

    `typed` are the options of the calling script, whose network options must not contradict the run's.
    """
    folder = find_run(name)
    opts = argparse.Namespace(**read_opts(folder))
    if typed is not None:
        agree(typed, vars(opts), NETWORK, folder / 'opts.yaml')
    net = networks.build(opts)
    print(networks.load_weights(net, snapshot(folder, which)))
    return net.to(device).eval(), opts


def snapshot(folder, which):
    """'last', 59, '060', 'net_060.pth', 'average' -> the file, or a sentence that lists those that are there."""
    label = re.sub(r'^net_|\.pth$', '', str(which))
    labels = [f'{int(label):03d}', label] if label.isdigit() else [label]  # older baselines wrote net_59.pth
    for path in (folder / f'net_{label}.pth' for label in labels):
        if re.fullmatch(r'net_\w+\.pth', path.name) and path.is_file():
            return path
    there = [path.stem.removeprefix('net_') for path in sorted(folder.glob('net_*.pth'))]
    raise Problem(f'--which_epoch {which}: {folder} has no such weights. There are: {", ".join(there) or "none"}')


def save(obj, path):
    with replacing(path) as temporary:
        torch.save(obj, temporary)
