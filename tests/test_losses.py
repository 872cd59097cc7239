"""The losses against plain loops and pytorch-metric-learning: python -m pytest tests/test_losses.py"""

import math
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from reid import losses
from reid.losses import PAIRS, TEXTS
from reid.problem import Problem

DIM, CLASSES = 8, 7
LOSSES = {name: made for name, made in losses.LOSSES.items() if name not in TEXTS}  # test_clip.py has those
LEARN = {'center', 'arcface', 'cosface', 'sphere', 'verification'}
P_TIMES_K = [*range(CLASSES)] * 5
RAGGED = [3, 3, 3, 0, 5, 0, 6, 3, 1, 5, 5, 2]  # 6, 1 and 2 are there once


def batch(seed, labels, length=1.0):
    """Pictures that look like each other, and a little more like their identity, in any order: (B, DIM), (B,)."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.tensor(labels)[torch.randperm(len(labels), generator=draw)]
    f = 1 + torch.randn(CLASSES, DIM, generator=draw)[y] + 1.5 * torch.randn(len(y), DIM, generator=draw)
    return (length * f).requires_grad_(), y


def make(name, seed=0):
    torch.manual_seed(seed)
    return LOSSES[name][0](CLASSES, DIM)


# ---------------------------------------------------------------------------------------------------------------------
# 1. references: lists of numbers and loops


def dot(a, b):
    return sum(p * q for p, q in zip(a, b, strict=True))


def unit(a):
    return [p / math.sqrt(dot(a, a)) for p in a]


def cos(a, b):
    return dot(unit(a), unit(b))


def dist(a, b):
    return math.sqrt(sum((p - q) ** 2 for p, q in zip(a, b, strict=True)))


def mean(values):
    return sum(values) / len(values) if values else 0.0


def logsumexp(values):
    return math.log(sum(math.exp(v) for v in values))


def cross_entropy(z, right):
    return logsumexp(z) - z[right]


def anchors(y):
    """(anchor, its positives, its negatives) of those that have both."""
    for a in range(len(y)):
        same = [j for j in range(len(y)) if y[j] == y[a] and j != a]
        other = [j for j in range(len(y)) if y[j] != y[a]]
        if same and other:
            yield a, same, other


def triplet(f, y, weights, bend=lambda v: max(0.0, 0.3 + v)):
    gaps = [max(dist(f[a], f[p]) for p in P) - min(dist(f[a], f[n]) for n in N) for a, P, N in anchors(y)]
    return mean([bend(gap) for gap in gaps])


def triplet_soft(f, y, weights):
    return triplet(f, y, weights, bend=lambda v: math.log(1 + math.exp(v)))


def circle(f, y, weights, m=0.25, gamma=32):
    each = []
    for a, P, N in anchors(y):
        product = 1.0
        for positive, own in ((True, P), (False, N)):
            total = 0.0
            for j in own:
                s = cos(f[a], f[j])
                if positive:
                    total += math.exp(-gamma * max(0, 1 + m - s) * (s - (1 - m)))
                else:
                    total += math.exp(gamma * max(0, s + m) * (s - m))
            product *= total
        each.append(math.log(1 + product))
    return mean(each) / len(y)


def contrast(f, y, weights):
    pull = [dist(unit(f[a]), unit(f[p])) for a, P, _ in anchors(y) for p in P]
    push = [1 - dist(unit(f[a]), unit(f[n])) for a, _, N in anchors(y) for n in N]
    return mean([v for v in pull if v > 0]) + mean([v for v in push if v > 0])


def lifted(f, y, weights):
    f = [unit(a) for a in f]
    each = [
        logsumexp([dist(f[a], f[p]) for p in P]) + logsumexp([1 - dist(f[a], f[n]) for n in N])
        for a, P, N in anchors(y)
    ]
    return mean([max(0, v) for v in each])


def supcon(f, y, weights):
    each = []
    for a, P, N in anchors(y):
        below = sum(math.exp(cos(f[a], f[j]) / 0.1) for j in P + N)
        each.append(mean([-math.log(math.exp(cos(f[a], f[p]) / 0.1) / below) for p in P]))
    return mean(each)


def l_p(f, a, P, alpha=2.0, m=1.3):
    return mean([max(0, dist(unit(f[a]), unit(f[p])) - (alpha - m)) for p in P])


def l_n(f, a, N, alpha=2.0, T=1.0):
    near = [d for d in (dist(unit(f[a]), unit(f[n])) for n in N) if d < alpha]
    w = [math.exp(T * (alpha - d)) for d in near]
    return sum(wi * (alpha - d) for wi, d in zip(w, near, strict=True)) / sum(w) if near else 0.0


def ranked_list(f, y, weights, alpha=2.0, m=1.3, T=1.0):
    return mean([l_p(f, a, P, alpha, m) + l_n(f, a, N, alpha, T) for a, P, N in anchors(y)])


def k_means(f, k, rounds=10):
    centers = [f[0]]
    while len(centers) < min(k, len(f)):
        centers.append(max(f, key=lambda a: min(dist(a, c) for c in centers)))
    for _ in range(rounds):
        own = [min(range(len(centers)), key=lambda c: dist(a, centers[c])) for a in f]
        for c in range(len(centers)):
            members = [a for a, o in zip(f, own, strict=True) if o == c]
            if members:
                centers[c] = [mean(column) for column in zip(*members, strict=True)]
    return [min(range(len(centers)), key=lambda c: dist(a, centers[c])) for a in f]


def ranked_list_clustered(f, y, weights):
    cluster = k_means([unit(a) for a in f], 8)
    total, both = 0.0, list(anchors(y))
    for identity in set(y):
        total += sum(l_p(f, a, P) for a, P, _ in both if y[a] == identity) / y.count(identity)
    for c in set(cluster):
        if cluster.count(c) > 3:
            inside = [l_n(f, a, [n for n in N if cluster[n] == c]) for a, _, N in both if cluster[a] == c]
            total += sum(inside) / cluster.count(c)
    return total


def instance(f, y, weights):
    return mean([cross_entropy([32 * cos(a, b) for b in f], i) for i, a in enumerate(f)]) / len(y)


def instance_id(f, y, weights):
    f, means = [unit(a) for a in f], []
    for identity in sorted(set(y)):
        own = [a for a, label in zip(f, y, strict=True) if label == identity]
        means.append([mean(column) for column in zip(*own, strict=True)])
    return instance(means, means, weights) * len(means) / len(y)


def center(f, y, weights):
    return mean([dist(a, weights['compute.centers'][label]) ** 2 / 2 for a, label in zip(f, y, strict=True)])


def verification(f, y, weights):
    losses = {True: [], False: []}
    for a, P, N in anchors(y):
        for j in P + N:
            square = [(p - q) ** 2 for p, q in zip(f[a], f[j], strict=True)]
            rows = zip(weights['compute.head.weight'], weights['compute.head.bias'], strict=True)
            losses[j in P].append(cross_entropy([dot(row, square) + bias for row, bias in rows], int(j in P)))
    return (mean(losses[True]) + mean(losses[False])) / 2


def softmax(f, y, weights, scale, margin):
    each = []
    for a, label in zip(f, y, strict=True):
        z = [cos(a, w) for w in weights['compute.W']]
        z[label] = margin(math.acos(z[label]))
        each.append(cross_entropy([scale * v for v in z], label))
    return mean(each) / len(y)


def arcface(f, y, weights):
    m = math.radians(28.6)

    def margin(theta):
        return math.cos(theta + m) if theta <= math.pi - m else math.cos(theta) - m * math.sin(m)

    return softmax(f, y, weights, 64, margin)


def cosface(f, y, weights):
    return softmax(f, y, weights, 64, lambda theta: math.cos(theta) - 0.35)


def sphere(f, y, weights):
    def margin(theta):
        k = int(theta * 4 / math.pi)
        return (-1) ** k * math.cos(4 * theta) - 2 * k

    return softmax(f, y, weights, 1, margin)


REFERENCE = {name: globals()[name] for name in LOSSES}


def reference(name, f, y, loss):
    weights = {key: value.tolist() for key, value in loss.state_dict().items()}
    return REFERENCE[name](f.tolist(), y.tolist(), weights)


@pytest.mark.parametrize('labels', [P_TIMES_K, RAGGED], ids=['PxK', 'ragged'])
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', LOSSES)
def test_values_equal_plain_loops(name, seed, labels):
    f, y = batch(seed, labels)
    loss = make(name, seed)
    assert loss(f, y).item() == pytest.approx(reference(name, f, y, loss), rel=1e-4, abs=1e-6)
    assert loss(f, y).item() > 0


@pytest.mark.parametrize('name', LOSSES)
def test_values_with_pictures_that_are_there_twice(name):
    """As where an identity has fewer than K pictures. Their distance is 0, and that is no loss to average over."""
    f, y = batch(0, RAGGED)
    f, y, loss = torch.cat([f, f[:3]]), torch.cat([y, y[:3]]), make(name)
    assert loss(f, y).item() == pytest.approx(reference(name, f, y, loss), rel=1e-4, abs=1e-6)


def test_a_ranked_list_with_strangers_out_of_reach():
    f, y = batch(0, RAGGED)
    for alpha in (0.1, 0.6, 1.0):
        value = losses.ranked_list(f, y, alpha=alpha, m=0.05, T=5.0)
        assert value.item() == pytest.approx(ranked_list(f.tolist(), y.tolist(), {}, alpha, 0.05, 5.0), rel=1e-4)
    f = torch.tensor([[1, 0, 0], [1, 0.01, 0], [0, 1, 0], [0, 1, 0.01]])
    assert losses.ranked_list(f, torch.tensor([0, 0, 1, 1]), alpha=1.0, m=0.5) == 0


def test_small_distances_between_large_features_are_exact():
    """As products of the features they would drown: |a|^2 + |b|^2 - 2 ab."""
    f, _ = batch(0, P_TIMES_K, 1e3)
    f = f.detach()
    f = torch.cat([f, f + 0.1 * torch.randn(f.shape)])
    expected = (f.double()[:, None] - f.double()).norm(dim=2).float()
    assert torch.allclose(losses.distances(f), expected, rtol=1e-5)


@pytest.mark.parametrize('length', [1.0, 1e4])
def test_equal_pictures_have_distance_0_and_no_pull(length):
    f, _ = batch(0, P_TIMES_K, length)
    f = f.detach()[:1].repeat(30, 1).requires_grad_()
    d = losses.distances(f)
    d.sum().backward()
    assert not d.any()
    assert not f.grad.any()


@pytest.mark.parametrize('name', sorted(set(LOSSES) - {'circle'}))  # whose weights are no part of its gradient
def test_gradients_equal_the_slopes_of_plain_loops(name):
    f, y = batch(5, RAGGED)
    loss = make(name)
    loss(f, y).backward()
    assert f.grad.norm() > 0
    for i, k in [(0, 0), (3, 7), (7, 4), (11, 2)]:
        step = torch.zeros(f.shape, dtype=torch.float64)
        step[i, k] = 1e-5
        up, down = (reference(name, f.double() + sign * step, y, loss) for sign in (1, -1))
        assert f.grad[i, k].item() == pytest.approx((up - down) / 2e-5, rel=1e-3, abs=2e-4)


def test_every_setting_moves_the_value():
    """None of the numbers is dead."""
    f, y = batch(0, P_TIMES_K)
    for change in ({'alpha': 1.5}, {'m': 0.9}, {'T': 3.0}):
        assert losses.ranked_list(f, y, **change) != losses.ranked_list(f, y)
        assert losses.ranked_list_clustered(f, y, **change) != losses.ranked_list_clustered(f, y)
    assert losses.ranked_list_clustered(f, y, k=2) != losses.ranked_list_clustered(f, y)
    assert len({losses.circle(f, y, m, gamma).item() for m in (0.25, 0.4) for gamma in (32, 64)}) == 4
    assert losses.supcon(f, y, temperature=0.2) != losses.supcon(f, y)
    assert losses.triplet(f, y, margin=0.5) > losses.triplet(f, y)


# ---------------------------------------------------------------------------------------------------------------------
# 2. pytorch-metric-learning


def theirs(name, ours):
    """Their loss, as (feature, label) -> what ours should be."""
    pytest.importorskip('pytorch_metric_learning')
    from pytorch_metric_learning import distances, losses, miners, reducers

    with_weights = {'arcface': losses.ArcFaceLoss, 'cosface': losses.CosFaceLoss, 'sphere': losses.SphereFaceLoss}
    if name in with_weights:
        loss = with_weights[name](CLASSES, DIM)
        loss.W.data = ours.compute.W.data.T.clone()
        return lambda f, y: loss(F.normalize(f), y) / len(y)  # theirs takes the length of a feature into sphere
    if name.startswith('triplet'):
        euclid = distances.LpDistance(normalize_embeddings=False)
        everyone = reducers.MeanReducer()
        soft = {'margin': 0, 'smooth_loss': True} if name == 'triplet_soft' else {'margin': 0.3}
        loss = losses.TripletMarginLoss(distance=euclid, reducer=everyone, **soft)
        miner = miners.BatchHardMiner(distance=euclid)
        return lambda f, y: loss(f, y, miner(f, y))
    if name == 'circle':
        loss = losses.CircleLoss(m=0.25, gamma=32)
        return lambda f, y: loss(f, y) / len(y)
    if name == 'instance':
        loss = losses.InstanceLoss(gamma=32)
        return lambda f, y: loss(f, torch.arange(len(f))) / len(y)
    return {  # just as they are
        'contrast': losses.ContrastiveLoss(pos_margin=0, neg_margin=1),
        'lifted': losses.GeneralizedLiftedStructureLoss(neg_margin=1, pos_margin=0),
        'supcon': losses.SupConLoss(temperature=0.1),
    }[name]


SAME_THERE = 'triplet triplet_soft circle contrast lifted supcon instance arcface cosface sphere'.split()


@pytest.mark.filterwarnings('ignore::DeprecationWarning')  # of numpy 2, in their sphere
@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('name', SAME_THERE)
def test_pytorch_metric_learning_agrees(name, seed):
    ours = make(name, seed)
    other = theirs(name, ours)
    # Anchors without a positive count in two of theirs, and not in ours.
    for labels in [P_TIMES_K] if name in ('contrast', 'lifted') else [P_TIMES_K, RAGGED]:
        f, y = batch(seed, labels, length=3.0)
        value, expected = ours(f, y), other(f, y)
        assert value.item() == pytest.approx(expected.item(), rel=1e-4)
        slope, expected = torch.autograd.grad(value, f)[0], torch.autograd.grad(expected, f)[0]
        assert torch.allclose(slope, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_pytorch_metric_learning_agrees_on_negatives_of_a_ranked_list():
    """Its positives are averaged over those beyond the margin only; the half of the negatives is the same."""
    pytest.importorskip('pytorch_metric_learning')
    from pytorch_metric_learning.losses import RankedListLoss

    f, y = batch(1, P_TIMES_K)
    rows, same, other = losses.pairs(y)
    _, negative = losses.ranked(losses.distances(losses.unit(f))[rows], same, other)
    expected = RankedListLoss(margin=1.3, Tn=1, imbalance=1, alpha=2.0)(f, y)
    assert negative.mean().item() == pytest.approx(expected.item(), rel=1e-4)


# ---------------------------------------------------------------------------------------------------------------------
# 3. whatever comes


def extremes():
    f, y = batch(0, P_TIMES_K)
    f = f.detach()
    yield 'huge', f * 1e4, y
    yield 'tiny', f * 1e-4, y
    yield 'zeros', torch.zeros_like(f), y
    yield 'one zero', torch.cat([torch.zeros(1, DIM), f[1:]]), y
    yield 'all the same', f[:1].repeat(len(f), 1), y
    yield 'each twice', f.repeat(2, 1), y.repeat(2)
    yield 'a repeated picture among others', torch.cat([f, f[:3]]), torch.cat([y, y[:3]])
    yield 'opposites', torch.cat([f, -f]), y.repeat(2)
    yield 'one identity', f, torch.full_like(y, 3)
    yield 'all different', f[:CLASSES], torch.arange(CLASSES)
    yield 'two pictures', f[:2], torch.tensor([1, 1])
    yield 'a single picture', f[:1], y[:1]


@pytest.mark.parametrize('case', list(extremes()), ids=lambda case: case[0])
@pytest.mark.parametrize('name', LOSSES)
def test_everything_stays_finite(name, case):
    what, f, y = case
    f, loss = f.clone().requires_grad_(), make(name)
    value = loss(f, y)
    value.backward()
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert value.isfinite()
    assert all(p.grad.isfinite().all() for p in [f, *loss.parameters()])
    assert 'zero' not in what or f.grad.abs().max() < 100
    if what in ('one identity', 'all different', 'two pictures', 'a single picture') and name in PAIRS:
        assert value == 0


@pytest.mark.parametrize('name', ['arcface', 'cosface', 'sphere'])
def test_features_on_top_of_a_weight_and_opposite_to_it(name):
    loss = make(name)
    y = torch.arange(CLASSES)
    for sign in (1, -1):
        f = (sign * loss.compute.W.detach()).requires_grad_()
        close = f + 0.1 * torch.randn(f.shape)
        assert loss(close, y).item() == pytest.approx(reference(name, close, y, loss), rel=1e-4, abs=1e-5)
        value = loss(f, y)
        value.backward()
        assert value.isfinite()
        assert f.grad.isfinite().all()
        assert loss.compute.W.grad.isfinite().all()
        assert loss.compute.W.grad.abs().max() < 1e4


@pytest.mark.parametrize('name', LOSSES)
def test_half_precision_around_it_changes_nothing(name):
    f, y = batch(2, P_TIMES_K, length=20.0)
    loss = make(name)
    exact = loss(f, y)
    with torch.autocast('cpu', torch.bfloat16):
        value = loss(f, y)
    value.backward()
    assert value.dtype == torch.float32
    assert torch.equal(value, exact)
    assert f.grad.isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', LOSSES)
def test_features_in_half_precision(name, dtype):
    f, y = batch(2, P_TIMES_K, length=100.0)
    half = f.detach().to(dtype).requires_grad_()
    loss = make(name)
    with torch.autocast('cpu', dtype):
        value = loss(half, y)
    value.backward()
    assert torch.equal(value, loss(half.detach().float(), y))
    assert half.grad.isfinite().all()


@pytest.mark.parametrize('name', sorted(set(LOSSES) - LEARN))
@pytest.mark.parametrize('length', [0.01, 5.0])
def test_unit_length_inside_except_where_length_matters(name, length):
    f, y = batch(0, P_TIMES_K)
    changes = not torch.isclose(LOSSES[name][0](1, 1)(f * length, y), LOSSES[name][0](1, 1)(f, y), rtol=1e-4)
    assert changes == name.startswith('triplet')


@pytest.mark.parametrize(('p', 'k', 'noise'), [(4, 2, 0.3), (4, 2, 1), (16, 4, 0.2), (16, 4, 1), (8, 4, 2)])
def test_one_softplus_over_all_pairs_is_as_much_stronger_than_circle_as_is_told(p, k, noise):
    """The baseline's: each pair once, the whole batch as one anchor."""
    draw = torch.Generator().manual_seed(0)
    y = torch.arange(p).repeat_interleave(k)
    people = torch.randn(p, 512, generator=draw)[y]
    f = (people + noise * torch.randn(p * k, 512, generator=draw)).requires_grad_()
    i, j = torch.triu_indices(len(y), len(y), 1)
    s, same = losses.similarities(f)[i, j], y[i] == y[j]
    pull = (-32 * F.relu(1.25 - s.detach()) * (s - 0.75))[same].logsumexp(0)
    push = (32 * F.relu(s.detach() + 0.25) * (s - 0.25))[~same].logsumexp(0)
    both = F.softplus(pull + push) / len(y), losses.circle(f, y)
    theirs, ours = (torch.autograd.grad(value, f)[0].norm() for value in both)
    assert 1.15 < both[0] / both[1] <= 12
    assert 1.15 < theirs / ours <= 6


