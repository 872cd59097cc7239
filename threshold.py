"""Same person or not? Choose the scores that decide, on people that the run has never seen.

Reads:   model/<name>/ and the pictures of identities that --holdout kept out of its training, or of another tree
Writes:  model/<name>/{threshold.json, threshold.png}
Run:     python threshold.py --name ft_ResNet50

Two pictures show the same person from a score that hardly any two people reach (the lowest rate of --far), not the same
below a score that nearly all pairs of one person reach (--found), and between the two it is unsure. The thresholds of
evaluate_gpu.py --report come from the test set; these do not, and so the test set can tell how good they are.
"""

import os
from pathlib import Path

import numpy as np

import utils
from reid import cli, data, features, identities, plots, processes, settings, thresholds
from reid.problem import Problem
from reid.results import Features

FOLDERS = {'held_out': ['train_all'], 'train_all': ['train_all'], 'test': ['query', 'gallery']}
WAYS = (
    'Two ways out: train a run that keeps some people out (python train.py --holdout 100), or name a tree of other '
    'people (--data_dir TREE)'
)


def options():
    parser = cli.parser(__doc__)
    group = parser.add_argument_group('run')
    group.add_argument('--name', default='ft_ResNet50', help='the run to choose for (default ft_ResNet50)')
    utils.epoch_option(group)
    group = parser.add_argument_group('thresholds')
    group.add_argument(
        '--far',
        nargs='+',
        default=[0.001, 0.01],
        type=settings.fraction,
        metavar='RATE',
        help='false accept rates to find thresholds for; the lowest decides who is the same (default 0.001 0.01)',
    )
    group.add_argument(
        '--found',
        default=0.99,
        type=settings.fraction,
        help='the share of the pairs of one person that may not be called "not the same" (default 0.99)',
    )
    group = parser.add_argument_group('pictures', 'Of whom; the run may have seen none of them.')
    group.add_argument(
        '--data_dir', nargs='+', help='a prepared tree; default: the one (or those) that the run was trained on'
    )
    group.add_argument(
        '--part',
        choices=FOLDERS,
        help='held_out: the identities of --holdout (default); of another tree, all of train_all, or all of query and '
        'gallery (test: the default with --data_dir)',
    )
    group.add_argument(
        '--same_camera',
        action='store_true',
        help='pairs of one person by one camera count as well: where there is but one. They are much alike',
    )
    settings.describing(parser)
    utils.network_options(parser, utils.OF_THE_RUN)
    utils.machine_options(parser)
    return parser


def main(opts):
    # 1. people that the run has never seen; what can be wrong is found out before the work begins
    processes.alone()
    folder = utils.find_run(opts.name)
    weights, scales = utils.snapshot(folder, opts.which_epoch), features.areas(opts.ms)
    part, trained = opts.part or ('test' if opts.data_dir else 'held_out'), utils.read_opts(folder)
    roots, people, crowd = held_out(opts, trained) if part == 'held_out' else others(opts, trained, part)
    people = data.readable(people, opts.on_bad)
    (ids,) = data.numbers(people)
    cams = np.full(len(ids), -1) if opts.same_camera else people.cams  # no picture is junk if its camera is not known
    same, impostors = thresholds.same_identity(Features(None, ids, cams, None), crowd)
    count = {'identities': len(np.unique(ids[ids != crowd])), 'pictures': len(ids)}
    count |= {'genuine_pairs': int(same.genuine.sum()), 'impostor_pairs': impostors}
    numbers = ', '.join(f'{number:,} {what.replace("_", " ")}' for what, number in count.items())
    print(f'{", ".join(map(str, roots))} ({part}): {numbers}')
    thresholds.possible(count['genuine_pairs'], impostors, opts.far)
    if trained.get('weights') not in ('imagenet', 'none'):
        print(f'{opts.name} began from {trained["weights"]}: if that knows these people, the thresholds are too good')

    # 2. features, of unit length
    device = utils.device(opts.gpu_ids)
    model, net = utils.load_run(opts.name, opts.which_epoch, device, typed=opts)
    cast, _ = utils.precision(opts, device)
    how = {'batchsize': utils.test_batchsize(opts, device), 'flip': not opts.no_flip, 'scales': scales}
    how |= {'cast': cast, 'workers': opts.num_workers}
    f = features.extract(model, people.paths, (net.height, net.width), device, **how)

    # 3. scores of all pairs, and the thresholds that follow
    described = Features(f, ids, cams, None)
    genuine, different = thresholds.among(described, same, device)
    chosen = thresholds.choose(genuine, different, opts.far, opts.found)
    chosen['thresholds'] = thresholds.how_sure(chosen['thresholds'], described, same, genuine, device, crowd)

    # 4. threshold.json, threshold.png
    half = 'fp16' if opts.fp16 and device.type != 'cpu' else 'bf16' if opts.bf16 else 'float32'
    about = {'run': opts.name, 'which_epoch': opts.which_epoch, 'weights': thresholds.fingerprint(weights)}
    about |= {'flip': not opts.no_flip, 'ms': opts.ms, 'test_feature': net.test_feature, 'precision': half}
    about |= {'part': part, 'data_dir': [str(root.resolve()) for root in roots], 'same_camera': opts.same_camera}
    saved = {**about, **count, **chosen, 'versions': utils.versions()}
    genuine = thresholds.histogram(genuine)
    print('', *thresholds.lines(saved, genuine, different), '', sep='\n')
    plots.threshold(genuine, different, saved, folder / 'threshold.png')
    print(thresholds.save(folder, saved))
    print(folder / 'threshold.png')


