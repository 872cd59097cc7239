"""Which options of training go together: what contradicts another one, or would do nothing, is a sentence.

Only what was typed is complained of: a recipe may say more than a change of it needs. What could be meant all the same
is told by a line.
"""

from math import prod

from reid import cli, losses
from reid.problem import Problem

# What does nothing without another option, or one of several.
NEEDED = {
    'pk_cameras': ['pk'],
    'erasing': ['erasing_p'],
    'aiter': ['adv'],
    'warm_from': ['warm_epoch'],
    'eval_every': ['holdout'],
    'loss_feature': ['loss'],
    'label_smooth': ['ce', 'adv'],
    'droprate': ['head classblock', 'head pcb'],
    'average_from': ['average ema', 'average swa'],
    'average_decay': ['average ema'],
}
FIXED = 'erasing_p color_jitter gray_patch_p grow adv DG'.split()  # have no part in what is computed once


def what_to_learn(opts):
    """The losses that are added, [(name, weight, settings)], and what --pk and --DG decide besides."""
    chosen = losses.parse(opts.loss)
    if opts.cosine and opts.milestones:
        both = '--cosine and --milestones are two courses of the learning rate: one of them, please'
        cli.typed_of(opts, 'cosine', 'milestones', both)
    if opts.DG and opts.average == 'none':
        opts.average = 'ema'  # it is the teacher
    batches(opts, [name for name, *_ in chosen])
    for name, needed in NEEDED.items():
        if name in opts.given and not any(holds(opts, *one.split()) for one in needed):
            raise Problem(f'--{name} does nothing without --{" or --".join(needed)}')
    in_time(opts)
    of_texts(opts, chosen)
    if opts.camera_embedding and (opts.adv or opts.DG or opts.average != 'none'):
        raise Problem('--camera_embedding goes without --adv, --DG and --average, which look at pictures of no camera')
    if opts.ce == 0 and not any(weight for _, weight, _ in chosen):
        raise Problem('--ce 0 leaves nothing to learn: name a --loss')
    return chosen


def holds(opts, option, value=None):
    return getattr(opts, option) == value if value else bool(getattr(opts, option))


def batches(opts, names):
    """--pk and --batchsize, and whether they suit the losses of these names."""
    if opts.pk and opts.batchsize not in (None, prod(opts.pk)):
        both = f'--batchsize {opts.batchsize} contradicts --pk {opts.pk[0]} {opts.pk[1]}, which makes batches of '
        cli.typed_of(opts, 'batchsize', 'pk', f'{both}{prod(opts.pk)}: one of them, please')
    opts.batchsize = prod(opts.pk) if opts.pk else opts.batchsize or 32
    alone = [name for name in names if name in losses.PAIRS]
    if alone and not opts.pk:
        k = 4 if opts.batchsize >= 16 else 2
        print(
            f'--loss {" ".join(alone)} compares pictures of one person, of which a batch has few: take '
            f'--pk {max(2, opts.batchsize // k)} {k} in place of --batchsize {opts.batchsize}'
        )
    if opts.pk and 'instance' in names:
        print('--loss instance pushes pictures of one person apart, of which --pk takes several: instance_id does not')


def in_time(opts):
    """What --total_epoch leaves no time for. A recipe cut short for a trial is usual."""
    end = opts.total_epoch
    late = [str(epoch) for epoch in opts.milestones or () if epoch >= end > 0]
    if late:
        sentence = f'--milestones {" ".join(late)}: --total_epoch {end} ends before lr falls there'
        if 'milestones' in opts.given:
            raise Problem(f'{sentence}. Name earlier ones, or train for longer')
        print(sentence)
    if opts.warm_epoch > end > 0:
        print(f'--warm_epoch {opts.warm_epoch}: --total_epoch {end} ends before lr has risen to {opts.lr:g}')


def of_texts(opts, chosen):
    """The losses with texts belong to the heads of the two stages of CLIP-ReID, and the first learns nothing else."""
    for name, *_ in chosen:
        head = losses.TEXTS.get(name, opts.head)
        if opts.head != head:
            raise Problem(f'--loss {name} is for --head {head}, and not for {opts.head}')
    if opts.head != 'clip_text':
        return
    if opts.ce or [name for name, *_ in chosen] != ['text_supcon']:
        raise Problem('--head clip_text learns texts and nothing else: --ce 0 --loss text_supcon')
    plain = {'grow': 1.0, 'policy': 'none', 'average': 'none'}
    for name in (*FIXED, 'policy', 'average'):
        if getattr(opts, name) not in (plain.get(name, 0), None):
            raise Problem(f'--{name} does nothing with --head clip_text, which looks at each picture once')