# ---------------------------------------------------------------------------------------------------------------------
# 4. clusters


def test_clusters_find_what_is_apart():
    draw = torch.Generator().manual_seed(0)
    group = torch.randint(8, (40,), generator=draw)
    x = 10 * torch.eye(8)[group] + 0.1 * torch.randn(40, 8, generator=draw)
    found = losses.clusters(x, 8)
    assert torch.equal(found[:, None] == found, group[:, None] == group)


@pytest.mark.parametrize('seed', range(3))
def test_clusters_equal_scipy_from_the_same_start(seed):
    vq = pytest.importorskip('scipy.cluster.vq')
    x = F.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(seed)))
    start = losses.clusters(x, 8, rounds=0)
    centers = torch.stack([x[start == c].mean(0) for c in range(8)]).numpy()
    found = losses.clusters(x, 8)
    assert not torch.equal(found, start)
    assert found.tolist() == vq.kmeans2(x.numpy(), centers, 10, minit='matrix')[1].tolist()


def test_clusters_are_as_tight_as_those_of_scipy():
    vq = pytest.importorskip('scipy.cluster.vq')
    x = F.normalize(torch.randn(64, 16, generator=torch.Generator().manual_seed(0)))

    def spread(own):
        return sum((x[own == c] - x[own == c].mean(0)).square().sum().item() for c in own.unique())

    # scipy's takes the best of ten random starts.
    best = torch.from_numpy(vq.vq(x.numpy(), vq.kmeans(x.numpy(), 8, iter=10, seed=0)[0])[0])
    assert spread(losses.clusters(x, 8)) < 1.15 * spread(best)
    assert len(losses.clusters(x, 8).unique()) == 8


