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
from reid import (
    backbones,
    cli,
    clip_texts,
    embedding,
    index,
    machine,
    optim,
    processes,
    results,
    runtime,
    settings,
    thresholds,
)
from reid.files import replacing
from reid.problem import Problem

RUNS = Path('model')

# ---------------------------------------------------------------------------------------------------------------------
# 1. options


OF_THE_RUN = 'These come from the run: one that is typed and contradicts it is an error, but for --test_feature.'


def network_options(parser, about='What the network is made of.'):
    """The options that decide the shape of a network. train.py sets them; test.py checks them against opts.yaml."""
    group = parser.add_argument_group('network', about)
    group.add_argument(
        '--backbone',
        default='resnet50',
        type=backbones.check,
        help='resnet50 (default), densenet121, osnet_x1_0 (good from scratch), resnet50_ibn_a, efficientnet_lite0 '
        '(for CPUs), any other of torchvision by its name there, and timm/NAME or clip/NAME, if their '
        'packages timm and open_clip_torch are installed',
    )
    group.add_argument(
        '--pool', default='avg', choices=networks.POOLS, help='avg (default), or gem: between average and maximum'
    )
    group.add_argument(
        '--head',
        default='classblock',
        choices=networks.HEADS,
        help='classblock (default): a feature of 512 numbers; bnneck: BatchNorm alone, for --loss triplet or center; '
        'linear: nothing between pooling and classifier; pcb: six stripes, for large pictures; of clip/NAME alone: '
        'clip, two bnnecks, and before it clip_text, texts for a frozen network',
    )
    group.add_argument('--height', type=settings.side, help='of the picture fed to the network (default 256, pcb 384)')
    group.add_argument('--width', type=settings.side, help='of the picture fed to the network (default 128, pcb 192)')
    group.add_argument(
        '--stride',
        type=int,
        choices=(1, 2),
        help="the backbone's last stride: 2 (default), or 1 for twice finer maps: better and slower (bnneck, pcb: 1)",
    )
    group.add_argument(
        '--overlap',
        default=0,
        type=settings.whole,
        help='pixels that neighbouring patches of clip/ViT share: 0 (default), or 4 for finer ones, twice as slow',
    )
    group.add_argument(
        '--camera_embedding',
        default=0.0,
        type=settings.rate,
        help='--head clip of a clip/ViT adds a learnt vector for each camera of training, so many times: 0 (default: '
        'without), or 1 to 3, for cameras that stay the same',
    )
    group.add_argument(
        '--droprate',
        default=0.5,
        type=settings.fraction,
        help='dropout of classblock and pcb, before the classifier (default 0.5)',
    )
    group.add_argument(
        '--linear_num',
        type=settings.whole,
        help="length of classblock's feature (default 512, pcb 256 a stripe); 0 keeps the backbone's own",
    )
    group.add_argument(
        '--loss_feature',
        choices=('before', 'after'),
        help='--loss compares the feature before the head (default of bnneck), or after it (default of the others)',
    )
    group.add_argument(
        '--test_feature',
        choices=('before', 'after'),
        help='a descriptor is the feature after the head (default), or the pooled one before',
    )
    return group


def epoch_option(group):
    group.add_argument(
        '--which_epoch',
        default='last',
        help='its weights: last (default), the number of an epoch, or of a run with --average, average_bn',
    )


def machine_options(parser):
    """The options that say where and how fast, not what: they may differ from run to run."""
    group = parser.add_argument_group('machine', 'Where and how fast: what is learnt stays the same.')
    gpu_option(group)
    group.add_argument(
        '--num_workers',
        default=default_workers(),
        type=settings.whole,
        help='processes that load pictures to test, and with --cache off to train (default: one a core on Linux, up to '
        '16; else 0, as they take seconds to start there); 0 if they make trouble',
    )
    cli.switch(group, '--fp16', 'half precision on a GPU: about half the memory, up to twice as fast; may overflow')
    cli.switch(group, '--bf16', 'the same in bfloat16, for recent GPUs and CPUs; never overflows')


def gpu_option(parser):
    parser.add_argument(
        '--gpu_ids',
        default='0',
        help='the GPU to use (default 0); -1 for the CPU; several, as 0,1, share the work of train, test and '
        'evaluate_gpu',
    )


