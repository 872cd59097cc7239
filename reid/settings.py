"""The options of training and describing, in groups, and the types that check a value: a wrong one is a sentence."""

import argparse

from reid import augment, cache, cli, optim
from reid.losses import LOSSES


def data(parser):
    group = parser.add_argument_group('data', 'What to learn from.')
    group.add_argument(
        '--data_dir',
        nargs='+',
        default=['../Market/pytorch'],
        help='the prepared tree (default ../Market/pytorch), or several to learn at once, identities kept apart',
    )
    cli.switch(
        group,
        '--train_all',
        'train on all pictures, those of val among them, as most published figures do: val_loss then tells nothing new',
    )
    group.add_argument(
        '--holdout',
        default=0,
        type=whole,
        help='keep the last N identities by name (of each tree) out of training and rank them instead: a validation '
        'that means something, since the identities of val are trained on (default 0; 100 is good on Market)',
    )
    group.add_argument(
        '--eval_every', default=10, type=positive, metavar='K', help='rank the held-out every K epochs (default 10)'
    )
    group.add_argument(
        '--DG',
        nargs='?',
        const='../DG-Market',
        metavar='DIR',
        help='learn from a folder of pictures without names too (../DG-Market): the averaged network names them',
    )
    group.add_argument(
        '--seed', type=int, help='the same number gives the same figures again on a CPU (default: drawn, and kept)'
    )
    group.add_argument(
        '--cache',
        default='auto',
        choices=cache.PLACES,
        help='decode every picture once and keep it: on the GPU, in memory, on disk, where there is room (auto, '
        'default); off: decode in every epoch. python -m reid.cache TREE removes what is on disk',
    )
    bad_option(group)


def augmentation(parser):
    group = parser.add_argument_group(
        'augmentation', 'How pictures are varied, besides the mirror and a shift that they always get.'
    )
    group.add_argument(
        '--erasing_p',
        default=0.0,
        type=fraction,
        help='erase a random rectangle of this share of the pictures (default 0; 0.5 is usual and mostly helps)',
    )
    group.add_argument(
        '--erasing',
        default='mean',
        choices=augment.ERASING,
        help='with the mean colour (default), black, noise, or shifted: the numbers that the strong baseline writes',
    )
    cli.switch(
        group, '--color_jitter', 'vary brightness, contrast and saturation: for cameras other than those of training'
    )
    group.add_argument(
        '--gray_patch_p',
        default=0.0,
        type=fraction,
        help='turn a random rectangle of this share of the pictures gray (default 0; up to 0.4 is usual)',
    )
    group.add_argument(
        '--policy',
        default='none',
        choices=augment.POLICIES,
        help='of torchvision, picture by picture, so slower than the others (default none)',
    )
    group.add_argument(
        '--grow',
        default=1.0,
        type=share,
        metavar='SHARE',
        help='begin with pictures of this share of the size, and grow to all of it in the first two thirds of the '
        'epochs: 0.5 saves a quarter of the time (default 1)',
    )


def losses(parser):
    group = parser.add_argument_group('losses', 'What is made small.')
    group.add_argument(
        '--loss',
        nargs='+',
        action='extend',
        default=[],
        metavar='NAME[:WEIGHT[:SETTING=VALUE]]',
        help=f'added to cross entropy, on the feature (default: nothing). Those that compare pictures need --pk. '
        f'{", ".join(LOSSES)}',
    )
    group.add_argument('--ce', default=1.0, type=rate, help='weight of cross entropy (default 1; 0: without it)')
    group.add_argument(
        '--pk',
        nargs=2,
        type=positive,
        metavar=('P', 'K'),
        help='batches of P identities with K pictures each, which losses that compare pictures need (default: drawn '
        'from all pictures; 16 4 is usual)',
    )
    cli.switch(group, '--pk_cameras', '--pk with pictures from as many cameras as possible')
    group.add_argument(
        '--label_smooth',
        default=0.0,
        type=fraction,
        help='of cross entropy: the share of certainty that is given to the others (default 0; 0.1 is usual)',
    )
    group.add_argument(
        '--adv',
        default=0.0,
        type=rate,
        help='weight of a loss on pictures changed to turn their feature round (default 0; 0.1 is a beginning)',
    )
    group.add_argument(
        '--aiter', default=10, type=positive, help='--adv in every N-th batch (default 10), as it takes long'
    )