@pytest.mark.parametrize('n', [1, 2, 5, 7])
def test_fewer_pictures_than_clusters(n):
    f, _ = batch(0, P_TIMES_K)
    assert losses.clusters(f[:n].detach(), 8).unique().numel() == n
    y = torch.tensor([0, 0, 1, 1, 2, 2, 2])[:n]
    value = make('ranked_list_clustered')(f[:n], y)
    assert value.isfinite()
    assert value.item() == pytest.approx(ranked_list_clustered(f[:n].tolist(), y.tolist(), {}), rel=1e-4, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------------------
# 5. by name


def test_pairs_are_those_that_see_nothing_where_everybody_is_there_once():
    f, y = batch(0, range(CLASSES))
    assert {name for name in LOSSES if make(name)(f, y) == 0} == PAIRS


@pytest.mark.parametrize('name', LOSSES)
def test_a_step_moves_what_learns(name):
    loss = make(name)
    before = {key: value.clone() for key, value in loss.state_dict().items()}
    assert bool(before) == (name in LEARN)
    if before:
        optimizer = torch.optim.SGD(loss.parameters(), 0.1)
        first = loss(*batch(0, P_TIMES_K))
        first.backward()
        optimizer.step()
        assert all(not torch.equal(before[key], value) for key, value in loss.state_dict().items())
        assert loss(*batch(0, P_TIMES_K)) < first


def test_words_become_names_and_weights():
    assert losses.parse(['triplet:0.5', 'circle']) == [('triplet', 0.5, {}), ('circle', 1.0, {})]
    assert losses.parse(['center:5e-4', 'contrast:0']) == [('center', 0.0005, {}), ('contrast', 0.0, {})]
    assert losses.parse(['circle:2:gamma=64:m=0.3']) == [('circle', 2.0, {'gamma': 64.0, 'm': 0.3})]
    assert losses.parse(['sphere:1:m=3']) == [('sphere', 1.0, {'m': 3.0})]
    assert losses.parse(['cosface:1:m=0']) == [('cosface', 1.0, {'m': 0.0})]
    assert losses.parse([]) == []


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['tripplet'], 'Did you mean triplet?'),
        (['circel:0.5'], 'Did you mean circle?'),
        (['xyzzy'], "no loss 'xyzzy'. Known here: triplet, "),
        ([''], 'Known here'),
        (['triplet:half'], "expected a weight of 0 or more, as in triplet:0.5, found 'half'"),
        (['triplet:'], "found ''"),
        (['triplet:-1'], "found '-1'"),
        (['triplet:nan'], "found 'nan'"),
        (['triplet:inf'], "found 'inf'"),
        (['triplet:1:2'], "triplet has no setting '2'; its settings are margin"),
        (['circle:1:gama=64'], "no setting 'gama'; its settings are gamma, m"),
        (['center:1:m=1'], 'it has no settings'),
        (['circle:1:gamma=big'], "expected a number above 0 for gamma, found 'big'"),
        (['instance:1:gamma=0'], "expected a number above 0 for gamma, found '0'"),
        (['circle:1:m=inf'], "expected a number of 0 or more for m, found 'inf'"),
        (['sphere:1:m=3.5'], "expected a whole number for m, 1 or more, found '3.5'"),
        (['sphere:1:m=0'], "expected a whole number for m, 1 or more, found '0'"),
        (['supcon:1:temperature=0'], "expected a number above 0 for temperature, found '0'"),
        (['triplet:1:margin=-5'], "expected a number of 0 or more for margin, found '-5'"),
        (['cosface:1:s=-3'], "expected a number above 0 for s, found '-3'"),
        (['ranked_list:1:alpha=0'], "expected a number above 0 for alpha, found '0'"),
        (['ranked_list:1:T=-1'], "expected a number of 0 or more for T, found '-1'"),
        (['text_ce:1:smooth=2'], "expected a number from 0 to 1 for smooth, found '2'"),
        (['triplet', 'circle', 'triplet:2'], '--loss triplet:2: triplet is there already'),
    ],
)
def test_words_that_cannot_be_meant(words, sentence):
    with pytest.raises(Problem) as problem:
        losses.parse(words)
    assert sentence in str(problem.value)


