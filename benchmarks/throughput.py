"""Pictures a second of loading, training and describing, as ratios to a plain loop in the same run.

Reads:   <data_dir>/train_all
Writes:  results/throughput.csv; with --plot also results/throughput.png
Run:     python benchmarks/throughput.py --data_dir ../Market/pytorch
         python benchmarks/throughput.py --backbone resnet18 --height 128 --width 64 --threads 1

The plain loop is what one writes first: ImageFolder's pictures through torchvision's transforms on Pillow, by a
DataLoader; the network in float32, as it comes; two passes, for the picture and its mirror image. Ours are the parts of
train.py and test.py. Each job runs in a process of its own: the best of three rounds. Close other programs.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import nullcontext
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402
from torchvision import transforms as T  # noqa: E402

import model as networks  # noqa: E402
import utils  # noqa: E402
from reid import (  # noqa: E402
    augment,
    backbones,
    cache,
    cli,
    data,
    features,
    losses,
    machine,
    optim,
    plots,
    settings,
    unlabelled,
)
from reid.files import read_rows, write_rows  # noqa: E402
from reid.problem import Problem  # noqa: E402

TABLE, PICTURE = ROOT / 'results/throughput.csv', ROOT / 'results/throughput.png'
ABOUT = 'machine threads torch backbone size batch'.split()
PARTS = 'loading augmentation forward backward optimiser'.split()  # of a training step, in milliseconds
COLUMNS = [*ABOUT, *'job precision images_s ratio memory_mb peak_share'.split(), *PARTS]


def options():
    parser = cli.parser(__doc__)
    parser.add_argument('--data_dir', default='../Market/pytorch', help='the prepared tree (default %(default)s)')
    parser.add_argument('--backbone', default='resnet50', type=backbones.check, help='default resnet50, stride 1')
    parser.add_argument('--height', default=256, type=settings.side, help='default 256')
    parser.add_argument('--width', default=128, type=settings.side, help='default 128')
    parser.add_argument('--batchsize', default=32, type=settings.positive, help='default 32')
    parser.add_argument('--batches', default=8, type=settings.positive, help='in a round (default 8; GPUs: 100)')
    parser.add_argument('--threads', type=settings.positive, help='of the CPU (default: all)')
    parser.add_argument(
        '--num_workers', default=0, type=settings.whole, help='processes that load pictures (default 0)'
    )
    parser.add_argument(
        '--precision',
        default='bf16' if fast_bf16() else 'float32',
        choices=('float32', 'fp16', 'bf16'),
        help='of ours (default: bf16 on a CPU with its instructions, else float32); the plain loop has float32',
    )
    parser.add_argument('--jobs', nargs='+', default=list(JOBS), choices=JOBS, help='default: all')
    parser.add_argument('--plot', action='store_true', help='draw results/throughput.png from what has been measured')
    utils.gpu_option(parser)
    parser.add_argument('--one', help=argparse.SUPPRESS)  # a job, in a process of its own
    return parser


def main(opts):
    if opts.threads:
        torch.set_num_threads(opts.threads)
    if opts.one and JOBS[opts.one][1] and not torch.cuda.is_available():
        device = torch.device('cpu')  # and not by utils.device, which sees to the memory as well: that is ours
    else:
        device = utils.device(opts.gpu_ids)
    if opts.one:
        print(json.dumps(measure(opts, device)))
        return
    data.tree(opts.data_dir, ['train_all'])
    about = {'machine': machine.describe(device), 'threads': torch.get_num_threads(), 'torch': torch.__version__}
    about |= {'backbone': opts.backbone, 'size': f'{opts.height}x{opts.width}', 'batch': opts.batchsize}
    print(*(f'{name}: {value}' for name, value in about.items()), sep='\n')
    print(f'\n{"":20s} {"precision":>9s} {"images/s":>9s} {"ratio":>6s} {"memory MB":>10s} {"of the peak":>12s}')
    rows = []
    for job in (job for job in JOBS if job in opts.jobs):  # the plain one first
        row = about | {'job': job} | run(job)
        plain = [other['images_s'] for other in rows if other['job'] == f'plain {job}']
        row['ratio'] = round(row['images_s'] / plain[0], 2) if plain else ''
        rows.append(row)
        said = '{job:20s} {precision:>9s} {images_s:9,.1f} {ratio!s:>6s} {memory_mb:10,d} {peak_share!s:>12s}'
        print(said.format(**row), flush=True)
    same = {name: str(about[name]) for name in ABOUT}
    old = [row for row in read_rows(TABLE) if row['job'] not in opts.jobs or not same.items() <= row.items()]
    write_rows(TABLE, COLUMNS, old + rows)
    if opts.plot:
        draw(same)
        print(PICTURE)


def run(job):
    """Measure in a new process -> its row."""
    done = subprocess.run([sys.executable, __file__, *sys.argv[1:], '--one', job], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Problem(f'{job}: the process ended with code {done.returncode} (memory?)')
    return json.loads(done.stdout.splitlines()[-1])


def fast_bf16():
    """Has the processor, or the GPU, instructions for it?"""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    try:
        return 'avx512_bf16' in Path('/proc/cpuinfo').read_text()
    except OSError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# 1. measuring


def measure(opts, device):
    """A row. A job is a generator that gives the number of pictures after each batch, and takes a clock, for the parts
    of a step, or None."""
    make, plain = JOBS[opts.one]
    precision = 'float32' if plain else opts.precision
    job = make(opts, device, plain)
    next(job)
    rounds = []
    for _ in range(3):
        began, count = time.perf_counter(), 0
        for _ in range(opts.batches):
            count += job.send(None)
        finish(device)
        rounds.append((time.perf_counter() - began) / count)
    row = {'precision': precision, 'images_s': round(1 / min(rounds), 1), 'memory_mb': round(peak_memory(device))}
    row |= dict.fromkeys(('peak_share', *PARTS), '')
    if make is training:
        clock = Clock(device)
        for _ in range(opts.batches):
            job.send(clock)
        row |= {part: round(1000 * clock.seconds[part] / opts.batches, 1) for part in PARTS}
        row['peak_share'] = round(flops(opts, device) / min(rounds) / best_product(device, precision), 3)
    return row


def finish(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


class Clock:
    """clock('forward'): what passed since the last call was the forward pass."""

    def __init__(self, device):
        self.device, self.seconds = device, defaultdict(float)

    def __call__(self, part):
        finish(self.device)
        now = time.perf_counter()
        if part:
            self.seconds[part] += now - self.last
        self.last = now


def peak_memory(device):
    """MB: of the GPU, or all that this process took."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        lines = Path('/proc/self/status').read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith('VmHWM')) / 2**10
    except OSError:  # no Linux
        return 0


