"""Fit a network to the pictures of a prepared tree.

Reads:   <data_dir>/train or train_all, and val
Writes:  model/<name>/{net_*.pth, opts.yaml, log.csv, train.jpg}
Run:     python train.py --name ft_ResNet50 --train_all --batchsize 32 --data_dir ../Market/pytorch
"""

import csv
import math
import time

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from tqdm import tqdm

import model as networks
import utils
from reid import cli, data, features, losses, optim, plots, ranking, results, samplers
from reid.datasets import split_queries
from reid.files import replacing
from reid.problem import Problem
from reid.results import Features


def options():
    parser = cli.parser(__doc__)
    parser.add_argument(
        '--config', help='a recipe: a YAML file of options, such as the opts.yaml of a run; what is typed wins'
    )
    parser.add_argument('--name', default='ft_ResNet50', help='of the run: everything goes to model/<name>/')
    parser.add_argument('--resume', action='store_true', help='go on where the run of this name stopped')
    parser.add_argument('--overwrite', action='store_true', help='begin anew, though a run of this name is there')

    group = parser.add_argument_group('data')
    group.add_argument('--data_dir', default='../Market/pytorch', help='the prepared tree (default %(default)s)')
    group.add_argument('--train_all', action='store_true', help='train on all pictures, those of val among them')
    group.add_argument(
        '--holdout',
        default=0,
        type=utils.whole,
        help='keep the last N identities by name out of training and rank them instead: a validation that means '
        'something, since the identities of val are trained on (default 0; 100 is good on Market)',
    )
    group.add_argument(
        '--eval_every', default=10, type=utils.positive, help='rank the held-out every K epochs (default 10)'
    )
    group.add_argument('--erasing_p', default=0.0, type=utils.fraction, help='random erasing: 0 (default) to 0.5')
    group.add_argument('--color_jitter', action='store_true', help='vary brightness, contrast and saturation')
    group.add_argument(
        '--seed', type=int, help='the same number gives the same figures again on a CPU (default: drawn)'
    )

    group = parser.add_argument_group('losses')
    group.add_argument(
        '--loss',
        nargs='+',
        default=[],
        metavar='NAME[:WEIGHT]',
        help=f'added to cross entropy, on the feature (triplet, circle: with --pk): {", ".join(losses.LOSSES)}',
    )
    group.add_argument('--ce', default=1.0, type=utils.rate, help='weight of cross entropy (default 1; 0: without it)')
    group.add_argument(
        '--pk',
        nargs=2,
        type=utils.positive,
        metavar=('P', 'K'),
        help='batches of P identities with K pictures each, which losses that compare pictures need: 16 4 is usual',
    )
    group.add_argument('--pk_cameras', action='store_true', help='--pk with pictures from as many cameras as possible')
    group.add_argument('--label_smooth', default=0.0, type=utils.fraction, help='0 (default); 0.1 is usual')

    group = parser.add_argument_group('optimisation')
    group.add_argument('--batchsize', default=32, type=utils.positive, help='default 32; with 8, take --lr 0.02')
    group.add_argument('--lr', default=0.05, type=utils.rate, help='of the head (default 0.05 for a batch of 32)')
    group.add_argument(
        '--backbone_lr', default=0.1, type=utils.rate, help="the backbone's share of lr: 0.1 (default), 1 from scratch"
    )
    group.add_argument('--weight_decay', default=5e-4, type=utils.rate, help='default 5e-4')
    group.add_argument('--total_epoch', default=60, type=utils.whole, help='default 60; 0 saves the untrained network')
    group.add_argument('--warm_epoch', default=0, type=utils.whole, help='epochs in which lr rises; 5 is usual')
    group.add_argument('--cosine', action='store_true', help='let lr fall along a cosine, not in one step at 2/3')
    group.add_argument('--wa', action='store_true', help='also average the weights of the last fifth of the epochs')

    utils.network_options(parser)
    parser.add_argument(
        '--weights',
        default='imagenet',
        help='to begin with: imagenet (default, downloaded once), none, or a local .pth of the backbone or of a run',
    )
    utils.machine_options(parser)
    return parser


