"""Losses on the feature, added to cross entropy by name: --loss triplet:0.5 circle:1:gamma=64

Every one is loss(feature, label): feature (B, D), label (B,) -> a scalar. What the functions and modules below are
given is float32, under autocast too: `Float32` around each of them sees to that.

Where pictures are compared with each other, an anchor counts if the batch holds another picture of its identity and
one of somebody else. A batch without such an anchor gives zero. Those losses need batches of P identities with K
pictures each, in which every picture counts; `PAIRS` names them.

Circle, instance, instance_id, arcface, cosface and sphere are means divided by the size of the batch once more, as in
the well-known PyTorch baseline. Circle is not as strong as there: the baseline takes one softplus over all pairs of the
batch, which makes 1.2 to 12 times this loss and 1.2 to 6 times its gradient, depending on the batch.
"""

import difflib
import inspect
import math
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from reid import processes
from reid.problem import Problem

# ---------------------------------------------------------------------------------------------------------------------
# 1. what they share


class Float32(nn.Module):
    """A loss, be it a function or a module with weights, that computes in float32 whatever surrounds it."""

    def __init__(self, compute):
        super().__init__()
        self.compute = compute

    def forward(self, feature, label):
        with torch.autocast(feature.device.type, enabled=False):
            return self.compute(feature.float(), label)


def unit(f):
    """f (B, D) -> the same of length 1; zeros stay zeros, and their gradient is not blown up as by F.normalize."""
    length = torch.linalg.vector_norm(f, dim=1, keepdim=True)
    return f / torch.where(length > 0, length, 1)


def similarities(f):
    """f (B, D) -> cosines (B, B)."""
    return unit(f) @ unit(f).T


def distances(f):
    """f (B, D) -> Euclidean distances (B, B), from differences: exactly 0 for equal rows, with a gradient of 0."""
    return torch.cdist(f, f, compute_mode='donot_use_mm_for_euclid_dist')


def pairs(y):
    """y (B,) -> the anchors that count, (A,), and who is the same and who is another to each of them, (A, B) both."""
    same = y[:, None] == y  # (B, B)
    other = ~same
    same = same & ~torch.eye(len(y), dtype=torch.bool, device=y.device)  # nobody is his own positive
    rows = (same.any(1) & other.any(1)).nonzero()[:, 0]
    return rows, same[rows], other[rows]


def mean(values):
    """The mean, or 0 with a gradient where there is nothing to average."""
    return values.sum() / max(1, len(values))


def soft_maximum(x, mask):
    """log sum exp of each row of x (A, B) over its mask -> (A,)."""
    return x.masked_fill(~mask, -math.inf).logsumexp(1)


# ---------------------------------------------------------------------------------------------------------------------
# 2. pictures against pictures


def triplet(f, y, margin=0.3, bend=F.relu):
    """Batch-hard triplets, L_BH of arXiv 1703.07737, as a mean: [m + max_p D(a, p) - min_n D(a, n)]+ for each anchor.

    The feature keeps its length, as in the strong baseline. With softplus for a bend and no margin it never stops
    pulling: that is the paper's soft margin, `triplet_soft`.
    """
    rows, same, other = pairs(y)
    d = distances(f)[rows]  # (A, B)
    furthest, nearest = d.masked_fill(~same, -math.inf).amax(1), d.masked_fill(~other, math.inf).amin(1)  # (A,)
    return mean(bend(margin + furthest - nearest))


def circle(f, y, m=0.25, gamma=32):
    """Circle loss, arXiv 2002.10857, eq. 6, for each anchor with its positives s_p and negatives s_n:

    log(1 + sum_n exp(gamma a_n (s_n - m)) sum_p exp(-gamma a_p (s_p - (1 - m)))), where the weights a_n = [s_n + m]+
    and a_p = [1 + m - s_p]+ have no gradient. The mean over the anchors, divided by the batch.
    """
    rows, same, other = pairs(y)
    s = similarities(f)[rows]  # (A, B)
    pull = -gamma * F.relu(1 + m - s.detach()) * (s - (1 - m))
    push = gamma * F.relu(s.detach() + m) * (s - m)
    return mean(F.softplus(soft_maximum(pull, same) + soft_maximum(push, other))) / len(f)


