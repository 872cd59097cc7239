"""What happens if ...? Small experiments on the drawn people, a minute or two each on two quiet CPU cores.

Reads:   data/toy/pytorch, which `python prepare.py --dataset toy` makes
Writes:  nothing; with --keep what it prints, to tutorial/output/experiment_NAME.txt
Run:     python tutorial/experiments.py zero_grad
         python tutorial/experiments.py --list

A network of four convolutions learns people from pictures of 64 x 32. Its figures are lower than those of `make demo`;
what counts is the difference between two lines. One seed each: two points of Rank@1 or mAP may be chance.
"""

import contextlib
import copy
import io
import math
import sys
import time
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import model as networks  # noqa: E402
from reid import augment, cache, cli, data, features, losses, ranking, rerank, samplers, settings  # noqa: E402
from reid.problem import Problem  # noqa: E402
from reid.results import Features  # noqa: E402

SIZE = (64, 32)
CPU = torch.device('cpu')


def options():
    parser = cli.parser(__doc__)
    parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(EXPERIMENTS))
    parser.add_argument('--list', action='store_true', help='the question of each experiment')
    parser.add_argument('--data_dir', default='data/toy', help='the prepared tree (default data/toy)')
    parser.add_argument('--epochs', default=12, type=settings.positive, help='default 12')
    parser.add_argument('--ids', default=100, type=settings.positive, help='people to learn from (default 100)')
    parser.add_argument('--seed', default=0, type=int, help='another one shows what is chance (default 0)')
    parser.add_argument('--keep', action='store_true', help='write what is printed to tutorial/output/ as well')
    return parser


def main(opts):
    if opts.list:
        for name, experiment in EXPERIMENTS.items():
            print(f'{name:12s} {experiment.__doc__.splitlines()[0]}')
        return
    unknown = [name for name in opts.names if name not in EXPERIMENTS]
    if unknown or not opts.names:
        raise Problem(f'some of these are expected: {", ".join(EXPERIMENTS)}; --list says what each asks')
    bench = Bench(opts)
    for name in opts.names:
        heard = Heard(sys.stdout)
        with contextlib.redirect_stdout(heard):
            EXPERIMENTS[name](bench)
        if opts.keep:
            path = ROOT / 'tutorial/output' / f'experiment_{name}.txt'
            path.write_text(f'$ python tutorial/experiments.py {name}\n{heard.getvalue()}', encoding='utf-8')


class Heard(io.StringIO):
    """Passes on what is printed, and keeps it."""

    def __init__(self, screen):
        super().__init__()
        self.screen = screen

    def write(self, text):
        self.screen.write(text)
        return super().write(text)


# ---------------------------------------------------------------------------------------------------------------------
# 1. the bench: the same people, the same network, the same test for every line