def main(opts):
    # 1. the run
    folder = utils.run_folder(opts.name)
    state = resume(folder, opts) if opts.resume else begin(folder, opts)
    networks.complete(opts)
    chosen = what_to_learn(opts)
    device = utils.device(opts.gpu_ids)
    if opts.seed is None:
        opts.seed = int(torch.initial_seed() % 2**31)
    utils.seed(opts.seed)

    # 2. data
    root = data.tree(opts.data_dir, ['train_all' if opts.train_all else 'train', 'val'])
    train, val, held_out = identities(root, opts)
    names = sorted(set(train.ids))
    label = {name: i for i, name in enumerate(names)}
    shift = opts.head != 'pcb'  # its stripes should stay where they are
    augment = data.train_transform(opts.height, opts.width, opts.erasing_p, opts.color_jitter, shift)
    plain = data.test_transform(opts.height, opts.width)
    batches, sampler = {}, None
    if opts.pk:
        cams = train.cams if opts.pk_cameras else None
        sampler = samplers.PK([label[name] for name in train.ids], *opts.pk, seed=opts.seed, cams=cams)
    for phase, people, transform in (('train', train, augment), ('val', val, plain)):
        pictures = data.Pictures(people.paths, [label[name] for name in people.ids], transform)
        order = {'train': True, 'sampler': sampler} if phase == 'train' else {}
        batches[phase] = data.loader(pictures, opts.batchsize, device, opts.num_workers, **order)
    print(f'{root}: {len(train.paths)} pictures of {len(names)} identities to train, {len(val.paths)} in val')
    if min(opts.batchsize, len(train.paths)) < 2:
        raise Problem('BatchNorm needs two pictures at a time: --batchsize 2 or more, and two pictures to train on')

    # 3. model
    opts.nclasses = len(names)
    model = networks.build(opts)
    print(restored(state, names, folder) if state else networks.initialise(model, opts.weights, opts.backbone))
    if opts.weights == 'none' and opts.total_epoch and 'backbone_lr' not in opts.given and not state:
        print(f'(at --backbone_lr {opts.backbone_lr}, which suits pretrained weights; from scratch, 1 is better)')
    model = model.to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.996)) if opts.wa else None

    # 4. loss, optimiser, precision
    criterion = nn.CrossEntropyLoss(label_smoothing=opts.label_smooth)
    also = losses.Sum(chosen, len(names), sum(head.width for head in model.heads())).to(device)
    optimizer = optim.sgd(model, opts.lr, opts.backbone_lr, opts.weight_decay, also.parameters())
    steps = len(batches['train'])
    schedule = optim.schedule(optimizer, opts.lr, opts.total_epoch, steps, opts.warm_epoch, opts.cosine)
    cast, scaling = utils.precision(opts, device)
    scaler = torch.amp.GradScaler(device.type, enabled=scaling)  # keeps small gradients of --fp16 from vanishing

    parts = {'model': model, 'losses': also, 'optimizer': optimizer, 'schedule': schedule, 'scaler': scaler}
    parts |= {'average': average} if average else {}
    for name, part in parts.items() if state else ():
        part.load_state_dict(state.get(name, {}))  # older runs know of no losses
    log = state['log'] if state else []

    def learn(loss):
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        schedule.step()

    # 5. loop
    phases = {'train': learn} | ({'val': None} if val.paths else {})
    done = len(log)
    if not state:
        clear(folder)
        utils.save_opts(opts, folder)
        keep(folder, 0, parts, log, names)
    try:
        for epoch in range(done + 1, opts.total_epoch + 1):
            utils.seed(opts.seed + epoch)  # each epoch draws from its own seed, so a resumed run draws the same
            began, row = time.time(), {'epoch': epoch, 'lr': optimizer.param_groups[-1]['lr']}
            if sampler:
                sampler.set_epoch(epoch)
            for phase, update in phases.items():
                title = f'epoch {epoch}/{opts.total_epoch} {phase}'
                added = also if phase == 'train' else None  # in val there may be one picture of each
                loss, error = go_through(batches[phase], model, criterion, opts.ce, added, device, cast, update, title)
                row |= {f'{phase}_loss': loss, f'{phase}_top1err': error}
            if not math.isfinite(row['train_loss']):
                raise Problem(
                    f'the loss became {row["train_loss"]} in epoch {epoch}: take a lower --lr, some --warm_epoch, '
                    f'or --bf16 for --fp16. {folder} keeps the weights of epoch {epoch - 1}'
                )
            if average and epoch > 0.8 * opts.total_epoch:
                average.update_parameters(model)
            if held_out and (epoch % opts.eval_every == 0 or epoch == opts.total_epoch):
                row |= rank(model, held_out, plain, opts, device, cast)
            row['seconds'] = round(time.time() - began, 1)
            log.append(row)
            keep(folder, epoch, parts, log, names)
            done = epoch
            print(report(row, opts.total_epoch))
    except KeyboardInterrupt:
        if done == 0:
            utils.save(model.state_dict(), folder / 'net_last.pth')
        print(f'\nstopped: {folder}/net_last.pth holds {f"epoch {done}" if done else "a part of epoch 1"}')
        print(f'go on after epoch {done} with: python train.py --name {opts.name} --resume')
        raise

    # 6. the averaged network needs BatchNorm statistics of its own
    if average and average.n_averaged > 0:
        utils.save(average.state_dict(), folder / 'net_average.pth')
        update_bn(batches['train'], average, device)
        utils.save(average.state_dict(), folder / 'net_average_bn.pth')
    print(f'{folder}: net_last.pth, opts.yaml' + (', log.csv, train.jpg' if log else ''))
    if average and average.n_averaged > 0:
        print(f'the average: python test.py --name {opts.name} --which_epoch average_bn')
    print(f'next: python test.py --name {opts.name} --test_dir {cli.quote(opts.data_dir)}')