def contrast(f, y, near=0.0, far=1.0):
    """Contrastive loss (Hadsell et al., CVPR 2006), on unit length and not squared: [D_p - near]+ and [far - D_n]+.
    The mean over the positives that have a loss, plus that over the negatives that have one."""
    rows, same, other = pairs(y)
    d = distances(unit(f))[rows]  # (A, B)
    pull, push = F.relu(d - near), F.relu(far - d)
    return mean(pull[same & (pull > 0)]) + mean(push[other & (push > 0)])


def lifted(f, y, near=0.0, far=1.0):
    """Lifted structure, generalised to several positives: L_LG of arXiv 1703.07737, on unit length, as a mean of
    [log sum_p exp(D(a, p) - near) + log sum_n exp(far - D(a, n))]+"""
    rows, same, other = pairs(y)
    d = distances(unit(f))[rows]  # (A, B)
    return mean(F.relu(soft_maximum(d - near, same) + soft_maximum(far - d, other)))


def supcon(f, y, temperature=0.1):
    """Supervised contrastive loss, L_out of arXiv 2004.11362, eq. 2, as a mean: how surprising each positive is, were
    one of the others in the batch drawn by exp(cos / temperature)."""
    rows, same, other = pairs(y)
    z = similarities(f)[rows] / temperature  # (A, B)
    log_p = z - soft_maximum(z, same | other)[:, None]
    return mean(-torch.where(same, log_p, 0).sum(1) / same.sum(1))


def ranked_list(f, y, **settings):
    """Ranked list loss, arXiv 1903.03238, on unit length: the mean of L_P + L_N over the anchors."""
    rows, same, other = pairs(y)
    positive, negative = ranked(distances(unit(f))[rows], same, other, **settings)
    return mean(positive + negative)


def ranked(d, same, other, alpha=2.0, m=1.3, T=1.0):
    """L_P = mean of [d - (alpha - m)]+ over the positives, L_N = sum of w (alpha - d) / sum of w over the negatives
    with d < alpha, w = exp(T (alpha - d)): d (A, B) -> (A,) both. The gradient goes through w as well."""
    positive = torch.where(same, F.relu(d - (alpha - m)), 0).sum(1) / same.sum(1)
    w = torch.where(other & (d < alpha), torch.exp(T * (alpha - d)), 0)
    return positive, (w * (alpha - d)).sum(1) / w.sum(1).clamp(min=1)  # a weight is 1 at least, if there is any


def ranked_list_clustered(f, y, k=8, **settings):
    """Ranked list loss in which strangers matter only where they look alike: k-means cuts the batch into k clusters.

    The mean of L_P over each identity, summed over identities; plus the mean of L_N, of negatives in the same cluster,
    over each cluster of more than 3 pictures, summed over clusters. So it is several times as large as ranked_list.
    """
    rows, same, other = pairs(y)
    f = unit(f)
    cluster = clusters(f.detach(), k)
    alike = cluster[rows, None] == cluster  # (A, B)
    positive, negative = ranked(distances(f)[rows], same, other & alike, **settings)
    size = alike.sum(1)  # (A,)
    return (positive / (same.sum(1) + 1) + torch.where(size > 3, negative / size, 0)).sum()


def clusters(x, k, rounds=10):
    """k-means of x (B, D) -> the cluster of each row, (B,). It starts from rows that are far from each other and draws
    nothing: the same batch gives the same clusters."""
    centers = x[:1]
    for _ in range(k - 1):  # of too few rows the same one comes again, to an empty cluster
        centers = torch.cat([centers, x[torch.cdist(x, centers).amin(1).argmax(0, keepdim=True)]])
    for _ in range(rounds):
        member = F.one_hot(torch.cdist(x, centers).argmin(1), len(centers)).to(x.dtype)  # (B, k)
        size = member.sum(0)[:, None]
        centers = torch.where(size > 0, member.T @ x / size.clamp(min=1), centers)  # an empty one stays where it is
    return torch.cdist(x, centers).argmin(1)