def optimisation(parser):
    group = parser.add_argument_group('optimisation', 'How fast, in which steps, and for how long.')
    group.add_argument(
        '--batchsize',
        type=positive,
        help='pictures in a batch (default 32; with 8, take --lr 0.02). Of all processes together: lr stays what it is '
        'on any number of GPUs',
    )
    group.add_argument(
        '--accumulate',
        default=1,
        type=positive,
        help='batches to a step (default 1): 4 is like 4 times the batch, but to BatchNorm and --loss',
    )
    group.add_argument(
        '--optimizer',
        default='sgd',
        choices=optim.OPTIMIZERS,
        help='sgd (default), or adam, adamw: with --lr 3.5e-4 --backbone_lr 1',
    )
    group.add_argument(
        '--lr',
        default=0.05,
        type=rate,
        help='learning rate of the head (default 0.05 for a batch of 32); less if the loss jumps',
    )
    group.add_argument(
        '--backbone_lr', default=0.1, type=rate, help="the backbone's share of lr: 0.1 (default), 1 from scratch"
    )
    group.add_argument(
        '--layer_decay',
        default=1.0,
        type=share,
        help='each earlier stage of the backbone learns slower by this factor (default 1; transformers: 0.8)',
    )
    group.add_argument('--weight_decay', default=5e-4, type=rate, help='pulls weights towards zero (default 0.0005)')
    group.add_argument('--clip', type=rate, help='the greatest length of the gradient (default: any; 5 is mild)')
    group.add_argument(
        '--total_epoch',
        default=60,
        type=whole,
        help='default 60; 120 for losses that compare; 0 saves the untrained network',
    )
    group.add_argument(
        '--warm_epoch',
        default=0,
        type=whole,
        help='epochs in which lr rises (default 0; 5 is usual, and mends a loss that jumps at the start)',
    )
    group.add_argument(
        '--warm_from', default=0.1, type=fraction, help='the share of lr that --warm_epoch begins with (default 0.1)'
    )
    group.add_argument(
        '--milestones',
        nargs='+',
        type=positive,
        metavar='EPOCH',
        help='lr falls to a tenth after each of these, without --cosine (default: after two thirds of all)',
    )
    cli.switch(group, '--cosine', 'let lr fall along a cosine, not in steps')
    group.add_argument(
        '--average',
        choices=('none', 'ema', 'swa'),
        default='none',
        help='also keep the average of the weights: ema, step by step, or swa, epoch by epoch (default none)',
    )
    group.add_argument(
        '--average_from',
        default=0.8,
        type=early,
        help='the share of the epochs after which --average begins (default 0.8)',
    )
    group.add_argument(
        '--average_decay',
        default=0.996,
        type=fraction,
        help='what ema keeps of itself in a step (default 0.996; nearer to 1 for more steps)',
    )
    group.add_argument(
        '--max_minutes',
        type=minutes,
        metavar='N',
        help='stop before an epoch that would end later than this (default: never), as a cluster may ask for; --resume '
        'goes on',
    )
    cli.switch(
        group,
        '--sync_bn',
        'on several GPUs, BatchNorm over the whole batch instead of the part on each: for less than 16 there',
    )
    cli.switch(
        group,
        '--compile',
        'by torch.compile: a minute or more at the start, again for each size of --grow; gains on GPUs',
    )


def describing(parser):
    """How pictures become descriptors. What is compared has to be made the same way."""
    group = parser.add_argument_group(
        'descriptors', 'How pictures become descriptors. What is compared has to be made the same way.'
    )
    group.add_argument(
        '--ms',
        default='1',
        help='scales to sum features over, as areas: 1 (default); 1,1.1 takes twice the time and may gain a little',
    )
    group.add_argument(
        '--no_flip',
        action='store_true',
        help='do not add the feature of the mirrored picture: half the time, a little worse',
    )
    group.add_argument(
        '--batchsize', type=positive, help='pictures at a time (default 256 on a GPU, 32 on a CPU); less if memory ends'
    )
    bad_option(group)


def bad_option(group):
    group.add_argument(
        '--on_bad',
        default='stop',
        choices=('stop', 'skip'),
        help='a picture that cannot be read: stop and name it (default), or name all such and go on without',
    )


def number(kind, least, most=float('inf')):
    """A type for argparse: text -> a number within bounds, which the help tells."""

    def read(text):
        return within(kind(text), least, most)

    read.__name__ = 'whole number' if kind is int else 'number'  # what argparse calls it where a text is none
    read.expected = span(least, most)
    return read


def within(value, least, most=float('inf')):
    """For argparse, which turns the error into a sentence with the option's name."""
    if not least <= value <= most:
        raise argparse.ArgumentTypeError(f'{value}: {span(least, most)} is expected')
    return value


def span(least, most):
    return f'{least} to {most}' if most < float('inf') else f'{least} or more'


positive = number(int, 1)
whole = number(int, 0)
side = number(int, 32)  # all backbones make one place of 32 pixels
rate = number(float, 0, 100)
minutes = number(float, 0)
fraction = number(float, 0, 1)
early = number(float, 0, 0.99)  # something is left after it
share = number(float, 0.01, 1)