def what_to_learn(opts):
    """The losses that are added, [(name, weight)], and the size of a batch, which --pk decides."""
    chosen = losses.parse(opts.loss)
    if opts.pk:
        p, k = opts.pk
        if 'batchsize' in opts.given and opts.batchsize != p * k:
            raise Problem(f'--batchsize {opts.batchsize} contradicts --pk {p} {k}, which makes batches of {p * k}')
        opts.batchsize = p * k
    elif alone := [name for name, _ in chosen if name in losses.PAIRS]:
        print(f'--loss {" ".join(alone)} compares pictures of one person, of which a batch has few: add --pk 8 4')
    if opts.ce == 0 and not any(weight for _, weight in chosen):
        raise Problem('--ce 0 leaves nothing to learn: name a --loss')
    return chosen


def go_through(batches, model, criterion, ce, also, device, cast, learn, title):
    """All batches once: the mean loss and the share of wrong answers. Where there is a `learn`, it is called with
    each loss to update the weights; else the network is only looked at."""
    model.train(learn is not None)
    loss_sum, wrong, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    for x, y in tqdm(batches, desc=title, leave=False, disable=None):
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)  # (B, 3, H, W), (B,)
        with torch.set_grad_enabled(learn is not None):
            with cast:  # half precision, if asked for, but never in the loss
                logits, feature = model(x)  # a list of (B, C): one, or six of PCB; (B, D)
            logits = [z.float() for z in logits]
            loss = ce * sum(criterion(z, y) for z in logits)
            if also:
                added, _ = also(feature, y)  # --loss
                loss = loss + added
        if learn:
            learn(loss)
        with torch.no_grad():
            answer = sum(z.softmax(1) for z in logits).argmax(1)  # (B,)
            loss_sum += loss * len(y)
            wrong += (answer != y).sum()
            seen += len(y)
    return loss_sum.item() / seen, wrong.item() / seen


def identities(root, opts):
    """What to train on, val, and the held-out identities as (query, gallery), or None."""
    train, val = data.people(root, 'train_all' if opts.train_all else 'train'), data.people(root, 'val', least=0)
    names = sorted(set(train.ids))
    if not 0 <= opts.holdout <= len(names) - 2:
        raise Problem(f'--holdout {opts.holdout}: of {len(names)} identities, 0 to {len(names) - 2} can be kept out')
    kept = set(names[: len(names) - opts.holdout])
    held_out = None
    if opts.holdout:
        everyone = data.people(data.tree(root, ['train_all']), 'train_all')
        others = data.choose(everyone, [i for i, name in enumerate(everyone.ids) if name not in kept])
        query, gallery = split_queries(list(zip(*others, strict=True)))
        held_out = data.choose(others, query), data.choose(others, gallery)
        if not query:
            raise Problem(f'--holdout {opts.holdout}: none of these identities was seen by two cameras; keep out more')
    train, val = (data.choose(part, [i for i, n in enumerate(part.ids) if n in kept]) for part in (train, val))
    return train, val, held_out