def test_the_sum_weighs_and_tells_each():
    f, y = batch(0, P_TIMES_K)
    total = losses.Sum([('triplet', 0.5, {}), ('center', 0.01, {}), ('circle', 1.0, {})], CLASSES, [DIM])
    value, each = total(f, y)
    assert list(each) == ['triplet', 'center', 'circle']
    assert not any(v.requires_grad for v in each.values())
    assert each['triplet'] == losses.triplet(f, y)
    assert value.item() == pytest.approx((0.5 * each['triplet'] + 0.01 * each['center'] + each['circle']).item())
    value.backward()
    assert f.grad.norm() > 0
    assert [p.shape for p in total.parameters()] == [(CLASSES, DIM)]
    assert list(total.state_dict()) == ['losses.center.compute.centers']


def test_the_sum_of_nothing():
    value, each = losses.Sum([], CLASSES, [DIM])(*batch(0, P_TIMES_K))
    assert (value.item(), value.dtype, each) == (0.0, torch.float32, {})


@pytest.mark.parametrize(
    ('word', 'expected'),
    [
        ('triplet:1:margin=1', partial(losses.triplet, margin=1)),
        ('circle:1:gamma=64:m=0.4', partial(losses.circle, gamma=64, m=0.4)),
        ('instance:1:gamma=64', partial(losses.instance, gamma=64)),
        ('ranked_list:1:m=0.8:T=10', partial(losses.ranked_list, m=0.8, T=10)),
        ('ranked_list_clustered:1:alpha=1.5', partial(losses.ranked_list_clustered, alpha=1.5)),
    ],
)
def test_settings_reach_the_loss(word, expected):
    f, y = batch(0, P_TIMES_K)
    total = losses.Sum(losses.parse([word]), CLASSES, [DIM])
    assert total(f, y)[0].item() == pytest.approx(expected(f, y).item())
    assert total(f, y)[0].item() != pytest.approx(make(word.split(':')[0])(f, y).item())


def test_settings_reach_a_margin():
    f, y = batch(0, P_TIMES_K)
    total = losses.Sum(losses.parse(['arcface:1:degrees=10:s=30']), CLASSES, [DIM])
    cos = losses.unit(f) @ losses.unit(total.losses['arcface'].compute.W).T
    own = torch.arange(len(y))
    angle = cos[own, y].acos() + math.radians(10)
    expected = F.cross_entropy(30 * cos.index_put((own, y), angle.cos()), y) / len(y)
    torch.testing.assert_close(total(f, y)[0], expected)
