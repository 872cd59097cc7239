"""Changes to whole batches, against torchvision's changes to one picture: python -m pytest tests/test_augment.py"""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch.nn import functional as F
from torchvision import transforms as T

from reid import augment, data
from reid.augment import ERASING, POLICIES, Augment, normalise

ERASE = {'scale': (0.02, 0.4), 'ratio': (0.3, 1 / 0.3)}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def noise(b=1, height=64, width=32):
    """Pictures that are nowhere the same."""
    return torch.randint(0, 256, (b, 3, height, width), dtype=torch.uint8)


def pil(x):
    return Image.fromarray(x.permute(1, 2, 0).numpy())


def bytes_of(x):
    """Normalised -> uint8 again."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (data.MEAN, data.STD))
    return ((x * std + mean) * 255).round().to(torch.uint8)


def same_distribution(ours, theirs):
    """By the Kolmogorov-Smirnov test, which also holds, on the safe side, for whole numbers."""
    return stats.ks_2samp(np.asarray(ours), np.asarray(theirs)).pvalue > 0.001


def correlation(columns):
    """The greatest between two of the columns."""
    return abs(np.corrcoef(columns.numpy().T)[np.triu_indices(columns.shape[1], 1)]).max()


# ---------------------------------------------------------------------------------------------------------------------
# 1. in and out


def test_every_byte_is_normalised_as_torchvision_does():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = data.test_transform(16, 16)(pil(x[0]))
    assert (normalise(x)[0] - expected).abs().max() < 1e-6


def test_with_everything_off_a_picture_is_as_in_test_or_its_mirror_image():
    x = noise(20)
    for changed, one in zip(Augment(64, 32, shift=False)(x), x, strict=True):
        plain = data.test_transform(64, 32)(pil(one))
        assert min((changed - plain).abs().max(), (changed - plain.flip(2)).abs().max()) < 1e-6


@pytest.mark.parametrize('b', [1, 5])
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_what_goes_in_is_left_as_it_is_and_what_comes_out_is_channels_last(b, layout):
    x = noise(b).contiguous(memory_format=layout)
    before = x.clone()
    y = Augment(64, 32, erasing_p=1.0, erasing='noise', color_jitter=True, gray_patch_p=1.0)(x)
    assert torch.equal(x, before)
    assert y.dtype == torch.float32
    assert y.shape == (b, 3, 64, 32)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert normalise(x).is_contiguous(memory_format=torch.channels_last)


def test_the_memory_format_does_not_matter():
    x, change = noise(6), Augment(64, 32, erasing_p=0.5, color_jitter=True, gray_patch_p=0.5)
    batches = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(1)
        batches.append(change(x.contiguous(memory_format=layout)))
    assert torch.equal(*batches)


@pytest.mark.parametrize('erasing', ERASING)
def test_a_seed_gives_the_same_batch_and_another_one_another(erasing):
    x = noise(8)
    change = Augment(64, 32, erasing_p=0.5, erasing=erasing, color_jitter=True, gray_patch_p=0.5)

    def batch(seed):
        torch.manual_seed(seed)
        return change(x)

    assert torch.equal(batch(3), batch(3))
    assert not torch.equal(batch(3), batch(4))
    if torch.cuda.is_available():
        torch.manual_seed(3)
        assert (change(x.cuda()).cpu() - batch(3)).abs().max() < 0.02  # a byte may be rounded the other way


@pytest.mark.parametrize(
    'settings', [{}, {'shift': False, 'erasing_p': 1.0}, {'shift': False, 'gray_patch_p': 1.0}, {'color_jitter': True}]
)
def test_every_picture_of_a_batch_has_a_draw_of_its_own(settings):
    batch = Augment(64, 32, **settings)(noise().expand(16, -1, -1, -1))
    assert len({picture.numpy().tobytes() for picture in batch}) > 12


@pytest.mark.parametrize('byte', [0, 255])
def test_black_and_white_do_not_wrap_around(byte):
    x = torch.full((64, 3, 64, 32), byte, dtype=torch.uint8)
    found = bytes_of(Augment(64, 32, shift=False, color_jitter=True, gray_patch_p=1.0)(x))
    assert (found == 0).all() if byte == 0 else found.min() >= 255 * 0.9 - 1


# ---------------------------------------------------------------------------------------------------------------------
# 2. mirror and shift


def test_half_are_mirrored_and_all_shifts_are_as_likely_as_with_torchvision():
    height, width, pad, n = 128, 16, 5, 3000
    down = torch.arange(100, 100 + height, dtype=torch.uint8)[:, None].expand(-1, width)
    right = torch.arange(100, 100 + width, dtype=torch.uint8).expand(height, -1)
    x = torch.stack([down, right, right])  # each pixel tells where it came from

    def places(batch):
        """Mirrored or not, and the shift down and to the right of the (mirrored) picture, by two pixels of it."""
        here, beside = bytes_of(batch)[:, :2, height // 2, width // 2 : width // 2 + 2].int().unbind(2)
        mirrored = beside[:, 1] < here[:, 1]
        column = torch.where(mirrored, 100 + width - 1 - here[:, 1], here[:, 1] - 100)
        return mirrored, 100 + height // 2 - here[:, 0], width // 2 - column

    ours = Augment(height, width)
    theirs = T.Compose([T.RandomHorizontalFlip(), T.Pad(pad), T.RandomCrop((height, width))])
    found = places(torch.cat([ours(x.expand(500, -1, -1, -1)) for _ in range(n // 500)]))
    expected = places(normalise(torch.stack([theirs(x) for _ in range(n)])))
    assert found[0].float().mean().item() == pytest.approx(0.5, abs=0.03)
    for mine, other in zip(found[1:], expected[1:], strict=True):
        assert mine.unique().tolist() == other.unique().tolist() == list(range(-pad, pad + 1))
        assert stats.chisquare((mine + pad).bincount()).pvalue > 0.001  # all of them alike
        assert same_distribution(mine, other)
    assert correlation(torch.stack(found, 1)) < 0.07


def test_what_is_shifted_in_is_black():
    x = noise(30) | 1  # nowhere black
    for changed, one in zip(bytes_of(Augment(64, 32)(x)), x, strict=True):
        pad = 2  # 10 * 64 / 256, to the even number
        framed = torch.nn.functional.pad(torch.stack([one, one.flip(2)]), [pad] * 4)
        cuts = [framed[m, :, i : i + 64, j : j + 32] for m in (0, 1) for i in range(5) for j in range(5)]
        assert sum(torch.equal(changed, cut) for cut in cuts) == 1


# ---------------------------------------------------------------------------------------------------------------------
# 3. boxes


def measured(changed):
    """(B, H, W), True in a box -> share of pictures with one, and of those: area, log ratio, top, left. A box is found
    by its first and last line, and has to be full."""
    has = changed.flatten(1).any(1)
    changed = changed[has]
    down, across = changed.any(2), changed.any(1)
    h, w = down.sum(1), across.sum(1)
    assert torch.equal(changed.sum((1, 2)), h * w)
    top, left = down.byte().argmax(1), across.byte().argmax(1)
    line = torch.arange(down.shape[1])
    assert torch.equal(down, (top[:, None] <= line) & (line < (top + h)[:, None]))
    return has.float().mean().item(), h * w, (h / w).log(), top, left


@pytest.mark.parametrize(('height', 'width', 'p'), [(64, 32, 0.5), (32, 32, 1.0), (96, 16, 1.0)])
def test_erased_boxes_are_those_of_torchvision(height, width, p):
    n = 3000
    white = torch.full((n, 3, height, width), 255, dtype=torch.uint8)
    ours = Augment(height, width, shift=False, erasing_p=p)(white)
    theirs = T.RandomErasing(p, **ERASE)
    one = torch.ones(1, height, width)
    found = measured((ours == 0).all(1))
    expected = measured(torch.cat([theirs(one) for _ in range(n)]) == 0)
    assert found[0] == pytest.approx(expected[0], abs=0.04)
    for mine, other in zip(found[1:], expected[1:], strict=True):
        assert same_distribution(mine, other)
    assert found[1].max() <= 0.4 * height * width * 1.1


def test_where_no_box_fits_in_ten_tries_nothing_is_erased():
    height, width, n = 100, 4, 3000  # only the tallest boxes are narrow enough
    *_, h, w = augment.draw(n, height, width, 1.0)
    theirs = T.RandomErasing(1.0, **ERASE)
    untouched = np.mean([bool(theirs(torch.ones(1, height, width)).all()) for _ in range(n)])
    assert 0.02 < untouched < 0.98
    assert ((h == 0) & (w == 0)).float().mean() == pytest.approx(untouched, abs=0.04)
    assert ((h == 0) == (w == 0)).all()


def test_wide_boxes_are_as_many_as_is_told():
    *_, h, w = augment.draw(20000, 256, 128, 1.0)
    assert (w > h).float().mean() / (h > 0).float().mean() == pytest.approx(0.40, abs=0.02)


def test_a_box_may_touch_every_border():
    top, left, h, w = augment.draw(20000, 16, 8, 1.0)
    there = h > 0
    for start, side, whole in ((top, h, 16), (left, w, 8)):
        assert start.min() == 0
        assert (start + side)[there].max() == whole


@pytest.mark.parametrize('name', ['mean', 'black', 'shifted'])
def test_erasing_writes_its_colour_and_leaves_the_rest(name):
    x = torch.full((50, 3, 64, 32), 200, dtype=torch.uint8)
    y = Augment(64, 32, shift=False, erasing_p=1.0, erasing=name)(x)
    colour = {
        'mean': torch.zeros(3),
        'black': data.test_transform(4, 4)(Image.new('RGB', (4, 4)))[:, 0, 0],
        'shifted': torch.tensor([0.485, 0.456, 0.406]),
    }[name][:, None, None]
    written = (y - colour).abs().amax(1) < 1e-6
    kept = (y - normalise(x)).abs().amax(1) < 1e-6
    assert (written ^ kept).all()
    assert written.flatten(1).any(1).all()


def test_noise_is_standard_normal_and_drawn_for_each_value():
    x = torch.full((200, 3, 64, 32), 200, dtype=torch.uint8)
    y = Augment(64, 32, shift=False, erasing_p=1.0, erasing='noise')(x)
    inside = ((y - normalise(x)).abs() > 1e-6).any(1)
    values = y.permute(0, 2, 3, 1)[inside]
    assert len(values.unique()) > 0.99 * values.numel()  # float32 draws meet by chance
    assert stats.kstest(values.flatten().numpy()[:20000], 'norm').pvalue > 0.001
    assert correlation(values) < 0.02
    measured(inside)  # boxes


def test_a_patch_turns_as_grey_as_pillow_makes_it():
    x = noise(40)
    x[:, 0] |= 128
    x[:, 2] &= 127  # nowhere grey of itself
    y = bytes_of(Augment(64, 32, shift=False, gray_patch_p=1.0)(x))
    inside = (y == y[:, :1]).all(1)
    measured(inside)  # boxes
    for changed, box, one in zip(y, inside, x, strict=True):
        grey = torch.from_numpy(np.array(pil(one).convert('L'))).int()
        assert any(
            torch.equal(changed[:, ~box], side[:, ~box]) and (changed[0].int() - other)[box].abs().max() <= 1
            for side, other in ((one, grey), (one.flip(2), grey.flip(1)))
        )


def test_patches_come_with_their_probability_and_in_the_size_of_erased_boxes():
    x = torch.tensor([250, 10, 10], dtype=torch.uint8).view(1, 3, 1, 1).expand(3000, 3, 64, 32)
    y = bytes_of(Augment(64, 32, shift=False, gray_patch_p=0.4)(x))
    found = measured(y[:, 0] == y[:, 1])
    theirs = T.RandomErasing(0.4, **ERASE)
    expected = measured(torch.cat([theirs(torch.ones(1, 64, 32)) for _ in range(3000)]) == 0)
    assert found[0] == pytest.approx(0.4, abs=0.04)
    for mine, other in zip(found[1:], expected[1:], strict=True):
        assert same_distribution(mine, other)


# ---------------------------------------------------------------------------------------------------------------------
# 4. colours


@pytest.mark.parametrize('f', [0.9, 1.0, 1.1])
@pytest.mark.parametrize('kind', [0, 1, 2])
def test_each_kind_of_jitter_is_that_of_torchvision(kind, f):
    theirs = [T.functional.adjust_brightness, T.functional.adjust_contrast, T.functional.adjust_saturation][kind]
    x = noise(4)
    x[0] |= 192
    x[1] &= 63
    found = augment.adjust(augment.rows(x).float(), torch.full((4,), kind), torch.full((4,), f))
    expected = torch.stack([theirs(one / 255, f) for one in x]) * 255
    assert (augment.pictures(found) - expected).abs().max() < 0.05  # its weights of green and red differ a little


def test_jitter_has_the_mean_and_spread_of_torchvision():
    x, n = noise(), 2000
    x[:, 0] //= 2  # has a colour, on the whole
    ours = augment.pictures(augment.jitter(augment.rows(x.expand(n, -1, -1, -1)))).float()
    theirs = T.ColorJitter(brightness=0.1, contrast=0.1, saturation=0.1)
    expected = torch.stack([theirs(x[0] / 255) for _ in range(n)]) * 255  # in bytes it would cut off, three times

    def traits(y):  # brightness, contrast, saturation of each picture
        return y.mean((1, 2, 3)), y.mean(1).flatten(1).std(1), (y[:, 1] - y[:, 0]).mean((1, 2))

    for mine, other in zip(traits(ours), traits(expected), strict=True):
        assert mine.mean() == pytest.approx(other.mean().item(), rel=0.008)
        assert mine.std() == pytest.approx(other.std().item(), rel=0.08)


def test_jitter_goes_through_all_orders_and_rounds_once_at_the_end(monkeypatch):
    seen, x = [], augment.rows(noise(600) // 2)
    monkeypatch.setattr(augment, 'adjust', lambda x, kind, f: seen.append(kind) or x + 0.3)
    assert torch.equal(augment.jitter(x), x + 1)
    orders, count = torch.stack(seen, 1).unique(dim=0, return_counts=True)
    assert len(orders) == 6
    assert all(sorted(order) == [0, 1, 2] for order in orders.tolist())
    assert stats.chisquare(count).pvalue > 0.001


# ---------------------------------------------------------------------------------------------------------------------
# 5. sizes, policies


@pytest.mark.parametrize(
    ('scale', 'size'), [(1.0, (100, 50)), (0.75, (80, 32)), (0.5, (48, 32)), (0.01, (16, 16)), (0.999, (96, 48))]
)
def test_a_scale_gives_multiples_of_sixteen_and_one_changes_nothing(scale, size):
    assert Augment(100, 50)(noise(2, 100, 50), scale).shape == (2, 3, *size)


def test_val_is_seen_at_the_same_scale_and_unchanged():
    x = noise(2, 128, 64)
    plain = Augment(128, 64, erasing_p=1.0, color_jitter=True).plain
    assert torch.equal(plain(x), normalise(x))
    small = F.interpolate(x.float(), (64, 32), mode='bilinear', antialias=True).round()
    torch.testing.assert_close(plain(x, 0.5), normalise(small.to(torch.uint8)), atol=0.02, rtol=0)


def test_a_smaller_batch_is_resized_smoothly_and_shifted_less():
    x = noise(3, 128, 64) // 4 + 100
    y = Augment(128, 64, shift=False)(x, 0.5)
    for changed, one in zip(bytes_of(y), x, strict=True):
        expected = torch.from_numpy(np.array(pil(one).resize((32, 64), Image.Resampling.BILINEAR))).permute(2, 0, 1)
        assert min((changed.int() - e.int()).abs().max() for e in (expected, expected.flip(2))) <= 1
    white = torch.full((200, 3, 256, 128), 255, dtype=torch.uint8)
    assert (bytes_of(Augment(256, 128)(white)) == 0).all((1, 3)).sum(1).max() == 10
    assert (bytes_of(Augment(256, 128)(white, 0.5)) == 0).all((1, 3)).sum(1).max() == 5


@pytest.mark.parametrize('name', POLICIES)
def test_a_policy_treats_each_picture_by_itself_and_can_be_sent_to_workers(name):
    policy = pickle.loads(pickle.dumps(POLICIES[name]()))
    x = noise(1).expand(24, -1, -1, -1).contiguous(memory_format=torch.channels_last)
    before = x.clone()
    y = augment.each(policy, x)
    assert torch.equal(x, before)
    assert y.shape == x.shape
    assert y.dtype == torch.uint8
    kinds = len({picture.numpy().tobytes() for picture in y})
    assert kinds == 1 if name == 'none' else kinds > 6


def test_a_policy_is_drawn_anew_and_by_the_seed():
    x = noise(16)
    for name in ('autoaugment', 'randaugment', 'trivialaugment', 'augmix'):
        policy, batches = POLICIES[name](), []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            batches.append(augment.each(policy, x))
        assert torch.equal(batches[0], batches[1])
        assert not torch.equal(batches[0], batches[2])