def rank(model, held_out, transform, opts, device, cast):
    """Rank-1 and mAP of identities that the network has never seen."""
    found = []
    for part, ids in zip(held_out, data.numbers(*held_out), strict=True):
        batches = data.loader(data.Pictures(part.paths, ids, transform), opts.batchsize, device, opts.num_workers)
        f = features.extract(model, batches, device, cast=cast, title='held out')
        found.append(Features(f, ids, part.cams, part.paths))
    figures = ranking.evaluate(*found, device)
    return {'rank1': figures['rank1'], 'map': figures['map_trapezoid']}


def begin(folder, opts):
    """A new run: never on top of another by accident."""
    there = sorted(folder.glob('net_*.pth'))
    if there and not opts.overwrite:
        raise Problem(
            f'{folder} holds a run already ({there[-1].name}). Go on with it: --resume. '
            f'Begin anew in its place: --overwrite. Or take another --name'
        )


def clear(folder):
    """Remove what an earlier run left: its snapshots, features and figures would pass for the new one's."""
    folder.mkdir(parents=True, exist_ok=True)
    made = 'net_*.pth resume.pth opts.yaml log.csv train.jpg pytorch_result* multi_query* metrics.json result.txt'
    for pattern in [*made.split(), 'show.png', 'report.png', 'rankings/*.png', '*.part']:
        for path in folder.glob(pattern):
            results.remove(path)


def resume(folder, opts):
    """The state of an interrupted run, and its options put into opts. A typed one that contradicts them is an error."""
    if opts.overwrite:
        raise Problem('--resume goes on with a run, --overwrite begins it anew: one of them, please')
    saved = utils.read_opts(utils.find_run(opts.name))
    free = {'name', 'data_dir', 'gpu_ids', 'num_workers', 'eval_every'}
    fixed = [name for name in saved if name not in free]
    advice = f'Leave it out, or begin another run from these weights: --name NEW --weights {folder}/net_last.pth'
    utils.agree(opts, saved, fixed, folder / 'opts.yaml', advice)
    for name in saved:
        if name in fixed or name not in opts.given:
            setattr(opts, name, saved[name])
    path = folder / 'resume.pth'
    if not path.is_file():
        raise Problem(f'{path} is not there: only runs of this train.py can be resumed. --overwrite begins anew')
    return networks.read_tensors(path)


def restored(state, names, folder):
    """A line on what is gone on with. The label of an identity is its place among the names: they must be the same."""
    if state['names'] != names:
        raise Problem(f'{folder} was trained on other identities ({len(state["names"])}) than are here ({len(names)})')
    return f'{folder}: going on after epoch {len(state["log"])}'


def keep(folder, epoch, parts, log, names):
    """Everything that a later run or reader needs, after every epoch; a snapshot of its own after every tenth.

    resume.pth comes last: who is killed before it is complete does the epoch again, and gets the same.
    """
    weights = parts['model'].state_dict()
    utils.save(weights, folder / 'net_last.pth')
    if epoch and epoch % 10 == 0:
        utils.save(weights, folder / f'net_{epoch:03d}.pth')
    if log:
        with (
            replacing(folder / 'log.csv') as temporary,
            temporary.open('w', newline='', encoding='utf-8') as file,
        ):
            writer = csv.DictWriter(file, list(dict.fromkeys(column for row in log for column in row)))
            writer.writeheader()
            writer.writerows(log)
        plots.curves(log, folder / 'train.jpg')
    state = {name: part.state_dict() for name, part in parts.items()} | {'log': log, 'names': names}
    utils.save(state, folder / 'resume.pth')


def report(row, total):
    """One line an epoch."""
    text = f'epoch {row["epoch"]:3d}/{total}'
    for phase in ('train', 'val'):
        if f'{phase}_loss' in row:
            text += f'  {phase} loss {row[f"{phase}_loss"]:.4f} error {row[f"{phase}_top1err"]:.4f}'
    if 'rank1' in row:
        text += f'  held out Rank@1 {row["rank1"]:.4f} mAP {row["map"]:.4f}'
    return f'{text}  {row["seconds"]:.0f} s'


if __name__ == '__main__':
    cli.start(main, options)