def embedder_options(parser, default='ft_ResNet50'):
    """The options that say what turns pictures into descriptors: see embedder()."""
    group = parser.add_argument_group('network', 'What turns pictures into descriptors.')
    which = group.add_mutually_exclusive_group()
    which.add_argument('--name', help=f'a run (default {default})')
    which.add_argument('--model', type=Path, help='or a file that export.py has made of one')
    group.add_argument(
        '--runtime', choices=runtime.RUNTIMES, help='of --model: what runs it (default: what suits the file)'
    )
    group.add_argument(
        '--which_epoch', help='of the run: last (default), the number of an epoch, average or average_bn'
    )
    group.add_argument('--no_flip', action='store_true', default=None, help='of the run: without the mirrored view')
    group.add_argument('--batchsize', default=32, type=settings.positive, help='pictures at a time (default 32)')
    gpu_option(group)


def result_options(parser):
    """The options that point an evaluator at a result."""
    group = parser.add_argument_group('result', 'What test.py has written.')
    group.add_argument('mat', nargs='?', help='a result file; default: that of --name, else of the run last tested')
    group.add_argument('--name', help='the run whose result it is (default: the one last tested)')
    gpu_option(group)


def default_workers():
    # Starting a process is cheap where it is forked and takes seconds where it is spawned, every epoch anew.
    others = int(os.environ.get('LOCAL_WORLD_SIZE', '1'))  # that torchrun has started, and that need some as well
    return max(1, min(16, machine.cores() // others)) if platform.system() == 'Linux' else 0


# ---------------------------------------------------------------------------------------------------------------------
# 2. machine


def device(gpu_ids, together=False):
    """'0' -> the first GPU, Apple's GPU or, with a line of notice, the CPU. '-1' -> the CPU.

    A script that several processes can share says `together`: it joins those that torchrun has started, or for '0,1'
    starts one for each GPU.
    """
    found = one_of(gpu_ids, together)
    if found.type == 'cpu':
        machine.keep_memory()
    if together:
        processes.start(found)
    return found


def one_of(gpu_ids, together):
    ids = gpu_numbers(gpu_ids)
    if ids[0] < 0:
        return torch.device('cpu')
    if torch.cuda.is_available():
        place = int(os.environ.get('LOCAL_RANK', '0'))  # torchrun starts several processes: to each its own GPU
        if 'LOCAL_RANK' not in os.environ and len(ids) > 1:
            if together and max(ids) < torch.cuda.device_count():
                processes.several(len(ids))
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


def gpu_numbers(gpu_ids):
    try:
        return [int(i) for i in str(gpu_ids).strip('[] ').split(',')]
    except ValueError:
        raise Problem(f'--gpu_ids {gpu_ids}: numbers such as 0 or 0,1 are expected, or -1 for the CPU') from None


def precision(opts, device):
    """The autocast context of --fp16 and --bf16, and whether gradients need scaling."""
    if opts.fp16 and opts.bf16:
        cli.typed_of(opts, 'fp16', 'bf16', '--fp16 and --bf16 are two ways to compute: one of them, please')
    if opts.fp16 and device.type != 'cpu':
        return torch.autocast(device.type, torch.float16), device.type == 'cuda'
    if opts.fp16:
        print('--fp16 needs a GPU: going on in float32 (on a recent CPU, try --bf16)')
    if opts.bf16:
        return torch.autocast(device.type, torch.bfloat16), False
    return nullcontext(), False


def learner(model, opts, device):
    """A network as the training loop calls it. With several processes their gradients are averaged; --compile."""
    called = processes.parallel(model, device, optim.unused(model), opts.sync_bn)
    return machine.compiled(called, device) if opts.compile else called


def try_out(model, opts, cast, batchsize):
    """A step of training without any learning, to see whether there is room for it."""
    x = torch.zeros(batchsize, 3, opts.height, opts.width, device=next(model.parameters()).device)
    with cast:
        logits, _ = model(x)
    sum(z.float().logsumexp(1).mean() for z in logits).backward()
    model.zero_grad()


def test_batchsize(opts, device):
    """Nothing is learnt in a test, so a batch is as large as is quick."""
    return opts.batchsize or (32 if device.type == 'cpu' else 256)


test_batchsize.__test__ = False  # no test, whatever its name says to pytest


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


def find_run(name, option='--name'):
    """model/<name> of a run that is there, or a sentence that lists those that are. option: what named it."""
    folder = run_folder(name)
    if not (folder / 'opts.yaml').is_file():
        there = sorted(path.parent.name for path in RUNS.glob('*/opts.yaml'))
        listed = ', '.join(there) if there else f'none yet; python train.py --name {name} makes one'
        raise Problem(f'{option} {name}: there is no {folder / "opts.yaml"}. Runs that are there: {listed}')
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


NETWORK = (
    *('backbone', 'pool', 'head', 'height', 'width', 'stride', 'overlap', 'camera_embedding', 'droprate', 'linear_num'),
    'loss_feature',
)


def save_opts(opts, folder, device):
    """opts.yaml: the options, and a block `run:` with what is no option."""
    if not processes.first():
        return
    none = ('given', 'command', 'config', 'nclasses', 'cameras', 'resume', 'overwrite')
    options = {name: value for name, value in vars(opts).items() if name not in none}
    run = {'nclasses': opts.nclasses, 'command': opts.command, 'device': machine.describe(device)}
    run |= {'processes': processes.count(), **versions()}
    run |= {'cameras': opts.cameras} if opts.camera_embedding else {}
    write_opts(folder, {**options, 'run': run})


def amend_opts(folder, **changed):
    """Some options of a run that is there, anew; whatever else opts.yaml says stays."""
    write_opts(folder, yaml.safe_load((folder / 'opts.yaml').read_text(encoding='utf-8')) | changed)


def write_opts(folder, content):
    with replacing(folder / 'opts.yaml') as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=True, allow_unicode=True), encoding='utf-8')


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
    if saved.get('head') not in networks.HEADS:
        raise Problem(f'{path} asks for a head that is not built here: {saved.get("head")}')
    later = {'pool': 'avg', 'overlap': 0, 'camera_embedding': 0.0, 'loss_feature': 'after', 'test_feature': 'after'}
    opts = {'data_dir': [], **later, **saved}  # older runs lack these
    opts |= {'nclasses': run.get('nclasses'), 'cameras': run.get('cameras', [])}
    if isinstance(opts['data_dir'], str):
        opts['data_dir'] = [opts['data_dir']]
    missing = [name for name in (*NETWORK, 'nclasses') if opts.get(name) is None]
    if missing:
        raise Problem(f'{path} does not say {", ".join(missing)}: was it edited, or made by another version?')
    return opts


