"""The options of training and describing, in groups, and the types that check a value: a wrong one is a sentence."""

import argparse

from reid import augment, cache, optim
from reid.losses import LOSSES


def data(parser):
    group = parser.add_argument_group('data')
    group.add_argument(
        '--data_dir',
        nargs='+',
        default=['../Market/pytorch'],
        help='the prepared tree (default ../Market/pytorch), or several to learn at once, identities kept apart',
    )
    group.add_argument(
        '--train_all',
        action=argparse.BooleanOptionalAction,
        default=False,
        help='train on all pictures, those of val among them',
    )
    group.add_argument(
        '--holdout',
        default=0,
        type=whole,
        help='keep the last N identities by name (of each tree) out of training and rank them instead: a validation '
        'that means something, since the identities of val are trained on (default 0; 100 is good on Market)',
    )
    group.add_argument('--eval_every', default=10, type=positive, help='rank the held-out every K epochs (default 10)')
    group.add_argument(
        '--DG',
        nargs='?',
        const='../DG-Market',
        metavar='DIR',
        help='learn from a folder of pictures without names too (../DG-Market): the averaged network names them',
    )
    group.add_argument(
        '--seed', type=int, help='the same number gives the same figures again on a CPU (default: drawn)'
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
    group = parser.add_argument_group('augmentation')
    group.add_argument('--erasing_p', default=0.0, type=fraction, help='random erasing: 0 (default) to 0.5')
    group.add_argument(
        '--erasing',
        default='mean',
        choices=augment.ERASING,
        help='with the mean colour (default), black, noise, or shifted: the numbers that the strong baseline writes',
    )
    group.add_argument(
        '--color_jitter',
        action=argparse.BooleanOptionalAction,
        default=False,
        help='vary brightness, contrast and saturation',
    )
    group.add_argument(
        '--gray_patch_p', default=0.0, type=fraction, help='turn a random rectangle gray: 0 (default) to 0.4'
    )
    group.add_argument(
        '--policy', default='none', choices=augment.POLICIES, help='of torchvision, picture by picture (default none)'
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
    group = parser.add_argument_group('losses')
    group.add_argument(
        '--loss',
        nargs='+',
        default=[],
        metavar='NAME[:WEIGHT[:SETTING=VALUE]]',
        help=f'added to cross entropy, on the feature (triplet, circle: with --pk): {", ".join(LOSSES)}',
    )
    group.add_argument('--ce', default=1.0, type=rate, help='weight of cross entropy (default 1; 0: without it)')
    group.add_argument(
        '--pk',
        nargs=2,
        type=positive,
        metavar=('P', 'K'),
        help='batches of P identities with K pictures each, which losses that compare pictures need: 16 4 is usual',
    )
    group.add_argument(
        '--pk_cameras',
        action=argparse.BooleanOptionalAction,
        default=False,
        help='--pk with pictures from as many cameras as possible',
    )
    group.add_argument('--label_smooth', default=0.0, type=fraction, help='0 (default); 0.1 is usual')
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
    group = parser.add_argument_group('optimisation')
    group.add_argument(
        '--batchsize',
        default=32,
        type=positive,
        help='default 32; with 8, take --lr 0.02. Of all processes together: lr stays what it is on any number of GPUs',
    )
    group.add_argument(
        '--accumulate',
        default=1,
        type=positive,
        help='batches to a step: 4 is like 4 times the batch, but to BatchNorm and --loss',
    )
    group.add_argument(
        '--optimizer',
        default='sgd',
        choices=optim.OPTIMIZERS,
        help='sgd (default), or adam, adamw: with --lr 3.5e-4 --backbone_lr 1',
    )
    group.add_argument('--lr', default=0.05, type=rate, help='of the head (default 0.05 for a batch of 32)')
    group.add_argument(
        '--backbone_lr', default=0.1, type=rate, help="the backbone's share of lr: 0.1 (default), 1 from scratch"
    )
    group.add_argument(
        '--layer_decay',
        default=1.0,
        type=share,
        help='each earlier stage of the backbone learns slower by this factor (default 1; transformers: 0.8)',
    )
    group.add_argument('--weight_decay', default=5e-4, type=rate, help='default 5e-4')
    group.add_argument('--clip', type=rate, help='the greatest length of the gradient (default: any; 5 is mild)')
    group.add_argument('--total_epoch', default=60, type=whole, help='default 60; 0 saves the untrained network')
    group.add_argument('--warm_epoch', default=0, type=whole, help='epochs in which lr rises; 5 is usual')
    group.add_argument('--warm_from', default=0.1, type=fraction, help='the share that lr begins with (0.1)')
    group.add_argument(
        '--milestones',
        nargs='+',
        type=positive,
        metavar='EPOCH',
        help='lr falls to a tenth, without --cosine (default: at 2/3)',
    )
    group.add_argument(
        '--cosine',
        action=argparse.BooleanOptionalAction,
        default=False,
        help='let lr fall along a cosine, not in steps',
    )
    group.add_argument(
        '--average',
        choices=('none', 'ema', 'swa'),
        default='none',
        help='also keep the average of the weights: ema, step by step, or swa, epoch by epoch (default none)',
    )
    group.add_argument('--average_from', default=0.8, type=fraction, help='of the epochs: 0.8 (default)')
    group.add_argument('--average_decay', default=0.996, type=fraction, help='of ema, a step: 0.996 (default)')
    group.add_argument(
        '--max_minutes',
        type=minutes,
        metavar='N',
        help='stop before an epoch that would end later than this, as a cluster may ask for; --resume goes on',
    )
    group.add_argument(
        '--sync_bn',
        action=argparse.BooleanOptionalAction,
        default=False,
        help='on several GPUs, BatchNorm over the whole batch instead of the part on each: for less than 16 there',
    )
    group.add_argument(
        '--compile',
        action=argparse.BooleanOptionalAction,
        default=False,
        help='by torch.compile: a minute or more at the start, again for each size of --grow; gains on GPUs',
    )


def describing(parser):
    """How pictures become descriptors. What is compared has to be made the same way."""
    group = parser.add_argument_group('descriptors')
    group.add_argument(
        '--ms',
        default='1',
        help='scales to sum features over, as areas: 1 (default); 1,1.1 takes twice the time and may gain a little',
    )
    group.add_argument('--no_flip', action='store_true', help='do not add the feature of the mirrored picture')
    group.add_argument('--batchsize', type=positive, help='default 256 on a GPU, 32 on a CPU; less if memory ends')
    bad_option(group)


def bad_option(group):
    group.add_argument(
        '--on_bad',
        default='stop',
        choices=('stop', 'skip'),
        help='a picture that cannot be read: stop and name it (default), or name all such and go on without',
    )


def positive(text):
    return within(int(text), 1)


def side(text):
    return within(int(text), 32)  # all backbones make one place of 32 pixels


def whole(text):
    return within(int(text), 0)


def rate(text):
    return within(float(text), 0, 100)


def minutes(text):
    return within(float(text), 0)


def fraction(text):
    return within(float(text), 0, 1)


def share(text):
    return within(float(text), 0.01, 1)


def within(value, least, most=float('inf')):
    """For argparse, which turns the error into a sentence with the option's name."""
    if not least <= value <= most:
        expected = f'{least} to {most}' if most < float('inf') else f'{least} or more'
        raise argparse.ArgumentTypeError(f'{value}: {expected} is expected')
    return value