def held_out(opts, trained):
    """All pictures of the identities that --holdout kept out of training -> their trees, People, and no crowd."""
    if not trained.get('holdout'):
        raise Problem(f'{opts.name} was trained on all identities of its tree: none was held out. {WAYS}')
    where = opts.data_dir or trained['data_dir']
    if not (opts.data_dir or (where and all(Path(place).expanduser().is_dir() for place in where))):
        raise Problem(
            f'the tree that {opts.name} was trained on is not there any more ({", ".join(where) or "nowhere"}). Name '
            'its place: --data_dir TREE --part held_out'
        )
    roots, inside, _ = learned(where, trained)
    return roots, together(*identities.held_out(roots, inside, trained['holdout'])), -1


def others(opts, trained, part):
    """All pictures of another tree, or of the test set -> trees, People without junk, and the number of the crowd: of
    distractors, which are in the gallery and no queries."""
    where = opts.data_dir or trained['data_dir']
    if len(where) != 1:
        raise Problem(f'--part {part}: one tree is expected, found {len(where)}. Name it: --data_dir TREE')
    root = data.tree(where[0], FOLDERS[part])
    folders = [data.people(root, folder) for folder in FOLDERS[part]]
    people = together(*folders)
    (ids,) = data.numbers(people)
    crowd = 0 if part == 'test' and 0 not in ids[: len(folders[0].ids)] else -1
    people = data.choose(people, np.flatnonzero(ids != -1))
    try:
        own, _, known = learned(trained['data_dir'], trained)
    except Problem as problem:
        print(f'that {opts.name} was not trained on these people cannot be checked: {problem}')
        return [root], people, crowd
    if again := seen_before(people, known):
        raise Problem(f'{opts.name} was trained on {len(again):,} of these pictures, such as {again[0]}. {WAYS}')
    if part == 'test' and root.resolve() in [tree.resolve() for tree in own]:
        print('These people are the test set: what test.py finds there is no longer an independent check of them.')
    return [root], people, crowd


def learned(where, trained):
    """What a run was trained on -> its trees, train or train_all, and People, if they are as they were then."""
    if not where:
        raise Problem('opts.yaml does not say where its pictures are')
    part, holdout = 'train_all' if trained.get('train_all') else 'train', trained.get('holdout') or 0
    roots = [data.tree(place, [part, 'train_all']) for place in where]
    train, val = identities.split(roots, part, holdout)
    found = len(set(train.ids))
    if found != trained['nclasses']:
        raise Problem(
            f'{", ".join(map(str, roots))}: {trained["nclasses"]} identities in {part}, and {holdout} held out, are '
            f'expected of what the run was trained on; found {found}. Is this another tree?'
        )
    return roots, part, together(train, val)


def seen_before(people, known):
    """The pictures that are also among the known ones, be it in a copy of the tree: told by folder, name and size."""

    def name(path):
        return Path(path).parts[-2:]

    twins = {name(path): path for path in known.paths}
    also = [path for path in people.paths if name(path) in twins]
    return [path for path in also if os.path.getsize(path) == os.path.getsize(twins[name(path)])]


def together(*parts):
    """People of parts of one tree as one."""
    paths, ids, cams = zip(*parts, strict=True)
    return data.People(sum(paths, []), sum(ids, []), np.concatenate(cams))


if __name__ == '__main__':
    cli.start(main, options)