def instance(f, y, gamma=32):
    """Instance loss, arXiv 1711.05535: each picture of the batch is a class of its own. Cross entropy of
    gamma cos(f_i, f_j) over all j, where i itself is the right answer; the mean, divided by the batch.

    y is not looked at: two pictures of one person are pushed apart as well, so P x K batches harm it.
    """
    return F.cross_entropy(gamma * similarities(f), torch.arange(len(f), device=f.device)) / len(f)


def instance_id(f, y, gamma=32):
    """Instance loss where each identity of the batch is a class: cross entropy, as above, between the means of each
    one's unit-length features, brought to unit length again. Divided by the batch (its pictures, not identities)."""
    _, own = y.unique(return_inverse=True)
    total = F.one_hot(own).to(f.dtype).T @ unit(f)  # (P, D): a sum points where the mean does
    return F.cross_entropy(gamma * similarities(total), torch.arange(len(total), device=f.device)) / len(f)


# ---------------------------------------------------------------------------------------------------------------------
# 3. pictures against weights, which an optimiser has to be given


class Center(nn.Module):
    """Center loss, Wen et al., ECCV 2016, eq. 2, as a mean: ||x_i - c_y||^2 / 2. The feature keeps its length."""

    def __init__(self, nclasses, dim):
        super().__init__()
        self.centers = nn.Parameter(torch.randn(nclasses, dim))

    def forward(self, f, y):
        return (f - self.centers[y]).square().sum(1).mean() / 2


class Verification(nn.Module):
    """Same or not the same, arXiv 1611.05666: a linear layer on the squared difference (f_1 - f_2)^2 and softmax. The
    feature keeps its length. All pairs of the batch take part; the few that are the same weigh half of the sum."""

    def __init__(self, dim):
        super().__init__()
        self.head = nn.Linear(dim, 2)

    def forward(self, f, y):
        rows, same, other = pairs(y)
        i, j = (same | other).nonzero(as_tuple=True)
        kind = same[i, j].long()
        z = self.head((f[rows[i]] - f[j]).square())  # (pairs, D) -> (pairs, 2)
        losses = F.cross_entropy(z, kind, reduction='none')
        return (mean(losses[kind == 1]) + mean(losses[kind == 0])) / 2


class MarginSoftmax(nn.Module):
    """Cross entropy of s cos(theta_j) over the classes j, theta_j between feature and W_j, where `harder` lowers the
    cosine of the feature's own class. The mean, divided by the batch."""

    def __init__(self, nclasses, dim, harder, s):
        super().__init__()
        self.W = nn.Parameter(torch.randn(nclasses, dim))
        self.harder, self.s = harder, s

    def forward(self, f, y):
        y = y[:, None]
        cos = unit(f) @ unit(self.W).T  # (B, nclasses)
        return F.cross_entropy(self.s * cos.scatter(1, y, self.harder(cos.gather(1, y))), y[:, 0]) / len(f)


def arcface(cos, degrees=28.6):
    """cos(theta + m), ArcFace, arXiv 1801.07698, eq. 3, by the sum of angles: the slope of acos has no bound. Past
    theta = pi - m, where it would rise again, cos(theta) - m sin(m) goes on falling."""
    m = math.radians(degrees)
    sin = (1 - cos * cos).clamp(min=1e-7).sqrt()
    return torch.where(cos >= -math.cos(m), cos * math.cos(m) - sin * math.sin(m), cos - m * math.sin(m))


def cosface(cos, m=0.35):
    """cos(theta) - m, CosFace, arXiv 1801.09414, eq. 4."""
    return cos - m


