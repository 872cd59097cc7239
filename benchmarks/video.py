"""Frames a second of search.py video, end to end and by stage, as ratios to a plain loop; and its memory, pass by pass.

Reads:   --video, else a drawn one of 768x576; --model, a file of export.py, else an untrained network
Writes:  results/video.csv
Run:     python benchmarks/video.py
         python benchmarks/video.py --video street.avi --model model/ft_ResNet50/ft_ResNet50.onnx

The plain loop is what one writes first: every frame is detected in, everybody in it is described, one thing after the
other. Ours is what search.py video does, all of it: decode, detect in every third frame, follow, describe the best
shots, draw and encode. Then ours goes over the video again and again, in one process: its memory should not grow.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

import model as networks  # noqa: E402
import utils  # noqa: E402
from reid import cli, data, detecting, embedding, frames, machine, settings, tracking, walks, watching  # noqa: E402
from reid.files import read_rows, write_rows  # noqa: E402
from reid.video import EVERY, Follower, crop  # noqa: E402

TABLE = ROOT / 'results/video.csv'
ABOUT = 'machine threads torch commit video frames size detector network every'.split()
COLUMNS = [*ABOUT, *'way frames_s ratio people tracks read detect track embed write memory_mb'.split()]
SIZE = 768, 576


def options():
    parser = cli.parser(__doc__)
    parser.add_argument('--video', help='a file (default: a drawn one)')
    parser.add_argument('--model', type=Path, help='a file of export.py (default: an untrained EfficientNet-Lite0)')
    parser.add_argument('--detector', default='yolox_nano', help='default yolox_nano; hog needs no file')
    parser.add_argument('--every', default=EVERY, type=settings.positive, help=f'default {EVERY}')
    parser.add_argument('--seconds', default=30.0, type=settings.minutes, help='of the drawn video (default 30)')
    parser.add_argument('--passes', default=10, type=settings.positive, help='to watch the memory (default 10)')
    parser.add_argument('--threads', type=settings.positive, help='of the CPU (default: all)')
    return parser


def main(opts):
    if opts.threads:
        torch.set_num_threads(opts.threads)
    machine.keep_memory()
    device, threads = torch.device('cpu'), torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        path = Path(opts.video) if opts.video else drawn(folder / 'drawn.avi', opts.seconds)
        embedder = embedding.of_file(opts.model, threads) if opts.model else untrained(device)
        detect = detecting.load(opts.detector, None, device, threads, tracking.LOW)
        with frames.open(str(path)) as source:
            count, size = source.count, 'x'.join(map(str, source.size))
        about = {'machine': machine.describe(device), 'threads': threads, 'torch': torch.__version__}
        about |= {'commit': utils.versions()['commit'], 'video': path.name, 'frames': count, 'size': size}
        about |= {'detector': opts.detector, 'network': embedder.about['run'], 'every': opts.every}
        print(*(f'{name}: {value}' for name, value in about.items()), '', sep='\n')

        rows = [about | {'way': 'plain loop'} | plain(path, detect, embedder)]
        say(rows[0], rows[0])
        for i in range(opts.passes):
            rows.append(about | {'way': f'pass {i + 1}'} | ours(path, detect, embedder, opts.every, folder / f'{i}'))
            say(rows[-1], rows[0])
    same = {name: str(about[name]) for name in ABOUT if name != 'commit'}
    write_rows(TABLE, COLUMNS, [row for row in read_rows(TABLE) if not same.items() <= row.items()] + rows)


def drawn(path, seconds):
    """People of the toy data set who walk about, enlarged to what a camera gives."""
    with frames.writer(path, 25, SIZE) as write:
        for _, picture, _ in walks.video(seconds=seconds):
            write(np.array(Image.fromarray(picture).resize(SIZE, Image.Resampling.BILINEAR)))
    return path


def untrained(device):
    """Its vectors mean nothing, and take as long as those of a trained one."""
    opts = argparse.Namespace(backbone='efficientnet_lite0', head='bnneck', pool='avg', droprate=0.5, nclasses=5)
    vars(opts).update(stride=1, linear_num=None, loss_feature=None, test_feature=None, height=160, width=80)
    torch.manual_seed(0)
    net = networks.build(networks.complete(opts)).eval()
    about = {'run': 'efficientnet_lite0, untrained'}
    return embedding.of_network(net, (160, 80), True, device, None, about)


def plain(path, detect, embedder):
    people, count, began = 0, 0, time.perf_counter()
    with frames.open(str(path)) as source:
        for frame in source:
            boxes, _ = detect(frame.picture)
            shown = [Image.fromarray(crop(frame.picture, box)) for box in boxes]
            if shown:
                embedder.describe(np.stack([data.sized(picture, embedder.size) for picture in shown]))
            people, count = people + len(boxes), count + 1
    speed = count / (time.perf_counter() - began)
    return {'frames_s': round(speed, 1), 'people': round(people / count, 1), 'memory_mb': memory()}


def ours(path, detect, embedder, every, out):
    with frames.open(str(path)) as source:
        (film,) = watching.films([source], [str(path)], None, None, out)
        report = film.watch(Follower(detect, embedder, every))
    stages = {tally.name: round(tally.rate, 1) for tally in report.stages}
    return {'frames_s': round(report.rate, 1), 'tracks': len(film.tracks), **stages, 'memory_mb': memory()}


def memory():
    held = machine.held()
    return '' if held is None else round(held / 1e6)


def say(row, plain):
    row['ratio'] = round(row['frames_s'] / plain['frames_s'], 2)
    stages = ', '.join(f'{name} {row[name]}' for name in ('read', 'detect', 'track', 'embed', 'write') if name in row)
    print(f'{row["way"]}: {row["frames_s"]} frames/s, {row["ratio"]}x, {row["memory_mb"]} MB  {stages}', flush=True)


if __name__ == '__main__':
    cli.start(main, options)