def upstream_opts(saved, path):
    """A dict of the upstream baseline's flags -> of ours."""
    flags = [name for name, value in saved.items() if name.startswith(('use_', 'ibn', 'usam')) and value]
    other = {'use_dino', 'use_efficient', 'usam'}  # of these, its networks are made otherwise
    if len(flags) > 1 or other & set(flags) or not {f'--{name}' for name in flags} <= set(cli.ALIASES):
        raise Problem(f'{path} asks for a network that is not built here: {", ".join(flags)}')
    if 'nclasses' not in saved:
        raise Problem(f'{path} does not say the number of identities: add a line such as "nclasses: 751"')
    parser = cli.parser('')
    network_options(parser)
    typed = cli.parse(parser, [f'--{name}' for name in flags])
    opts = {'backbone': typed.backbone, 'pool': 'avg', 'head': 'pcb' if saved.get('PCB') else 'classblock'}
    opts |= {**networks.HEADS[opts['head']][1], 'nclasses': saved['nclasses']}
    opts |= {name: getattr(typed, name) for name in ('height', 'width') if getattr(typed, name)}
    if opts['head'] == 'classblock':
        opts |= {name: saved[name] for name in ('stride', 'linear_num') if name in saved}
    data_dir = [saved['data_dir']] if saved.get('data_dir') else []
    return {**opts, 'overlap': 0, 'camera_embedding': 0.0, 'droprate': saved.get('droprate', 0.5), 'data_dir': data_dir}