def sphere(cos, m=4):
    """psi(theta) = (-1)^k cos(m theta) - 2k on [k pi / m, (k + 1) pi / m], SphereFace, arXiv 1704.08063. The paper
    multiplies by the feature's length; here that is 1, as in the baseline."""
    m = int(m)
    k = (m * cos.detach().clamp(-1, 1).acos() / math.pi).floor()
    before, now = torch.ones_like(cos), cos
    for _ in range(m - 1):
        before, now = now, 2 * cos * now - before  # cos((n + 1) theta) from n and n - 1
    return (1 - 2 * (k % 2)) * now - 2 * k


# ---------------------------------------------------------------------------------------------------------------------
# 4. pictures against texts: `texts` is a reid.clip_texts.Texts, and the feature ends with the picture's projection


class TextSupcon(nn.Module):
    """L_i2t + L_t2i of CLIP-ReID, arXiv 2211.13977, eq. 1 to 4: supervised contrastive, both ways, between the pictures
    of the batch and their texts, which are what is learnt. s(V, T) is their inner product, as in its code."""

    def __init__(self, texts):
        super().__init__()
        self.texts = texts

    def forward(self, f, y):
        everyone, own = y.unique(return_inverse=True)
        s = f @ self.texts(everyone)[own].T  # (B, B): a row for each picture, a column for the text of each
        same = y[:, None] == y
        both = s.log_softmax(1), s.log_softmax(0).T
        return sum((-torch.where(same, log_p, 0).sum(1) / same.sum(1)).mean() for log_p in both)


class TextCE(nn.Module):
    """L_i2tce of the same, eq. 8: whose text is it, of all? Cross entropy over s(V, T), smoothed; the texts stay."""

    def __init__(self, texts, smooth=0.1):
        super().__init__()
        self.register_buffer('known', texts.all(), persistent=False)  # (nclasses, E)
        self.smooth = smooth

    def forward(self, f, y):
        return F.cross_entropy(f[:, -self.known.shape[1] :] @ self.known.T, y, label_smoothing=self.smooth)


# ---------------------------------------------------------------------------------------------------------------------
# 5. by name


def plain(compute, **fixed):
    """A loss without weights, from its function: what it compares is in the batch."""

    def make(nclasses, dim, **settings):
        return Float32(partial(compute, **fixed, **settings))

    return make, settings_of(compute) - set(fixed)


def margin(harder, s):
    def make(nclasses, dim, s=s, **settings):
        return Float32(MarginSoftmax(nclasses, dim, partial(harder, **settings), s))

    return make, settings_of(harder) | {'s'}


def settings_of(compute):
    """The numbers that a function takes by name."""
    defaults = {name: p.default for name, p in inspect.signature(compute).parameters.items()}
    return {name for name, value in defaults.items() if isinstance(value, int | float)}


RANKED = {'alpha', 'm', 'T'}
# How each is made, make(nclasses, dim, **settings), of TEXTS make(texts, **settings), and the settings that it knows.
LOSSES = {
    'triplet': plain(triplet),
    'triplet_soft': plain(triplet, margin=0, bend=F.softplus),
    'circle': plain(circle),
    'contrast': plain(contrast),
    'lifted': plain(lifted),
    'supcon': plain(supcon),
    'ranked_list': (plain(ranked_list)[0], RANKED),
    'ranked_list_clustered': (plain(ranked_list_clustered)[0], RANKED),
    'instance': plain(instance),
    'instance_id': plain(instance_id),
    'center': (lambda nclasses, dim: Float32(Center(nclasses, dim)), set()),
    'verification': (lambda nclasses, dim: Float32(Verification(dim)), set()),
    'arcface': margin(arcface, s=64),
    'cosface': margin(cosface, s=64),
    'sphere': margin(sphere, s=1),
    'text_supcon': (lambda texts: Float32(TextSupcon(texts)), set()),
    'text_ce': (lambda texts, **given: Float32(TextCE(texts, **given)), {'smooth'}),
}

# Those of CLIP-ReID, and the head that each is for.
TEXTS = {'text_supcon': 'clip_text', 'text_ce': 'clip'}

