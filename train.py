"""Fit a network to the pictures of a prepared tree.

Reads:   <data_dir>/train or train_all, and val
Writes:  model/<name>/{net_*.pth, opts.yaml, log.csv, train.jpg}
Run:     python train.py --name ft_ResNet50 --train_all --batchsize 32 --data_dir ../Market/pytorch
         python train.py --config configs/strong_triplet.yaml --data_dir ../Market/pytorch
"""

import math
import time
from functools import partial

import torch
from torch import nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

import model as networks
import utils
from reid import (
    adversary,
    augment,
    backbones,
    cache,
    cli,
    clip_texts,
    data,
    features,
    identities,
    losses,
    machine,
    optim,
    processes,
    ranking,
    runs,
    samplers,
    settings,
    unlabelled,
)
from reid.choices import what_to_learn
from reid.problem import Problem
from reid.results import Features


def options():
    parser = cli.parser(__doc__)
    group = parser.add_argument_group('run')
    group.add_argument(
        '--config', metavar='FILE', help='a recipe: a YAML file of options, as in configs/; what is typed wins'
    )
    group.add_argument('--name', default='ft_ResNet50', help='everything goes to model/<name>/ (default ft_ResNet50)')
    group.add_argument('--resume', action='store_true', help='go on where the run of this name stopped')
    group.add_argument('--overwrite', action='store_true', help='begin anew, though a run of this name is there')
    settings.data(parser)
    settings.augmentation(parser)
    group = utils.network_options(parser)
    group.add_argument(
        '--weights',
        default='imagenet',
        help='to begin with: imagenet (default, downloaded once; of clip/NAME: openai), none, or a local .pth of the '
        'backbone or of a run',
    )
    group.add_argument(
        '--from', metavar='RUN', help='begin with the network of this run, and with the texts that it has learnt (clip)'
    )
    settings.losses(parser)
    settings.optimisation(parser)
    utils.machine_options(parser)
    return parser


