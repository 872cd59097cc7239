"""python -m pytest tests/test_toy.py

The toy data set has the shape of Market-1501, comes out the same everywhere, and gives nobody away but by their looks.
"""

import re
from collections import Counter

import numpy as np
import pytest
import yaml
from PIL import Image

from reid import toy
from reid.problem import Problem

MARKET = re.compile(r'^(-1|\d{4,})_c([1-6])s([1-6])_(\d{6})_(\d{2})\.jpg$')
SMALL = {'ids': 8, 'images': 6, 'progress': False}


def bytes_of(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob('*.jpg'))}


def names(folder, part):
    """(id, camera, sequence, frame, box) of every picture."""
    return [tuple(map(int, MARKET.match(p.name).groups())) for p in sorted((folder / part).iterdir())]


@pytest.fixture(scope='session')
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp('small') / 'toy'
    toy.draw(folder, workers=1, **SMALL)
    return folder


@pytest.fixture(scope='session')
def large(tmp_path_factory):
    """Forty identities: enough for a chance of a wrong answer."""
    folder = tmp_path_factory.mktemp('large') / 'toy'
    toy.draw(folder, ids=40, images=10, seed=3, workers=1, progress=False)
    return folder


def test_names_are_markets(large):
    for part in toy.FOLDERS:
        for path in (large / part).iterdir():
            who, _, _, _, box = MARKET.match(path.name).groups()
            assert -1 <= int(who) <= 40
            assert (box == '00') == (part in ('query', 'gt_bbox'))
    assert toy.name(2, 1, 1, 451, 3) == '0002_c1s1_000451_03.jpg'
    assert toy.name(-1, 6, 2, 99999, 1) == '-1_c6s2_099999_01.jpg'
    assert toy.name(12345, 3, 4, 1, 0) == '12345_c3s4_000001_00.jpg'
    assert toy.name(9999, 3, 4, 1, 0) < '9999_c4'


def test_halves_and_counts(large):
    train, test = ({n[0] for n in names(large, part)} for part in toy.FOLDERS[:2])
    assert len(train) == 20 and min(train) > 0
    assert test >= {-1, 0}
    assert test - {-1, 0} == {n[0] for n in names(large, 'query')} == {n[0] for n in names(large, 'gt_bbox')}
    assert train.isdisjoint(test) and train | test == set(range(-1, 41))
    assert sorted(train) != list(range(1, 21))  # interleaved
    gallery = Counter(n[0] for n in names(large, 'bounding_box_test'))
    total = sum(gallery.values())
    assert 0.10 < gallery[0] / total < 0.20 and 0.12 < gallery[-1] / total < 0.22
    for people in (len(names(large, 'bounding_box_train')), total - gallery[0] - gallery[-1]):
        assert 8 * 20 < people < 12 * 20
    record = yaml.safe_load((large / 'toy.yaml').read_text())
    assert record['ids'] == 40 and record['images'] == 10 and record['seed'] == 3 and record['version'] == toy.VERSION
    assert record['counts'] == {part: len(names(large, part)) for part in toy.FOLDERS}


def test_every_query_can_be_answered(large):
    gallery, query = names(large, 'bounding_box_test'), names(large, 'query')
    seen = {n[:2] for n in gallery if n[0] > 0}
    assert Counter(n[:2] for n in query) == Counter(seen)  # one for each identity and camera
    for who, cam, *_ in query:
        assert any(w == who and c != cam for w, c in seen)
    several = Counter(n[:2] for n in names(large, 'gt_bbox'))
    assert all(several[n[:2]] >= 2 for n in query)


def test_no_picture_twice(large):
    pictures = bytes_of(large)
    gallery = {b for p, b in pictures.items() if p.startswith(('bounding_box_test', 'bounding_box_train'))}
    assert len(gallery) == sum(p.startswith('bounding') for p in pictures)
    for path, data in pictures.items():
        if path.startswith('query'):
            assert data not in gallery
            assert path.replace('query', 'bounding_box_test') not in pictures


def test_pictures_are_pictures(small):
    for path in small.rglob('*.jpg'):
        with Image.open(path) as image:
            assert image.size == (64, 128) and image.mode == 'RGB' and image.format == 'JPEG'
            assert np.asarray(image).std() > 8, path


def test_same_seed_same_bytes_however_many_workers(small, tmp_path):
    toy.draw(tmp_path / 'two', workers=2, **SMALL)
    assert bytes_of(tmp_path / 'two') == bytes_of(small)
    assert not list(tmp_path.rglob('*.part'))


def test_order_does_not_matter(small):
    for path, *what in reversed(toy.plan(8, 6, 0)[::9]):
        image, quality = toy.picture(0, *what)
        image.save(small.parent / 'again.jpg', quality=quality)
        assert (small.parent / 'again.jpg').read_bytes() == (small / path).read_bytes()


def test_another_seed_other_pictures(small, tmp_path):
    toy.draw(tmp_path / 'toy', workers=1, seed=1, ids=8, images=6, progress=False)
    assert set(bytes_of(tmp_path / 'toy').values()).isdisjoint(bytes_of(small).values())