class Bench:
    """Nothing is loaded or learnt before it is needed, and the plain network is learnt once."""

    def __init__(self, opts):
        self.opts, self.known = opts, None

    @cached_property
    def tree(self):
        return data.tree(self.opts.data_dir, ['train_all', 'query', 'gallery'])

    @cached_property
    def train(self):
        """The first --ids people of the training set."""
        everyone = data.people(self.tree, 'train_all')
        chosen = set(sorted(set(everyone.ids))[: self.opts.ids])
        return data.choose(everyone, [i for i, name in enumerate(everyone.ids) if name in chosen])

    @cached_property
    def asked(self):
        """Query and gallery: people, numbers and pictures of each."""
        parts = [data.people(self.tree, part) for part in ('query', 'gallery')]
        pictures = [self.pictures(part.paths) for part in parts]
        return list(zip(parts, data.numbers(*parts), pictures, strict=True))

    def pictures(self, paths):
        """uint8 (N, 3, H, W)"""
        return torch.from_numpy(decoded(paths)).permute(0, 3, 1, 2)

    def plain(self):
        """The network that the others are compared with, and its error: a copy, for some are changed afterwards."""
        self.known = self.known or self.learn()
        return copy.deepcopy(self.known[0]), self.known[1]

    def learn(self, people=None, labels=None, batches=None, zero_grad=True, vary=None, loss=None, lr=0.1, times=1):
        """Train a network from scratch -> (network, the share of wrong answers in the last epoch)."""
        opts, people = self.opts, people or self.train
        names = sorted(set(people.ids))
        labels = [names.index(who) for who in people.ids] if labels is None else labels
        torch.manual_seed(opts.seed)
        net = Small(len(names))
        vary = vary or augment.Augment(*SIZE)
        order = batches or cache.turns(len(labels), 32, train=True)
        batches = cache.Batches(torch.from_numpy(decoded(people.paths)), labels, CPU, order)
        optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, nesterov=True, weight_decay=2e-3)
        epochs = opts.epochs * times
        steps = epochs * len(batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: course(step / steps))
        net.train()
        for epoch in range(1, epochs + 1):
            wrong = seen = 0
            if hasattr(order, 'set_epoch'):
                order.set_epoch(epoch)
            for x, y in batches:
                (logits,), feature = net(vary(x))
                cost = F.cross_entropy(logits, y, label_smoothing=0.1) if loss is None else loss(logits, feature, y)
                cost.backward()
                optimizer.step()
                if zero_grad:
                    optimizer.zero_grad()
                schedule.step()
                wrong, seen = wrong + int((logits.argmax(1) != y).sum()), seen + len(y)
            progress(f'epoch {epoch}/{epochs}')
        progress('')
        return net.eval(), wrong / seen

    def describe(self, net, how=None):
        """Query and gallery as Features; `how` turns a batch of pictures (B, 3, H, W) into features (B, D)."""
        how = how or (lambda x: features.describe(net, x))
        out = []
        for part, ids, x in self.asked:
            with torch.inference_mode():
                f = torch.cat([how(augment.normalise(batch)) for batch in x.split(128)])
            out.append(Features(f.numpy(), ids, part.cams, None))
        return out

    def row(self, title, net, error=None, how=None, figures=None):
        """A line: who is found, after training, by whom."""
        figures = figures or ranking.evaluate(*self.describe(net, how))
        error = '' if error is None else f'{100 * error:.1f}'
        print(
            f'{title:44s} {error:>10s} {100 * figures["rank1"]:8.1f} {100 * figures["map_trapezoid"]:8.1f}', flush=True
        )


def decoded(paths):
    """uint8 (N, H, W, 3)"""
    return np.stack(list(cache.all_decoded(paths, *SIZE, 'decoding')))


class Small(nn.Module):
    """A network that learns in a minute: four convolutions with BatchNorm, pooling, and a head of model.py."""

    parts = 1

    def __init__(self, nclasses, widths=(24, 48, 96, 192)):
        super().__init__()
        layers = []
        for channels, width in zip((3, *widths), widths, strict=False):
            stride = 1 if width == widths[-1] else 2
            layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.classifier = networks.ClassBlock(widths[-1], nclasses, droprate=0, linear_num=0)

    def forward(self, x):  # (B, 3, 64, 32)
        pooled = self.convolutions(x).mean((2, 3))  # (B, 192, 8, 4) -> (B, 192)
        logits, feature = self.classifier(pooled)
        return [logits], feature

    def embed(self, x):
        return self(x)[1]


def course(done):
    """The learning rate, as a share of the highest: up in the first tenth, then down along a cosine."""
    return min(1, 0.1 + 9 * done) * (1 + math.cos(math.pi * done)) / 2


def progress(text):
    if sys.stderr.isatty():
        print(f'\r{text:20s}\r', end='', file=sys.stderr, flush=True)


def header(first='error, %'):
    print(f'{"":44s} {first:>10s} {"Rank@1":>8s} {"mAP":>8s}')


def scored(query, gallery, scores):
    """The figures of any scores (Q, G): more is more alike."""
    return ranking.figures(ranking.ranks_in([(0, torch.as_tensor(scores).float().clone())], query, gallery))


# ---------------------------------------------------------------------------------------------------------------------
# 2. training


def chance(bench):
    """What does a network know that has learnt nothing?"""
    header()
    torch.manual_seed(bench.opts.seed)
    query, gallery = bench.describe(Small(10).eval())
    draw = np.random.default_rng(bench.opts.seed).random((len(query.f), len(gallery.f)))
    bench.row('a ranking by lot', None, figures=scored(query, gallery, draw))
    bench.row('random weights', None, figures=ranking.evaluate(query, gallery))
    mean = bench.describe(None, lambda x: F.normalize(F.adaptive_avg_pool2d(x, (6, 1)).flatten(1)))
    bench.row('no network: mean colours of six stripes', None, figures=ranking.evaluate(*mean))
    bench.row('the same network, trained', *bench.plain())