def main(opts):
    # 1. the run
    started = time.time()
    device = utils.device(opts.gpu_ids, together=True)
    folder = utils.run_folder(opts.name)
    first = first_stage(opts)
    state = resume(folder, opts) if opts.resume else runs.begin(folder, opts.overwrite)
    networks.complete(opts)
    chosen = what_to_learn(opts)
    cast, scaling = utils.precision(opts, device)
    if opts.seed is None:
        opts.seed = int(processes.most(torch.initial_seed() % 2**31))
    utils.seed(opts.seed)

    # 2. people
    part = 'train_all' if opts.train_all else 'train'
    roots = [data.tree(data_dir, [part, 'val']) for data_dir in opts.data_dir]
    if len({root.resolve() for root in roots}) < len(roots):
        raise Problem('--data_dir names one tree twice')
    kept_out = identities.held_out(roots, part, opts.holdout) if opts.holdout else ()
    everyone = (*identities.split(roots, part, opts.holdout), *kept_out)
    train, val, *held_out = (data.readable(people, opts.on_bad) for people in everyone)
    names = sorted(set(train.ids))
    label = {name: i for i, name in enumerate(names)}
    labels, val_labels = ([label[name] for name in people.ids] for people in (train, val))
    print(f'{len(labels)} pictures of {len(names)} identities to train, {len(val_labels)} in val')
    if min(opts.batchsize, len(labels)) < 2:
        raise Problem('BatchNorm needs two pictures at a time: --batchsize 2 or more, and two pictures to train on')
    sampler = None
    if opts.pk:
        sampler = samplers.PK(labels, *opts.pk, seed=opts.seed, cams=train.cams if opts.pk_cameras else None)
    unnamed = unlabelled.pictures(opts.DG) if opts.DG else []

    # 3. model
    opts.nclasses = len(names)
    if not opts.resume:
        opts.cameras = identities.cameras(train) if opts.camera_embedding else []
    model = networks.build(opts)
    print(runs.gone_on(state, names, folder) if state else networks.initialise(model, opts.weights, opts.backbone))
    if opts.weights == 'none' and opts.total_epoch and opts.backbone_lr < 1 and not (state or model.frozen):
        print(f'(at --backbone_lr {opts.backbone_lr}, which suits pretrained weights; from scratch, 1 is better)')
    model = model.to(device, memory_format=torch.channels_last)
    texts = clip_texts.prepare(opts, names, model, device, folder if state else first, networks.read_state)
    average = None if opts.average == 'none' else optim.average(model, opts.average, opts.average_decay)
    learner = utils.learner(model, opts, device)

    # 4. pictures
    shift = opts.head != 'pcb'  # its stripes should stay where they are
    changes = (opts.erasing_p, opts.erasing, opts.color_jitter, opts.gray_patch_p)
    vary = (augment.Unchanged if model.frozen else augment.Augment)(opts.height, opts.width, shift, *changes)
    scales = [optim.grown(opts.grow, epoch, opts.total_epoch) for epoch in range(opts.total_epoch + 1)]
    for size in {vary.size(scale) for scale in scales} - {
        (opts.height, opts.width)
    }:  # a network that takes no other size says so now
        backbones.channels(opts.backbone, model.model, *size)

    def load(paths, labels, cams=None, **how):
        """Batches of uint8 pictures (B, 3, H, W) and labels (B,), and of cameras (B,) if the network asks for them. Of
        what a frozen network sees in pictures: (B, D)."""
        where = {'folder': roots[0], 'where': opts.cache, 'device': device, 'workers': opts.num_workers}
        batches = partial(cache.batches, paths, labels, opts.height, opts.width, opts.batchsize, **where)
        if not model.frozen:
            return batches(cams=cams if model.cameras else None, **how)
        seen = features.kept(model, batches(), len(paths), cast)
        return cache.Rows(seen, labels, opts.batchsize, device, **how)

    batches = {'train': load(train.paths, labels, train.cams, train=True, sampler=sampler, policy=opts.policy)}
    batches |= {'val': load(val.paths, val_labels, val.cams)} if val_labels and opts.ce else {}

    # 5. losses
    criterion = nn.CrossEntropyLoss(label_smoothing=opts.label_smooth)
    also = losses.Sum(chosen, len(names), model.pieces, texts).to(device)
    told = {}  # the value of each in the log, summed over the batches of an epoch
    extras = []
    if opts.adv:
        extras.append(adversary.Adversary(model, criterion, opts.adv, opts.aiter))
    if unnamed:
        stream = load(unnamed, [0] * len(unnamed), train=True)
        extras.append(unlabelled.Agreement(model, average, stream, vary))

    def told_apart(x, y, logits, feature):
        """Cross entropy, summed over the parts of a person. Of val nothing else is told: it may have one picture of
        each, and most of --loss need two."""
        return opts.ce * sum(criterion(z, y) for z in logits)

    def everything(x, y, logits, feature):
        """What training makes small: that, the losses of --loss, and what --adv and --DG add."""
        added, values = also(feature, y)
        for name, value in values.items():
            told[name] = told.get(name, 0) + value
        return told_apart(x, y, logits, feature) + added + sum(extra(x, y, cast) for extra in extras)

    # 6. optimiser
    steps = math.ceil(len(batches['train']) / opts.accumulate)
    optimizers = optim.optimizers(model, also, opts)
    schedule = optim.schedule(optimizers[0], opts, steps)
    scaler = torch.amp.GradScaler(device.type, enabled=scaling)  # keeps small gradients of --fp16 from vanishing

    def learn(loss, last):
        """The gradient of a batch, and with the last of --accumulate batches, a step."""
        scaler.scale(loss / opts.accumulate).backward()
        if not last:
            return
        for optimizer in optimizers:
            if opts.clip:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group['params']], opts.clip)
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
        schedule.step()
        if opts.average == 'ema' and epoch > opts.average_from * opts.total_epoch:
            average.update_parameters(model)

    parts = {'model': model, 'losses': also, 'schedule': schedule, 'scaler': scaler}
    parts |= {'average': average} if average else {}
    parts |= {f'optimizer{i}': optimizer for i, optimizer in enumerate(optimizers)}
    for name, one in parts.items() if state else ():
        if state[name] or name != 'scaler':  # where there was none, as on a CPU, it begins anew
            one.load_state_dict(state[name])
    log = state['log'] if state else []

    # 7. loop
    done = len(log)
    if not state:
        runs.clear(folder)
        utils.save_opts(opts, folder, device)
        runs.keep(folder, 0, parts, log, names)
        clip_texts.keep(folder, texts, opts.backbone, names)
    try:
        for epoch in range(done + 1, opts.total_epoch + 1):
            utils.seed(opts.seed + epoch + processes.apart())  # of its own, so that a resumed run draws the same
            began, row = time.time(), {'epoch': epoch, 'lr': optimizers[0].param_groups[-1]['lr']}
            for chooser in [sampler, texts, *extras]:
                if chooser:
                    chooser.set_epoch(epoch)
            told.clear()
            title = f'epoch {epoch}/{opts.total_epoch}'
            look, plain = partial(vary, scale=scales[epoch]), partial(vary.plain, scale=scales[epoch])
            passed = go_through(batches['train'], look, learner, everything, cast, title, learn, opts.accumulate)
            processes.same(model, also)
            if not optim.finite(model, also):
                raise FloatingPointError(f'the weights became inf or nan in {title}, with its last step')
            row |= dict(zip(('train_loss', 'train_top1err'), passed, strict=True))
            row |= {f'train_{name}': value.item() / len(batches['train']) for name, value in told.items()}
            if 'val' in batches:
                passed = go_through(batches['val'], plain, model, told_apart, cast, f'{title} val')
                row |= dict(zip(('val_loss', 'val_top1err'), passed, strict=True))
            if opts.average == 'swa' and epoch > opts.average_from * opts.total_epoch:
                average.update_parameters(model)
            if held_out and (epoch % opts.eval_every == 0 or epoch == opts.total_epoch):
                row |= rank(model, held_out, opts, device, cast)
            row['seconds'] = round(time.time() - began, 1)
            log.append(row)
            runs.keep(folder, epoch, parts, log, names)
            done = epoch
            print(runs.line(row, opts.total_epoch))
            if epoch < opts.total_epoch and runs.time_is_up(opts.max_minutes, started, log):
                print(f'another epoch would end after {opts.max_minutes:g} minutes: stopped')
                print(f'go on after epoch {done} with: python train.py --name {opts.name} --resume')
                return
    except KeyboardInterrupt:
        if done == 0:
            runs.save(model.state_dict(), folder / 'net_last.pth')
        print(f'\nstopped: {folder}/net_last.pth holds {f"epoch {done}" if done else "a part of epoch 1"}')
        print(f'go on after epoch {done} with: python train.py --name {opts.name} --resume')
        raise
    except FloatingPointError as error:
        raise Problem(
            f'{error}: take a lower --lr, some --warm_epoch, --clip 5, or --bf16 for --fp16. {folder}/net_last.pth '
            f'holds {f"epoch {done}" if done else "what it began with"}'
        ) from None
    except torch.OutOfMemoryError as error:
        raise machine.too_large(error, opts.batchsize, partial(utils.try_out, model, opts, cast)) from None

    # 8. what was learnt besides the network: texts, and an average, which needs BatchNorm statistics of its own
    if model.frozen:
        texts.learnt = True
        clip_texts.keep(folder, texts, opts.backbone, names)
    if average and average.n_averaged > 0:
        runs.save(average.state_dict(), folder / 'net_average.pth')
        utils.seed(opts.seed + opts.total_epoch + 1 + processes.apart())  # as a resumed run does
        if sampler:
            sampler.set_epoch(opts.total_epoch + 1)
        update_bn((vary(x) for x, _ in batches['train']), average)
        processes.blend(average)
        runs.save(average.state_dict(), folder / 'net_average_bn.pth')
        if held_out:
            row = rank(average.module, held_out, opts, device, cast)
            print(f'the average: held out Rank@1 {row["rank1"]:.4f} mAP {row["map"]:.4f}')
        print(f'the average: python test.py --name {opts.name} --which_epoch average_bn')
    print(f'{folder}: net_last.pth, opts.yaml' + (', log.csv, train.jpg' if log else ''))
    where = cli.quote(opts.data_dir[0]) if len(opts.data_dir) == 1 else 'DIR'
    print(f'next: python test.py --name {opts.name} --test_dir {where}')