def flops(opts, device):
    """Of a training step, for one picture: multiplications and additions, forwards and backwards."""
    model = network(opts).to(device)
    x = torch.zeros(2, 3, opts.height, opts.width, device=device)
    with FlopCounterMode(display=False) as counter:
        model(x)[0][0].sum().backward()
    return counter.get_total_flops() / 2


def best_product(device, precision, n=4096):
    """Operations a second of a large matrix product: what this device can do at best."""
    kind = {'float32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}[precision]
    n = n if device.type == 'cpu' else 2 * n
    a, b = torch.randn(2, n, n, device=device).to(kind)
    seconds = []
    for _ in range(6):
        finish(device)
        began = time.perf_counter()
        a @ b
        finish(device)
        seconds.append(time.perf_counter() - began)
    return 2 * n**3 / min(seconds)


# ---------------------------------------------------------------------------------------------------------------------
# 2. jobs


def pictures(opts):
    """Paths and labels of as many pictures as a round takes, from all over the set."""
    people = data.people(data.tree(opts.data_dir, ['train_all']), 'train_all')
    count = min(len(people.paths), opts.batchsize * opts.batches)
    chosen = [i * len(people.paths) // count for i in range(count)]
    names = sorted(set(people.ids))
    return [people.paths[i] for i in chosen], [names.index(people.ids[i]) for i in chosen]


def network(opts):
    given = {'backbone': opts.backbone, 'head': 'classblock', 'pool': 'avg', 'stride': 1, 'droprate': 0.5}
    given |= {'height': opts.height, 'width': opts.width, 'nclasses': 1501}
    given |= dict.fromkeys(('linear_num', 'loss_feature', 'test_feature'))
    torch.manual_seed(0)
    return networks.build(networks.complete(argparse.Namespace(**given)))


class Plain(Dataset):
    """Paths and labels -> (tensor, label), a picture at a time."""

    def __init__(self, paths, labels, transform):
        self.paths, self.labels, self.transform = paths, labels, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(data.read(self.paths[i])), self.labels[i]


def plain_batches(opts, device, train):
    size = opts.height, opts.width
    steps = [T.Resize(size, T.InterpolationMode.BICUBIC)]
    steps += [T.Pad(10), T.RandomCrop(size), T.RandomHorizontalFlip()] if train else []
    steps += [T.ToTensor(), T.Normalize(data.MEAN, data.STD)] + ([T.RandomErasing(0.5)] if train else [])
    how = {'batch_size': opts.batchsize, 'shuffle': train, 'num_workers': opts.num_workers}
    return DataLoader(Plain(*pictures(opts), T.Compose(steps)), pin_memory=device.type == 'cuda', **how)


def our_batches(opts, device):
    paths, labels = pictures(opts)
    how = {'folder': data.tree(opts.data_dir, ['train_all']), 'device': device, 'train': True}
    return cache.batches(paths, labels, opts.height, opts.width, opts.batchsize, **how)


def training_pictures(opts, device, plain):
    """Batches that do not end, and what makes them the network's input."""
    if plain:
        return unlabelled.endless(plain_batches(opts, device, train=True)), lambda x: x.to(device, non_blocking=True)
    return unlabelled.endless(our_batches(opts, device)), augment.Augment(opts.height, opts.width, erasing_p=0.5)


def loading(opts, device, plain):
    """Pictures ready for the network. (The first epoch of ours decodes; it is not what is measured.)"""
    batches, look = training_pictures(opts, device, plain)
    look(next(batches)[0])
    yield
    while True:
        yield len(look(next(batches)[0]))


def training(opts, device, plain):
    """Whole steps of training, loading among them."""
    batches, look = training_pictures(opts, device, plain)
    model, also = network(opts).to(device).train(), losses.Sum([], 1501, [512])
    if not plain:
        model = model.to(memory_format=torch.channels_last)
    (optimizer,) = optim.optimizers(model, also, argparse.Namespace(**OPTIMIZER))
    if plain:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)
    cast, scaling = autocast(opts, device, plain)
    scaler = torch.amp.GradScaler(device.type, enabled=scaling)

    def step(clock):
        clock = clock or (lambda part: None)
        clock(None)
        x, y = next(batches)
        clock('loading')
        x, y = look(x), y.to(device)
        clock('augmentation')
        with cast:
            logits, _ = model(x)
        loss = F.cross_entropy(logits[0].float(), y)
        clock('forward')
        scaler.scale(loss).backward()
        clock('backward')
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        clock('optimiser')
        return len(x)

    for _ in range(3):
        step(None)
    clock = yield
    while True:
        clock = yield step(clock)


OPTIMIZER = {'optimizer': 'sgd', 'lr': 0.01, 'backbone_lr': 0.1, 'layer_decay': 1.0, 'weight_decay': 5e-4}


def autocast(opts, device, plain):
    if plain or opts.precision == 'float32':
        return nullcontext(), False
    kind = {'fp16': torch.float16, 'bf16': torch.bfloat16}[opts.precision]
    return torch.autocast(device.type, kind), opts.precision == 'fp16' and device.type == 'cuda'


def describing(opts, device, plain):
    """Descriptors of picture files. Ours come all at once, so a round of them is one piece of work."""
    model = network(opts).to(device).eval()
    if plain:
        batches = unlabelled.endless(plain_batches(opts, device, train=False))

        @torch.no_grad()
        def step():
            x = next(batches)[0].to(device, non_blocking=True)
            return len(F.normalize(model.embed(x) + model.embed(x.flip(3))).cpu())

        step()
        yield
        while True:
            yield step()
    paths, _ = pictures(opts)
    cast, _ = autocast(opts, device, plain)
    extract = partial(features.extract, size=(opts.height, opts.width), device=device, batchsize=opts.batchsize)
    extract = partial(extract, cast=cast, workers=opts.num_workers)
    extract(model, paths[: opts.batchsize])
    yield
    while True:
        yield len(extract(model, paths))
        for _ in range(opts.batches - 1):  # they were all in it
            yield 0


# How to do it, and whether it is the plain way: each with the one that it is compared with before it.
JOBS = {
    'plain loading': (loading, True),
    'loading': (loading, False),
    'plain training': (training, True),
    'training': (training, False),
    'plain describing': (describing, True),
    'describing': (describing, False),
}

# ---------------------------------------------------------------------------------------------------------------------
# 3. the picture


def draw(same):
    """throughput.png: where the time of a training step goes, in the plain loop and in ours."""
    rows = [row for row in read_rows(TABLE) if same.items() <= row.items() and row['job'].endswith('training')]
    if len(rows) < 2:
        raise Problem('--plot: plain training and training have to be measured first')
    figure = plots.new_figure(figsize=(8, 2.6), layout='constrained')
    axis, left = figure.subplots(), [0.0, 0.0]
    colours = ['#b2182b', '#ef8a62', '#92c5de', '#4393c3', '#2166ac']
    for part, colour in zip(PARTS, colours, strict=True):
        widths = [float(row[part]) for row in rows]
        axis.barh([0, 1], widths, left=left, color=colour, label=part, height=0.6)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for place, (row, end) in enumerate(zip(rows, left, strict=True)):
        axis.text(end, place, f' {float(row["images_s"]):,.1f} images/s', va='center', color=plots.INK)
    axis.set_yticks([0, 1], [f'{row["job"]}\n{row["precision"]}' for row in rows])
    axis.invert_yaxis()
    title = f'{same["backbone"]}, {same["size"]}, batch {same["batch"]}: {same["machine"]}, {same["threads"]} threads'
    axis.set(xlabel='milliseconds a step', xlim=(0, 1.25 * max(left)))
    axis.set_title(title, fontsize=9)
    axis.spines[['top', 'right']].set_visible(False)
    figure.legend(loc='outside lower center', ncols=5, frameon=False, fontsize=9)
    plots.save(figure, PICTURE)


if __name__ == '__main__':
    cli.start(main, options)