def zero_grad(bench):
    """What if the gradients are never set back to zero?"""
    header()
    bench.row('with optimizer.zero_grad()', *bench.plain())
    bench.row('without', *bench.learn(zero_grad=False))


def labels(bench):
    """What does training on shuffled names teach?"""
    header()
    names = sorted(set(bench.train.ids))
    true = [names.index(who) for who in bench.train.ids]
    mixed = np.random.default_rng(bench.opts.seed).permutation(true).tolist()
    bench.row('true names', *bench.learn(labels=true))
    bench.row('the same names, dealt out by lot', *bench.learn(labels=mixed))


def order(bench):
    """What if the pictures come in the order of the folders, one person after the other?"""
    header()
    n = len(bench.train.ids)
    sorted_batches = [list(range(i, min(i + 32, n))) for i in range(0, n - 1, 32)]
    bench.row('shuffled anew in every epoch', *bench.plain())
    bench.row('in the order of the folders', *bench.learn(batches=sorted_batches))


def augmentation(bench):
    """What do mirroring, shifting and erasing add in training?"""
    header()
    bench.row('pictures as they are', *bench.learn(vary=augment.normalise))
    bench.row('mirrored and shifted', *bench.plain())
    bench.row('and partly erased', *bench.learn(vary=augment.Augment(*SIZE, erasing_p=0.5)))


def rate(bench):
    """What if the learning rate is a hundred times lower, or ten times higher?"""
    header()
    for lr in (0.001, 0.1, 1.0):
        bench.row(f'--lr {lr:g}', *bench.learn(lr=lr))


def one_camera(bench):
    """What does a network learn that has seen people by one camera only?"""
    header()
    cams, train = bench.train.cams, bench.train
    camera = np.bincount(cams).argmax()
    alone = np.flatnonzero(cams == camera)
    people = [train.ids[i] for i in alone]
    mixed, rng = [], np.random.default_rng(bench.opts.seed)
    for who in sorted(set(people)):  # as many pictures of the same people, whatever the camera
        own = [i for i, name in enumerate(train.ids) if name == who]
        mixed += sorted(rng.choice(own, min(len(own), people.count(who)), replace=False).tolist())
    print(f'(camera {camera}: {len(alone)} pictures of {len(set(people))} people, three times the epochs)')
    bench.row('by all cameras', *bench.learn(data.choose(train, mixed), times=3))
    bench.row(f'as many, by camera {camera} alone', *bench.learn(data.choose(train, alone), times=3))


def elsewhere(bench):
    """What does a network lose that is taken to other cameras?"""
    header()
    train, asked = bench.train, bench.asked
    near = np.isin(train.cams, (1, 2, 3))
    count = min(near.sum(), (~near).sum())
    bench.asked = [
        (data.choose(part, keep), ids[keep], x[torch.from_numpy(keep)])
        for part, ids, x in asked
        for keep in [np.flatnonzero(np.isin(part.cams, (4, 5, 6)))]
    ]
    print(f'(tested at cameras 4, 5 and 6; {count} pictures to learn from, twice the epochs)')
    bench.row('trained at 4, 5 and 6', *bench.learn(data.choose(train, np.flatnonzero(~near)[:count]), times=2))
    bench.row('trained at 1, 2 and 3', *bench.learn(data.choose(train, np.flatnonzero(near)[:count]), times=2))
    bench.asked = asked