def first_stage(opts):
    """The folder of --from, a run of the first stage of CLIP-ReID, whose network is gone on with."""
    name = vars(opts)['from']
    if name is None:
        return None
    if 'weights' in opts.given:
        raise Problem(f'--from {name} brings the weights of that run, and --weights {opts.weights} others: one of them')
    folder = utils.find_run(name, '--from')
    opts.weights = str(utils.snapshot(folder, 'last'))
    return folder


def go_through(batches, look, model, judge, cast, title, learn=None, accumulate=1):
    """All batches once: the mean loss and the share of wrong answers. `look` turns pictures into what the network is
    shown. Where there is a `learn`, it is called with each loss to update the weights; else nothing changes."""
    model.train(learn is not None)
    loss_sum, wrong, seen = 0.0, 0, 0
    for i, (x, y, *cams) in enumerate(tqdm(batches, desc=title, leave=False, disable=processes.hidden()), 1):
        x = look(x)  # (B, 3, H, W)
        with torch.set_grad_enabled(learn is not None):
            with cast:  # half precision, if asked for, but never in the loss
                logits, feature = model(x, *cams)  # a list of (B, C): one, or six of PCB; (B, D)
            logits = [z.float() for z in logits]
            loss = judge(x, y, logits, feature)
        if learn:
            learn(loss, i % accumulate == 0 or i == len(batches))
        with torch.no_grad():
            answer = sum(z.softmax(1) for z in logits).argmax(1)  # (B,)
            loss_sum += loss.detach() * len(y)
            wrong += (answer != y).sum()
            seen += len(y)
        # Looked at now and then only: a GPU would have to wait for the answer.
        if (i % 20 == 0 or i == len(batches)) and not math.isfinite(loss_sum):
            raise FloatingPointError(f'the loss became {loss_sum.item()} in {title}, by batch {i} of {len(batches)}')
    loss_sum, wrong, seen = processes.totals(loss_sum, wrong, seen)
    return loss_sum / seen, wrong / seen


