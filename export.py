"""Write a trained network as one file for other programs, and compare what it says with the original.

Reads:   model/<name>/, for the comparison pictures of <test_dir>/{query, gallery}, for --int8 some of train as well
Writes:  model/<name>/<name>.onnx, or --out; beside it, as <that>.json, what it is and what the comparison found
Run:     python export.py --name ft_ResNet50
         python export.py --name ft_ResNet50 --int8
         python search.py embed mine.jpg --model model/ft_ResNet50/ft_ResNet50.onnx
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import torch

import utils
from reid import cli, comparing, data, embedding, exporting, machine, processes, runtime, settings, thresholds
from reid.problem import Problem
from reid.shrinking import SMALLER, shrink

# A file that is further from the original than this is a failure, and is not kept.
DIFFERENCE, COSINE = 1e-5, 0.99999


def options():
    parser = cli.parser(__doc__)
    group = parser.add_argument_group('run')
    group.add_argument('--name', default='ft_ResNet50', help='the run to export (default ft_ResNet50)')
    utils.epoch_option(group)
    group = parser.add_argument_group('file')
    group.add_argument(
        '--format',
        default='onnx',
        choices=exporting.FORMATS,
        help='onnx (default): read nearly everywhere, OpenVINO and TensorRT among them; openvino: for Intel and C++; '
        'torchscript and pt2: for programs with torch in them; ncnn: for phones, a picture at a time',
    )
    group.add_argument('--out', type=Path, help='the file (default model/<name>/<name>.onnx, or as the format ends)')
    group.add_argument(
        '--int8',
        action='store_true',
        help='onnx: compute with whole numbers of 8 bits, a quarter of the size and two to three times as fast on '
        'recent CPUs. The cost in Rank-1 is measured: look at it',
    )
    group.add_argument(
        '--calibrate',
        default=256,
        type=settings.positive,
        metavar='N',
        help='--int8 looks at N training pictures for the range of its numbers (default 256; 100 to 500 do)',
    )
    group.add_argument(
        '--fp16',
        action='store_true',
        help='onnx, openvino: weights in half precision. Half the size, as fast as before, nearly the same numbers',
    )
    group.add_argument(
        '--no_flip', action='store_true', help='without the mirrored view: half the work, a little worse'
    )
    group.add_argument(
        '--float', action='store_true', help='take float pictures, still 0 to 255, instead of bytes (ncnn: always)'
    )
    group = parser.add_argument_group('comparison', 'The file and the network are shown the same pictures.')
    group.add_argument(
        '--test_dir', '--data_dir', help='a prepared tree to compare with; default: the one that the run was trained on'
    )
    group.add_argument(
        '--compare',
        default=1000,
        type=settings.positive,
        metavar='N',
        help='with about N pictures of the test set, of whole identities (default 1000; 3000 for figures to rely on)',
    )
    group.add_argument('--batchsize', default=32, type=settings.positive, help='pictures at a time (default 32)')
    group.add_argument('--threads', default=0, type=settings.whole, help='of the CPU (default 0: all cores)')
    return parser


def main(opts):
    # 1. the run
    processes.alone()
    how = smaller(opts)
    exporting.ready(opts.format)
    folder = utils.find_run(opts.name)
    out = target(opts, folder, how)
    weights = utils.snapshot(folder, opts.which_epoch)
    model, trained = utils.load_run(opts.name, opts.which_epoch)
    size, flip = (trained.height, trained.width), not opts.no_flip
    query, gallery = tested(opts, trained)
    lessons = learnt(opts, trained, size) if how == 'int8' else None

    about = {'run': opts.name, 'which_epoch': opts.which_epoch, 'weights': thresholds.fingerprint(weights)}
    about |= {'size': size, 'dim': model.dim, 'test_feature': trained.test_feature}
    about |= {'bounds': bounds(folder, weights, flip, trained), 'versions': utils.versions()}
    with tempfile.TemporaryDirectory(prefix=f'.{out.name}.', dir=out.parent) as draft:
        # 2. the file, in a folder of its own until it has been compared; a smaller one is made of it
        files = {'float32': place(draft, 'float32', out)}
        exporting.write(opts.format, model, size, files['float32'], about, flip, 'float32' if opts.float else 'uint8')
        if how:
            files[how] = place(draft, how, out)
            shrink(how, files['float32'], files[how], runtime.opened(files['float32']).about, lessons)

        # 3. the same pictures through the network and the files
        original = embedding.of_network(model, size, flip, torch.device('cpu'), None, None).describe
        threads = opts.threads or machine.cores()
        least = thresholds.least(None, about['bounds'])
        about, found = comparing.compared(original, files, query, gallery, size, opts.batchsize, threads, least)
        for line in comparing.lines(found, how):
            print(line)
        row = found['float32']
        if not (row['difference'] <= DIFFERENCE and row['cosine'] >= COSINE):  # of NaN neither is true
            raise Problem(
                f'the file differs from the network by more than {DIFFERENCE}, or a cosine of {COSINE}: it was not kept'
            )

        # 4. under its own name, last of those that belong together
        kept = list(files.values())[-1].parent
        report = {'file': out.name, **about, 'compared': found}
        (kept / f'{out.name}.json').write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')
        for path in sorted(kept.iterdir(), key=lambda path: path.name == out.name):
            os.replace(path, out.parent / path.name)
    print(out)


# ---------------------------------------------------------------------------------------------------------------------
# what is asked for


def smaller(opts):
    """'int8', 'fp16' or None."""
    asked = [how for how in SMALLER if getattr(opts, how)]
    if len(asked) > 1:
        raise Problem('--fp16 and --int8 are two ways to a smaller file: one of them, please')
    for how in asked:
        if opts.format not in SMALLER[how]:
            raise Problem(f'--{how} is made of --format {" or ".join(SMALLER[how])}, not of {opts.format}')
    return asked[0] if asked else None


def target(opts, folder, how):
    suffix = exporting.FORMATS[opts.format][0]
    out = opts.out or folder / f'{opts.name}{f"_{how}" if how else ""}{suffix}'
    if not out.name.endswith(suffix):
        raise Problem(f'--out {out}: a file of --format {opts.format} ends in {suffix}')
    if not out.parent.is_dir():
        raise Problem(f'--out {out}: there is no folder {out.parent}')
    return out


def place(draft, numbers, out):
    folder = Path(draft, numbers)
    folder.mkdir()
    return folder / out.name


def bounds(folder, weights, flip, trained):
    """What threshold.json says of these weights, described like this; None where nothing has been chosen."""
    try:
        saved = thresholds.load(folder, weights, flip=flip, ms='1', test_feature=trained.test_feature)
    except Problem as problem:
        print(f'without thresholds: {problem}')
        return None
    return saved['bounds']


# ---------------------------------------------------------------------------------------------------------------------
# pictures


def tree(opts, trained, parts):
    where = [opts.test_dir] if opts.test_dir else trained.data_dir
    if len(where) != 1:
        raise Problem('opts.yaml names no tree, or several: which one is --test_dir?')
    return data.tree(where[0], parts)


def tested(opts, trained):
    """Query and gallery (People) of the first identities of the test set, or of nobody where there is none."""
    try:
        root = tree(opts, trained, ['query', 'gallery'])
        query, gallery = (data.people(root, part) for part in ('query', 'gallery'))
    except Problem as problem:
        if opts.test_dir:
            raise
        print(f'compared with random pictures only, without Rank-1 and mAP: {problem}')
        nobody = data.People([], [], np.empty(0, np.int64))
        return nobody, nobody
    names, count = set(), 0
    for name in dict.fromkeys(query.ids):
        if count >= opts.compare:
            break
        names.add(name)
        count += query.ids.count(name) + gallery.ids.count(name)
    return (data.choose(part, [i for i, name in enumerate(part.ids) if name in names]) for part in (query, gallery))


def learnt(opts, trained, size):
    """Some of the pictures that the run was trained on: uint8 (N, H, W, 3)."""
    part = 'train_all' if vars(trained).get('train_all') else 'train'
    paths = data.people(tree(opts, trained, [part]), part).paths
    some = np.random.default_rng(0).permutation(len(paths))[: opts.calibrate]
    return comparing.decoded([paths[i] for i in some], size)


if __name__ == '__main__':
    cli.start(main, options)