# Of a batch in which everybody is there once they make nothing: they need P identities with K pictures each.
PAIRS = set('triplet triplet_soft circle contrast lifted supcon ranked_list ranked_list_clustered verification'.split())


def parse(words):
    """['triplet:0.5', 'circle:1:gamma=64'] -> [('triplet', 0.5, {}), ('circle', 1.0, {'gamma': 64.0})]"""
    chosen = {}
    for word in words:
        name, *rest = word.split(':')
        if name not in LOSSES:
            near = difflib.get_close_matches(name, LOSSES, 1)
            hint = f'Did you mean {near[0]}? ' if near else ''
            raise Problem(f'--loss {word}: there is no loss {name!r}. {hint}Known here: {", ".join(LOSSES)}')
        weight = number(word, rest.pop(0), f'a weight of 0 or more, as in {name}:0.5') if rest else 1.0
        settings, known = {}, LOSSES[name][1]
        for key, _, text in (item.partition('=') for item in rest):
            if key not in known:
                there = f'its settings are {", ".join(sorted(known))}' if known else 'it has no settings'
                raise Problem(f'--loss {word}: {name} has no setting {key!r}; {there}, as in circle:1:gamma=64')
            settings[key] = number(word, text, *bounds(name, key))
        if name in chosen:
            raise Problem(f'--loss {word}: {name} is there already; name it once, with the weight that you mean')
        chosen[name] = weight, settings
    return [(name, weight, settings) for name, (weight, settings) in chosen.items()]


def bounds(name, key):
    """What a setting may be, in words and as a question. What is no scale is a margin, of 0 or more."""
    if (name, key) == ('sphere', 'm'):
        return 'a whole number for m, 1 or more', lambda value: value >= 1 and value % 1 == 0
    if key == 'smooth':
        return 'a number from 0 to 1 for smooth', lambda value: 0 <= value <= 1
    if key in ('alpha', 'gamma', 's', 'temperature'):
        return f'a number above 0 for {key}', lambda value: value > 0
    return f'a number of 0 or more for {key}', lambda value: value >= 0


def number(word, text, expected, fits=lambda value: value >= 0):
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and fits(value)):
        raise Problem(f'--loss {word}: expected {expected}, found {text!r}')
    return value


class Each(nn.Module):
    """A loss on each of several pieces of the feature by itself."""

    def __init__(self, losses, widths):
        super().__init__()
        self.losses, self.widths = nn.ModuleList(losses), list(widths)

    def forward(self, feature, label):
        return sum(loss(f, label) for loss, f in zip(self.losses, feature.split(self.widths, 1), strict=True))


class Sum(nn.Module):
    """The losses of [(name, weight, settings)] -> their weighted sum, and {name: value without its weight} for the log.

    What the losses learn is in parameters() and state_dict(): it belongs in an optimiser and in a snapshot. The feature
    is made of `pieces`, given by their lengths: of several each is compared by itself, and these losses are added up.
    """

    def __init__(self, chosen, nclasses, pieces, texts=None):
        super().__init__()

        def made(name, given):
            make, _ = LOSSES[name]
            if name in TEXTS:
                return make(texts, **given)
            each = [make(nclasses, width, **given) for width in pieces]
            return Each(each, pieces) if len(pieces) > 1 else each[0]

        self.weights = {name: weight for name, weight, _ in chosen}
        self.losses = nn.ModuleDict({name: made(name, given) for name, _, given in chosen})

    def centers(self):
        """[(centers, the weight of their loss)]: they follow the features by a rule of their own, see reid.optim."""
        return [(part.centers, self.weights['center']) for part in self.modules() if isinstance(part, Center)]

    def forward(self, feature, label):
        feature, label = processes.gathered(feature), processes.gathered(label)  # of all processes: a whole batch
        values = {name: loss(feature, label) for name, loss in self.losses.items()}
        total = sum((self.weights[name] * value for name, value in values.items()), feature.new_zeros(()).float())
        return total, {name: value.detach() for name, value in values.items()}