def agree(opts, saved, names, where, advice='Leave it out, or name another run'):
    """A typed option that contradicts what a run was made with is an error, not something to overrule in silence."""
    for name in names:
        if name in opts.given and getattr(opts, name) != saved[name]:
            raise Problem(
                f'--{name} {getattr(opts, name)} contradicts {where}, which says {name}: {saved[name]}. {advice}'
            )


def load_run(name, which='last', device='cpu', typed=None, test_feature=None):
    """A trained run -> (network in eval mode, its options). Never asks for ImageNet weights.

    `typed` are the options of the calling script, whose network options must not contradict the run's. test_feature:
    the one that descriptors which are there were made of, if that is known; the weights are the same for both.
    """
    folder = find_run(name)
    opts = argparse.Namespace(**read_opts(folder))
    if typed is not None:
        agree(typed, vars(opts), NETWORK, folder / 'opts.yaml')
        test_feature = typed.test_feature if 'test_feature' in typed.given else test_feature
    opts.test_feature = test_feature or opts.test_feature
    net = networks.build(networks.complete(opts))
    print(networks.load_weights(net, snapshot(folder, which)))
    return net.to(device).eval(), opts


def embedder(opts, kept=None, where=None, threads=0):
    """What turns pictures into descriptors: the run --name or, without its network, the file --model of export.py. For
    an index, `kept` in `where`, what was not typed is as it was made, and what cannot be compared is a sentence."""
    about = kept.about if kept else {}
    of_another = opts.given & ({'no_flip', 'which_epoch'} if opts.model else {'runtime'})
    if of_another:
        kind = 'a run, of which --model was made' if opts.model else 'a file, and none is named by --model'
        raise Problem(f'--{min(of_another)} is an option of {kind}: leave it out')
    if opts.model:
        gpu = gpu_numbers(opts.gpu_ids)[0]
        found = embedding.of_file(opts.model, threads, opts.runtime, None if gpu < 0 else gpu)
    else:
        found = of_run(opts, about)
    if kept:
        index.same_network(where, about, found.about)
    return found


def words(opts, kept, where):
    """What turns texts into vectors that descriptors of an index can be compared with: of the run that made them."""
    if opts.model:
        raise Problem(f'--text needs a text encoder, which {opts.model} does not have: --name RUN')
    about = embedder(opts, kept, where).about
    folder = find_run(about['run'])
    trained = read_opts(folder)
    if trained['head'] not in clip_texts.HEADS or about['test_feature'] != 'before':
        raise Problem(
            f'--text: the descriptors of {about["run"]} have nothing in common with texts. Those of a run with --head '
            f'clip have, with --test_feature before'
        )
    return clip_texts.of_saved(clip_texts.load(folder, trained['backbone']), trained['backbone'])


def of_run(opts, made):
    """The embedder of --name, as other descriptors were `made` (the `about` of theirs) where nothing was typed."""
    made = {'run': 'ft_ResNet50', 'which_epoch': 'last', 'flip': True} | made
    name, which = opts.name or made['run'], opts.which_epoch or made['which_epoch']
    flip = not opts.no_flip if opts.no_flip is not None else made['flip']
    folder, where = find_run(name), device(opts.gpu_ids)
    net, trained = load_run(name, which, where)
    how = {'flip': flip, 'ms': '1', 'test_feature': trained.test_feature}
    weights = snapshot(folder, which)
    try:
        bounds = thresholds.load(folder, weights, **how)['bounds']
    except Problem as problem:
        bounds = problem
    about = {'run': name, 'which_epoch': which, 'weights': thresholds.fingerprint(weights), **how}
    return embedding.of_network(net, (trained.height, trained.width), flip, where, bounds, about)


def snapshot(folder, which):
    """'last', 59, '060', 'net_060.pth', 'average' -> the file, or a sentence that lists those that are there."""
    label = re.sub(r'^net_|\.pth$', '', str(which))
    labels = [f'{int(label):03d}', label] if label.isdigit() else [label]  # older baselines wrote net_59.pth
    for path in (folder / f'net_{label}.pth' for label in labels):
        if re.fullmatch(r'net_\w+\.pth', path.name) and path.is_file():
            return path
    there = [path.stem.removeprefix('net_') for path in sorted(folder.glob('net_*.pth'))]
    raise Problem(f'--which_epoch {which}: {folder} has no such weights. There are: {", ".join(there) or "none"}')