def rank(model, held_out, opts, device, cast):
    """Rank-1 and mAP of identities that the network has never seen."""
    found, size = [], (opts.height, opts.width)
    how = {'cast': cast, 'workers': opts.num_workers, 'title': 'held out'}
    for part, ids in zip(held_out, data.numbers(*held_out), strict=True):
        f = features.extract(model, part.paths, size, device, opts.batchsize, **how, cams=part.cams)
        found.append(Features(f, ids, part.cams, part.paths))
    figures = ranking.evaluate(*found, device)
    return {'rank1': figures['rank1'], 'map': figures['map_trapezoid']}


def resume(folder, opts):
    """The state of an interrupted run, and its options put into opts. A typed one that contradicts them is an error."""
    if opts.overwrite:
        raise Problem('--resume goes on with a run, --overwrite begins it anew: one of them, please')
    if 'config' in opts.given:
        raise Problem('--resume takes the options of the run: leave --config out')
    saved = utils.read_opts(utils.find_run(opts.name))
    free = {'name', 'data_dir', 'gpu_ids', 'num_workers', 'eval_every', 'cache', 'max_minutes', 'compile'}
    free |= {'DG'} if saved.get('DG') else set()
    fixed = [name for name in saved if name not in free and hasattr(opts, name)]
    advice = f'Leave it out, or begin another run from these weights: --name NEW --weights {folder}/net_last.pth'
    utils.agree(opts, saved, fixed, folder / 'opts.yaml', advice)
    opts.cameras = saved['cameras']
    for name in [*fixed, *free]:
        if name in saved and (name in fixed or name not in opts.given):
            setattr(opts, name, saved[name])
    path = folder / 'resume.pth'
    if not path.is_file():
        raise Problem(f'{path} is not there: only runs of this train.py can be resumed. --overwrite begins anew')
    state = networks.read_tensors(path)
    if 'optimizer0' not in state:
        raise Problem(f'{path} is of an older version, which cannot be gone on with. --overwrite begins anew')
    if 'model' not in state:  # a frozen one, which was not written again
        state['model'] = networks.read_tensors(folder / 'net_last.pth')
    if 'data_dir' in opts.given:  # the pictures have moved
        utils.amend_opts(folder, data_dir=opts.data_dir)
    return state


if __name__ == '__main__':
    cli.start(main, options)