def fewer(bench):
    """What helps more: more people, or more pictures of each?"""
    header()
    train = bench.train
    names = sorted(set(train.ids))
    half = [i for i, who in enumerate(train.ids) if who in set(names[: len(names) // 2])]
    seen, each = {}, []
    for i, who in enumerate(train.ids):
        seen[who] = seen.get(who, 0) + 1
        if seen[who] % 2:
            each.append(i)
    bench.row(f'all: {len(names)} people, {len(train.ids)} pictures', *bench.plain())
    bench.row(f'half of the people, {len(half)} pictures', *bench.learn(data.choose(train, half), times=2))
    bench.row(f'half of the pictures of each, {len(each)}', *bench.learn(data.choose(train, each), times=2))
    print('(half as many pictures, twice the epochs: the same number of steps)')


def triplet(bench):
    """What does a triplet loss need its P x K batches for?"""
    header()
    names = sorted(set(bench.train.ids))
    own = [names.index(who) for who in bench.train.ids]
    torch.manual_seed(bench.opts.seed)
    by_lot = cache.turns(len(own), 32, train=True)
    pk = samplers.PK(own, 8, 4, seed=bench.opts.seed)

    def alone(logits, feature, y):
        return losses.triplet(feature, y)

    def both(logits, feature, y):
        return F.cross_entropy(logits, y, label_smoothing=0.1) + losses.triplet(feature, y)

    for title, batches in (('32 by lot', by_lot), ('8 people x 4 pictures', pk)):
        anchors = [len(losses.pairs(torch.tensor([own[i] for i in batch]))[0]) for batch in batches]
        print(f'{title}: {np.mean(anchors):.1f} of 32 pictures have another of their person in the batch')
    bench.row('cross entropy', *bench.plain())
    bench.row('triplet alone, 32 by lot', bench.learn(batches=by_lot, loss=alone, lr=0.02)[0])
    bench.row('triplet alone, 8 x 4', bench.learn(batches=pk, loss=alone, lr=0.02)[0])
    bench.row('cross entropy + triplet, 8 x 4', *bench.learn(batches=pk, loss=both, lr=0.02))


# ---------------------------------------------------------------------------------------------------------------------
# 3. testing: one network, several ways to use it


def no_flip(bench):
    """What does the mirrored view add to a descriptor?"""
    header()
    net, error = bench.plain()
    bench.row('f(x) + f(mirror x)', net, error)
    bench.row('f(x) alone', net, how=lambda x: features.describe(net, x, flip=False))


def no_l2(bench):
    """What if features keep their length?"""
    header()
    net, error = bench.plain()
    query, gallery = bench.describe(net, lambda x: net.embed(x) + net.embed(x.flip(3)))
    bench.row('cosine: features of unit length', net, error)
    bench.row('product of features as they are', None, figures=scored(query, gallery, query.f @ gallery.f.T))
    d = torch.cdist(torch.from_numpy(query.f), torch.from_numpy(gallery.f))
    bench.row('distance of features as they are', None, figures=scored(query, gallery, -d))
    lengths = np.linalg.norm(gallery.f, axis=1)
    print(f'(lengths from {lengths.min():.1f} to {lengths.max():.1f}, {lengths.mean():.1f} in the mean)')


def train_mode(bench):
    """What if nobody calls model.eval() before the test?"""
    header()
    net, error = bench.plain()
    bench.row('model.eval()', net, error)
    net.train()
    query, gallery = bench.describe(net)
    bench.row('left in training mode', None, figures=ranking.evaluate(query, gallery))
    with torch.inference_mode():
        x = augment.normalise(bench.asked[0][2][:128])
        apart = features.describe(net, x[:2])[0] @ features.describe(net, x)[0]
    print(f'(one picture, described among 1 other and among 127 others: cosine {apart:.3f}; in eval mode it is 1)')


def scores(bench):
    """Are the scores of the classifier a good descriptor?"""
    header()
    net, error = bench.plain()
    bench.row('the feature before the classifier', net, error)

    def classified(x):
        (a,), _ = net(x)
        (b,), _ = net(x.flip(3))
        return F.normalize(a + b)

    bench.row('the scores of the trained people', net, how=classified)
    bench.row('the same after softmax', net, how=lambda x: F.normalize(net(x)[0][0].softmax(1)))


def protocol(bench):
    """What if pictures of the query's own camera stay in the ranking?"""
    header()
    net, error = bench.plain()
    query, gallery = bench.describe(net)
    bench.row('left out, as the protocol says', net, error, figures=ranking.evaluate(query, gallery))
    apart = query._replace(cams=np.full(len(query.ids), 7))  # a camera that no gallery picture is of
    bench.row('left in', None, figures=ranking.evaluate(apart, gallery))


def reranking(bench):
    """What do k1 and lambda do in re-ranking?"""
    header()
    net, error = bench.plain()
    query, gallery = bench.describe(net)
    bench.row('no re-ranking', net, error, figures=ranking.evaluate(query, gallery))
    for k1, k2, share in ((20, 6, 0.3), (5, 2, 0.3), (80, 6, 0.3), (20, 6, 0.0), (20, 6, 1.0)):
        blocks = rerank.rerank(query.f, gallery.f, k1=k1, k2=k2, lambda_value=share)
        figures = ranking.figures(ranking.ranks_in(blocks, query, gallery))
        bench.row(f'--k1 {k1} --k2 {k2} --lambda_value {share:g}', None, figures=figures)


def gray(bench):
    """How much of it is colour?"""
    header()
    net, error = bench.plain()
    bench.row('pictures in colour', net, error)
    weights = torch.tensor(augment.GREY).view(1, 3, 1, 1)
    colours = bench.asked
    bench.asked = [
        (part, ids, (x * weights).sum(1, keepdim=True).round().byte().expand(-1, 3, -1, -1)) for part, ids, x in colours
    ]
    bench.row('the same network, pictures in gray', net)
    bench.asked = colours


# ---------------------------------------------------------------------------------------------------------------------
# 4. without training


def pool7(bench):
    """Why not AvgPool2d(7), as the ResNet of the textbook has it?"""
    for height, width in ((224, 224), (256, 128), (384, 192)):
        for stride in (2, 1):
            net = networks.backbones.trunk('resnet50', stride, height, width).eval()
            with torch.inference_mode():
                maps = networks.backbones.maps('resnet50', net, torch.zeros(1, 3, height, width))
            try:
                pooled = tuple(torch.nn.AvgPool2d(7)(maps).shape[2:])
            except RuntimeError as error:
                pooled = f'fails: {str(error).rpartition(". ")[2]}'
            print(f'{height} x {width}, last stride {stride}: maps {tuple(maps.shape[2:])}, AvgPool2d(7) {pooled}')
    print('AdaptiveAvgPool2d(1): (1, 1) for all of them')


def precision(bench):
    """How far apart are the two average precisions?"""
    cases = {
        '1': [0],
        '2': [1],
        '1, 10': [0, 9],
        '2, 3': [1, 2],
        '1 to 10, 1001 to 1007': [*range(10), *range(1000, 1007)],
    }
    for at, good in cases.items():
        each = ranking.each([np.array(good)])
        print(f'good images at rank {at:22s} standard {each["standard"][0]:.3f}  trapezoid {each["trapezoid"][0]:.3f}')


def collapse(bench):
    """What does the triplet loss say when all features are the same point?"""
    torch.manual_seed(bench.opts.seed)
    y = torch.arange(8).repeat_interleave(4)
    drawn, apart = torch.randn(32, 192), F.one_hot(y, 192).float()
    for title, f in (
        ('drawn at random, as they are', drawn),
        ('drawn at random, of unit length', losses.unit(drawn)),
        ('drawn at random, a thousandth as long', drawn / 1000),
        ('all of them the same', torch.ones(32, 192)),
        ('each person in a corner of its own', apart),
    ):
        print(f'{title:40s} triplet {float(losses.triplet(f, y)):.3f}   circle {32 * float(losses.circle(f, y)):.3f}')


def backbones(bench):
    """What do other backbones cost, for a picture of 256 x 128?"""
    print(f'{"":20s} {"million":>8s} {"maps of":>14s} {"stride 1":>14s} {"ms":>7s} {"stride 1":>9s}')
    x = torch.zeros(4, 3, 256, 128)
    for name in ('resnet18', 'resnet50', 'densenet121', 'osnet_x1_0', 'osnet_x0_25', 'efficientnet_lite0', 'swin_t'):
        told, took, count = [], [], 0
        for stride in (2, 1):
            try:
                net = networks.backbones.trunk(name, stride, 256, 128).eval()
            except Problem:  # there is no last halving to leave out
                told, took = [*told, '-'], [*took, '-']
                continue
            count = sum(
                p.numel() for n, p in net.named_parameters() if not n.startswith(networks.backbones.unused(net))
            )
            with torch.inference_mode():
                maps = networks.backbones.maps(name, net, x)
                began = time.perf_counter()
                networks.backbones.maps(name, net, x)
            told.append(str(tuple(maps.shape[1:])).replace(' ', ''))
            took.append(f'{1000 * (time.perf_counter() - began) / len(x):.0f}')
        print(f'{name:20s} {count / 1e6:8.1f} {told[0]:>14s} {told[1]:>14s} {took[0]:>7s} {took[1]:>9s}')


EXPERIMENTS = {
    one.__name__: one
    for one in (
        chance,
        zero_grad,
        labels,
        order,
        augmentation,
        rate,
        one_camera,
        elsewhere,
        fewer,
        triplet,
        no_flip,
        no_l2,
        train_mode,
        scores,
        protocol,
        reranking,
        gray,
        pool7,
        precision,
        collapse,
        backbones,
    )
}

if __name__ == '__main__':
    cli.start(main, options)