def test_left_alone_when_complete(small, capsys):
    before = {p: p.stat().st_mtime_ns for p in small.rglob('*.*')}
    toy.draw(small, workers=1, **SMALL)
    assert before == {p: p.stat().st_mtime_ns for p in small.rglob('*.*')}
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_interrupted_is_finished(small, tmp_path, monkeypatch):
    folder, seen, real = tmp_path / 'toy', [], toy.picture

    def tired(*what):
        seen.append(what)
        if len(seen) > 30:
            raise KeyboardInterrupt
        return real(*what)

    monkeypatch.setattr(toy, 'picture', tired)
    with pytest.raises(KeyboardInterrupt):
        toy.draw(folder, workers=1, **SMALL)
    assert (folder / 'toy.part').exists() and not (folder / 'toy.yaml').exists() and len(bytes_of(folder)) == 30

    (folder / 'query' / 'x.jpg.7.part').write_bytes(b'cut off')  # as after a power cut
    seen[:] = []
    monkeypatch.setattr(toy, 'picture', lambda *what: seen.append(what) or real(*what))
    toy.draw(folder, workers=1, **SMALL)
    assert bytes_of(folder) == bytes_of(small)
    assert len(seen) == len(bytes_of(small)) - 30  # no picture is drawn twice
    assert sorted(p.name for p in folder.iterdir()) == sorted([*toy.FOLDERS, 'toy.yaml'])
    assert not list(folder.rglob('*.part'))


@pytest.mark.parametrize('marked', [True, False])
def test_what_is_missing_is_drawn(small, tmp_path, marked):
    for path, data in list(bytes_of(small).items())[::2]:
        (tmp_path / 'toy' / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'toy' / path).write_bytes(data)
    if marked:
        (tmp_path / 'toy' / 'toy.yaml').write_bytes((small / 'toy.yaml').read_bytes())
    toy.draw(tmp_path / 'toy', workers=1, **SMALL)
    assert bytes_of(tmp_path / 'toy') == bytes_of(small)
    assert (tmp_path / 'toy' / 'toy.yaml').read_bytes() == (small / 'toy.yaml').read_bytes()


def test_other_options_redraw_and_spare_what_is_not_ours(small, tmp_path):
    folder = tmp_path / 'toy'
    toy.draw(folder, ids=4, images=4, seed=5, workers=1, progress=False)
    (folder / 'pytorch').mkdir()
    for mine in ('pytorch/0001_c1s1_000001_01.jpg', 'query/my_photo.jpg', 'notes.txt'):
        (folder / mine).write_text('mine')
    toy.draw(folder, workers=1, **SMALL)
    after = bytes_of(folder)
    assert after.pop('pytorch/0001_c1s1_000001_01.jpg') == after.pop('query/my_photo.jpg') == b'mine'
    assert after == bytes_of(small)
    assert yaml.safe_load((folder / 'toy.yaml').read_text())['ids'] == 8


@pytest.mark.parametrize('strange', ['query/0001_c1s1_000001_00.jpg', 'notes.txt', 'pytorch/train/x.jpg'])
def test_a_foreign_folder_is_refused(tmp_path, strange):
    (tmp_path / strange).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / strange).write_text('mine')
    with pytest.raises(Problem, match='new folder'):
        toy.draw(tmp_path, workers=1, **SMALL)
    assert [p.read_text() for p in tmp_path.rglob('*.*') if p.is_file()] == ['mine']


@pytest.mark.parametrize(
    'wrong', [{'ids': 3}, {'images': 3}, {'seed': -1}, {'workers': 0}, {'ids': 8.5}, {'ids': True}]
)
def test_wrong_options_are_refused(tmp_path, wrong):
    with pytest.raises(Problem, match=next(iter(wrong))):
        toy.draw(tmp_path / 'toy', **{**SMALL, **wrong})
    assert not (tmp_path / 'toy').exists()


# Nothing but the person gives the identity away: three shortcuts, ranked as Market is.


def rank1(folder, describe):
    """Rank-1 by plain loops: same identity and same camera is junk, and so is -1; distractors stay."""
    sides = []
    for part in ('query', 'bounding_box_test'):
        paths = sorted((folder / part).iterdir())
        sides.append([(*map(int, MARKET.match(p.name).groups()), np.asarray(describe(p), np.float64)) for p in paths])
    hits = 0
    for who, cam, _, _, _, f in sides[0]:
        rest = [g for g in sides[1] if g[0] != -1 and not (g[0] == who and g[1] == cam)]
        best = min(rest, key=lambda g: np.abs(g[-1] - f).sum())
        hits += best[0] == who
    return 100 * hits / len(sides[0])


def histogram(path, columns=slice(None), mode='HSV'):
    with Image.open(path) as image:
        x = np.asarray(image.convert(mode))[:, columns]
    return np.concatenate([np.histogram(s[..., c], 16, (0, 256))[0] for s in np.array_split(x, 8) for c in range(3)])


SHORTCUTS = {  # bounds in per cent; of these 20 identities chance is about 4
    'file size': (lambda p: [p.stat().st_size], 15),
    'sequence and frame': (lambda p: [float(p.name.split('_')[2])], 15),
    'border': (lambda p: histogram(p, np.r_[0:8, 56:64]), 15),
    'hsv': (histogram, 25),
    'rgb': (lambda p: histogram(p, mode='RGB'), 25),
}


@pytest.mark.parametrize('shortcut', SHORTCUTS)
def test_nothing_but_the_person_tells(large, shortcut):
    describe, bound = SHORTCUTS[shortcut]
    assert rank1(large, describe) < bound


def test_the_measure_can_see_an_identity(large):
    """The bound above means something: told the identity and the camera, the same measure finds everybody."""
    assert rank1(large, lambda p: [int(p.name[:4]) if p.name[0] != '-' else -1]) == 100
