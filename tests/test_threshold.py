"""Thresholds against plain loops, threshold.json, the command: python -m pytest tests/test_threshold.py"""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import prepare
import threshold
import train
import utils
from reid import cli, data, features, plots, product, report, thresholds
from reid.problem import Problem
from reid.results import Features

# ---------------------------------------------------------------------------------------------------------------------
# 1. pairs and thresholds


def unit(f):
    return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)


@st.composite
def crowds(draw):
    """A few pictures of a few people by a few cameras, of which -1 is not known; some pictures are equal."""
    n = draw(st.integers(2, 14))
    f = unit(np.random.default_rng(draw(st.integers(0, 99))).standard_normal((draw(st.integers(2, 14)), 3)))
    ids, cams = (np.array(draw(st.lists(st.integers(low, 3), min_size=n, max_size=n))) for low in (0, -1))
    return Features(f[draw(st.lists(st.integers(0, len(f) - 1), min_size=n, max_size=n))], ids, cams, None)


def by_loops(people, crowd=-1):
    """Scores of genuine and of impostor pairs, as exact sums of features that are rounded to multiples of 2^-26."""
    f = (np.rint(people.f.astype(float) * 2**26) / 2**26).tolist()
    genuine, impostors = [], []
    for i in range(len(f)):
        for j in range(i + 1, len(f)):
            score = math.fsum(a * b for a, b in zip(f[i], f[j], strict=True))
            if people.ids[i] != people.ids[j]:
                impostors.append(score)
            elif people.ids[i] != crowd and (people.cams[i] != people.cams[j] or people.cams[i] == -1):
                genuine.append(score)
    return genuine, impostors


@settings(max_examples=60, deadline=None)
@given(crowds(), st.sampled_from([-1, 0, 2]), st.integers(1, 5))
def test_every_pair_counts_once_and_junk_does_not(people, crowd, block):
    genuine, impostors = by_loops(people, crowd)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(product, 'BLOCK', block)
        same, count = thresholds.same_identity(people, crowd)
        found, different = thresholds.among(people, same)
    assert count == len(impostors)
    assert found.tolist() == [pytest.approx(score, abs=1e-15) for score in genuine]  # the same pairs in the same order
    edges = [2 * place / thresholds.BINS - 1 for place in range(thresholds.BINS)]
    expected = np.searchsorted(edges, np.array(impostors), 'right') - 1
    assert different.tolist() == np.bincount(expected, minlength=thresholds.BINS).tolist()


@settings(max_examples=60, deadline=None)
@given(crowds(), st.lists(st.floats(0.02, 1), min_size=1, max_size=3), st.floats(0, 1))
def test_thresholds_by_trying_every_edge(people, rates, share):
    genuine, impostors = by_loops(people)
    same, count = thresholds.same_identity(people)
    scores, different = thresholds.among(people, same)
    if not genuine or not impostors or min(rates) < 1 / len(impostors):
        with pytest.raises(Problem):
            thresholds.possible(len(genuine), count, rates)
        with pytest.raises(Problem):
            thresholds.choose(scores, different, rates, share)
        return
    chosen = thresholds.choose(scores, different, rates, share)
    edges = np.append(np.arange(thresholds.BINS) * 2 / thresholds.BINS - 1, 1 + 2 / thresholds.BINS)
    alarms = np.array([(len(impostors) - k) / len(impostors) for k in np.searchsorted(np.sort(impostors), edges)])
    hits = np.array([(len(genuine) - k) / len(genuine) for k in np.searchsorted(np.sort(genuine), edges)])

    assert [row['far'] for row in chosen['thresholds']] == sorted(set(rates))
    for row in chosen['thresholds']:
        assert row['threshold'] == min(edges[alarms <= row['far']])
        assert row['found'] == pytest.approx(sum(s >= row['threshold'] for s in genuine) / len(genuine))
        assert row['accepted'] == sum(s >= row['threshold'] for s in impostors) <= row['far'] * len(impostors) + 1e-9
        if row['threshold'] <= 1:
            a, b = np.array([1, 0]), np.array([row['threshold'], math.sqrt(max(0, 1 - row['threshold'] ** 2))])
            assert row['distance'] == pytest.approx(np.linalg.norm(a - b))
    assert [(row['far'], row['found'], row['threshold']) for row in chosen['thresholds']] == report.thresholds(
        thresholds.histogram(scores), different, sorted(set(rates))
    )

    error, bounds = chosen['equal_error'], chosen['bounds']
    gap = abs(1 - hits - alarms)
    at = np.flatnonzero(edges == error['threshold'])[0]
    assert gap[at] == pytest.approx(gap.min())
    assert error['rate'] == pytest.approx((1 - hits[at] + alarms[at]) / 2)
    assert bounds['same'] == chosen['thresholds'][0]['threshold']
    assert bounds['not_same'] == min(bounds['same'], max(edges[hits >= share]))

    for of, counts in ((genuine, thresholds.histogram(scores)), (impostors, different)):
        verdicts = [thresholds.judge(score, chosen) for score in of]
        expected = [verdicts.count(verdict) / len(of) for verdict in ('same', 'unsure', 'not the same')]
        assert thresholds.shares(counts, bounds) == pytest.approx(expected)
    assert sum(thresholds.judge(s, chosen) == 'not the same' for s in genuine) <= (1 - share) * len(genuine) + 1e-9


def test_two_people_with_equal_pictures_leave_no_threshold_but_one_that_nobody_reaches():
    people = Features(unit(np.ones((4, 3))), np.array([1, 1, 2, 3]), np.full(4, -1), None)
    same, _ = thresholds.same_identity(people)
    chosen = thresholds.choose(*thresholds.among(people, same), [0.5])
    assert chosen['thresholds'][0]['threshold'] > 1
    assert (chosen['thresholds'][0]['found'], chosen['thresholds'][0]['accepted']) == (0, 0)
    assert thresholds.judge(1.0, chosen) == 'unsure'


@pytest.mark.parametrize('seed', [0, 11])  # which draw 0 never, and twice
def test_one_draw_of_identities_by_loops(seed):
    """With a single draw both ends of an interval are that draw's share: pictures of an identity drawn twice count
    twice, its pairs with itself do not, and the crowd is always there once."""
    rng = np.random.default_rng(5)
    ids = rng.choice([0, 3, 4, 7, 8], 40)
    people = Features(unit(rng.standard_normal((40, 3))), ids, rng.integers(1, 4, 40), None)
    same, _ = thresholds.same_identity(people, crowd=0)
    genuine, different = thresholds.among(people, same)
    rows = thresholds.choose(genuine, different, [0.1, 0.3])['thresholds']
    sure = thresholds.how_sure(rows, people, same, genuine, crowd=0, draws=1, seed=seed)

    names = np.unique(ids)
    drawn = names[np.random.default_rng(seed).integers(0, 5, 5)]
    assert len(set(drawn)) < 5
    drawn = [0, *drawn[drawn != 0]]
    for row in sure:
        accepted, impostors, found, pairs = 0, 0, 0, 0
        for at, one in enumerate(drawn):
            for other in drawn[at + 1 :]:
                if one != other:
                    scores = people.f[ids == one] @ people.f[ids == other].T
                    accepted, impostors = accepted + (scores >= row['threshold']).sum(), impostors + scores.size
            if one != 0:
                part = Features(*(column[ids == one] for column in people[:3]), None)
                own, _ = by_loops(part)
                found, pairs = found + sum(s >= row['threshold'] for s in own), pairs + len(own)
        assert row['far_95'] == pytest.approx([accepted / impostors] * 2)
        assert row['found_95'] == pytest.approx([found / pairs] * 2)


def test_the_intervals_hold_for_other_people():
    """Thresholds of 30 people, tried on 400: about 95 of 100 intervals should hold. If pairs were drawn instead of
    people, hardly a third would."""

    def people(n):
        who = np.repeat(np.arange(n), 6)
        looks = rng.standard_normal((n, 8))
        return Features(unit(looks[who] + 0.5 * rng.standard_normal((len(who), 8))), who, np.full(len(who), -1), None)

    rng, held = np.random.default_rng(0), {'far': [], 'found': []}
    all_of_them = people(400)
    same, _ = thresholds.same_identity(all_of_them)
    everyone = dict(zip(('found', 'far'), thresholds.among(all_of_them, same), strict=True))
    everyone['found'] = thresholds.histogram(everyone['found'])
    for _ in range(40):
        few = people(30)
        same, _ = thresholds.same_identity(few)
        genuine, different = thresholds.among(few, same)
        rows = thresholds.choose(genuine, different, [0.02])['thresholds']
        (row,) = thresholds.how_sure(rows, few, same, genuine, draws=300)
        for name, of in held.items():
            place = round((row['threshold'] + 1) * thresholds.BINS / 2)
            of.append(row[f'{name}_95'][0] <= thresholds.reaching(everyone[name])[place] <= row[f'{name}_95'][1])
    assert np.mean(held['far']) > 0.8
    assert np.mean(held['found']) > 0.8


# ---------------------------------------------------------------------------------------------------------------------
# 2. threshold.json


def content(**changes):
    bounds = {'same': 0.6, 'not_same': 0.3, 'far': 0.001, 'found': 0.99}
    return {'flip': True, 'ms': '1', 'test_feature': 'after', 'bounds': bounds, **changes}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / 'r'
    folder.mkdir()
    (folder / 'net_last.pth').write_bytes(b'weights' * 999)
    thresholds.save(folder, content(weights=thresholds.fingerprint(folder / 'net_last.pth')))
    return folder


def test_what_is_saved_is_read_and_judges(run):
    saved = thresholds.load(run, flip=True, ms='1', test_feature='after')
    assert saved == thresholds.load(run, run / 'net_last.pth')
    assert saved['weights']['sha256'] == hashlib.sha256(b'weights' * 999).hexdigest()
    scores = (0.99, 0.6, 0.5999, 0.3, 0.2999, -1)
    verdicts = ['same', 'same', 'unsure', 'unsure', 'not the same', 'not the same']
    assert [thresholds.judge(score, saved) for score in scores] == verdicts


@pytest.mark.parametrize(
    ('text', 'sentence'),
    [
        ('{"what": ', 'cannot be read'),
        ('', 'cannot be read'),
        ('[1]', 'not what threshold.py of this version writes'),
        ('{"bounds": {"same": 0.5}}', 'not what threshold.py of this version writes'),
        ('{"what": "WHAT", "format": 2}', 'not what threshold.py of this version writes'),
        ('{"what": "WHAT", "format": 1}', 'damaged'),
        ('{"what": "WHAT", "format": 1, "bounds": {"same": "x", "not_same": 0}}', 'damaged'),
    ],
)
def test_a_file_that_is_none_is_a_sentence(run, text, sentence):
    (run / 'threshold.json').write_text(text.replace('WHAT', thresholds.WHAT))
    with pytest.raises(Problem, match=sentence) as problem:
        thresholds.load(run)
    assert 'python threshold.py --name r' in str(problem.value)


@pytest.mark.parametrize('bounds', [(0.3, 0.6), (float('nan'), 0.3), (0.5, -7), (0.5, None)])
def test_bounds_that_make_no_sense_are_a_sentence(run, bounds):
    same, not_same = bounds
    weights = thresholds.fingerprint(run / 'net_last.pth')
    thresholds.save(run, content(weights=weights, bounds={'same': same, 'not_same': not_same}))
    with pytest.raises(Problem, match='damaged'):
        thresholds.load(run)


def test_a_threshold_of_other_weights_or_features_is_a_sentence(run):
    (run / 'net_010.pth').write_bytes(b'weights' * 998)
    with pytest.raises(Problem, match='other weights'):
        thresholds.load(run, run / 'net_010.pth')
    with pytest.raises(Problem, match='flip: True, and these have False'):
        thresholds.load(run, flip=False)
    (run / 'net_last.pth').write_bytes(b'Weights' * 999)  # of the same size, as after more training
    with pytest.raises(Problem, match='other weights'):
        thresholds.load(run)
    (run / 'net_last.pth').unlink()
    with pytest.raises(Problem, match='no longer there'):
        thresholds.load(run)
    (run / 'threshold.json').unlink()
    with pytest.raises(Problem, match='no threshold has been chosen yet'):
        thresholds.load(run)


@pytest.mark.parametrize('noise', [0.05, 0.6, 5])
def test_the_picture_of_good_and_bad_networks(noise, tmp_path):
    """All told apart, most of them, and nobody."""
    rng = np.random.default_rng(0)
    who = np.repeat(np.arange(10), 6)
    f = unit(rng.standard_normal((10, 16))[who] + noise * rng.standard_normal((60, 16)))
    people = Features(f, who, np.full(60, -1), None)
    same, _ = thresholds.same_identity(people)
    genuine, different = thresholds.among(people, same)
    chosen = thresholds.choose(genuine, different, [0.01, 0.1, 1])
    if noise < 0.1:
        assert chosen['bounds']['same'] == chosen['bounds']['not_same']
    plots.threshold(thresholds.histogram(genuine), different, chosen, tmp_path / 'x.png')
    with Image.open(tmp_path / 'x.png') as picture:
        assert picture.size == (1800, 690)
        colours = {colour for _, colour in picture.convert('RGB').getcolors(2**24)}
    assert {(0x1A, 0x98, 0x50), (0xD7, 0x30, 0x27)} <= colours


# ---------------------------------------------------------------------------------------------------------------------
# 3. the command

CPU = '--gpu_ids -1 --num_workers 0'.split()
SMALL = '--backbone resnet18 --height 64 --width 32 --linear_num 16 --weights none --total_epoch 0'.split() + CPU


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A toy data set, and two untrained runs: h, which kept the last 5 of 10 identities out, and a, which kept none."""
    cwd = tmp_path_factory.mktemp('place')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        cli.start(prepare.main, prepare.options, '--dataset toy --ids 20 --images 6'.split())
        for words in ('--name h --holdout 5', '--name a'):
            cli.start(train.main, train.options, [*words.split(), *'--data_dir data/toy --train_all'.split(), *SMALL])
    return cwd


def start(words):
    cli.start(threshold.main, threshold.options, [*words.split(), *CPU])


def sentence(words, capsys):
    """The one line that a mistake gets."""
    with pytest.raises(SystemExit) as end:
        start(words)
    assert end.value.code == 2
    return capsys.readouterr().err


def test_the_last_identities_by_name_as_a_user_does_it(place, card, monkeypatch):
    """What the command saves, from the pictures on, with loops."""
    done = card('threshold.py', '--name', 'h', '--far', 0.1, 0.02, *CPU, cwd=place)
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(place)
    folder = utils.find_run('h')
    saved = thresholds.load(folder, flip=True, ms='1')
    assert (folder / 'threshold.png').stat().st_size > 20_000

    names = sorted(path.name for path in (place / 'data/toy/pytorch/train_all').iterdir())[-5:]
    paths = [path for name in names for path in sorted((place / 'data/toy/pytorch/train_all' / name).iterdir())]
    model, _ = utils.load_run('h')
    transform = data.test_transform(64, 32)
    with torch.no_grad():
        f = np.concatenate([features.describe(model, transform(data.read(path))[None]).numpy() for path in paths])
    ids = np.array([int(path.parent.name) for path in paths])
    cams = np.array([int(path.name.split('_c')[1][0]) for path in paths])
    genuine, impostors = by_loops(Features(f, ids, cams, None))
    numbers = {'identities': 5, 'pictures': len(f), 'genuine_pairs': len(genuine), 'impostor_pairs': len(impostors)}
    assert {name: saved[name] for name in numbers} == numbers
    assert [row['far'] for row in saved['thresholds']] == [0.02, 0.1]
    genuine, impostors = np.array(genuine), np.array(impostors)
    for row in saved['thresholds']:
        first_too_many = np.sort(impostors)[::-1][int(row['far'] * len(impostors))]
        assert row['threshold'] == pytest.approx(first_too_many, abs=1e-4)  # a batch is rounded otherwise
        assert row['found'] == pytest.approx((genuine >= row['threshold']).mean(), abs=2 / len(genuine))
        assert row['far_95'][0] <= row['accepted'] / len(impostors) <= row['far_95'][1]
        assert f'{row["threshold"]:.4f}' in done.stdout
    assert saved['bounds']['same'] == saved['thresholds'][0]['threshold']
    assert (genuine >= saved['bounds']['not_same']).mean() >= 0.99 - 2 / len(genuine)
    assert (saved['run'], saved['which_epoch'], saved['part'], saved['same_camera']) == ('h', 'last', 'held_out', False)
    assert {'python', 'torch', 'numpy', 'commit'} <= set(saved['versions'])


def test_query_and_gallery_without_junk_and_distractors_but_among_strangers(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    folder = utils.find_run('a')
    start('--name a --data_dir data/toy --far 0.1 --same_camera')
    assert 'the test set' in capsys.readouterr().out
    flipped = thresholds.load(folder)['thresholds']
    start('--name a --data_dir data/toy --far 0.1 --same_camera --no_flip')
    saved = thresholds.load(folder, flip=False)
    assert saved['thresholds'] != flipped
    people = {}
    for path in (place / 'data/toy/pytorch').glob('[qg]*y/*/*'):
        people[path.parent.name] = people.get(path.parent.name, 0) + 1
    assert people.pop('-1') > 1
    pictures, crowd = sum(people.values()), people.pop('0000')
    pairs = sum(n * (n - 1) // 2 for n in people.values())
    assert saved['identities'] == len(people) == 10
    assert (saved['pictures'], saved['genuine_pairs']) == (pictures, pairs)
    assert saved['impostor_pairs'] == math.comb(pictures, 2) - pairs - math.comb(crowd, 2)
    assert (saved['part'], saved['same_camera'], saved['flip']) == ('test', True, False)


def test_a_tree_of_strangers(place, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    cli.start(prepare.main, prepare.options, '--dataset toy --ids 8 --images 5 --seed 9'.split())
    monkeypatch.chdir(place)
    start(f'--name a --data_dir {tmp_path}/data/toy --part train_all --far 0.1')
    assert 'cannot be checked' not in capsys.readouterr().out
    saved = json.loads((place / 'model/a/threshold.json').read_text())
    assert (saved['identities'], saved['part']) == (4, 'train_all')


@pytest.mark.parametrize(
    ('words', 'expected'),
    [
        ('--name a', 'none was held out. Two ways out: train a run'),
        ('--name a', '--data_dir TREE'),
        ('--name b', 'Runs that are there: a, h'),
        ('--name h --which_epoch 7', 'There are: last'),
        ('--name h --far 0.1 1e-6', '--far 1e-06'),
        ('--name h --data_dir nowhere', 'no such folder'),
        ('--name h --data_dir data/toy data/toy', 'one tree is expected, found 2'),
        ('--name h --part train_all', 'was trained on'),
        ('--name h --ms x', '--ms x'),
        ('--name h --far 0.1 --stride 1', 'contradicts'),
    ],
)
def test_mistakes_get_a_sentence(place, words, expected, monkeypatch, capsys):
    monkeypatch.chdir(place)
    assert expected in sentence(words, capsys)


def test_people_that_were_trained_on_are_found_in_a_copy_of_the_tree(place, monkeypatch, capsys, tmp_path):
    shutil.copytree(place / 'data/toy/pytorch', tmp_path / 'copy')
    monkeypatch.chdir(place)
    assert 'h was trained on' in sentence(f'--name h --data_dir {tmp_path}/copy --part train_all', capsys)
    folders = sorted((tmp_path / 'copy/train_all').iterdir())
    shutil.rmtree(folders[0])
    assert 'Is this another tree?' in sentence(f'--name h --data_dir {tmp_path}/copy --part held_out', capsys)
    for folder in folders[1:5]:
        shutil.rmtree(folder)
    start(f'--name h --data_dir {tmp_path}/copy --part train_all --far 0.1')  # those that are left were held out


def test_a_tree_that_has_moved(place, monkeypatch, capsys, tmp_path):
    shutil.copytree(place / 'model/h', tmp_path / 'model/h')
    shutil.copytree(place / 'data/toy', tmp_path / 'there')
    monkeypatch.chdir(tmp_path)
    assert '--data_dir TREE --part held_out' in sentence('--name h --far 0.1', capsys)
    start('--name h --far 0.1 --data_dir there --part held_out')
    start('--name h --far 0.1 --data_dir there')
    assert 'cannot be checked' in capsys.readouterr().out


def test_held_out_of_two_trees_and_weights_that_may_know_them(place, monkeypatch, capsys, tmp_path):
    """People of two trees are two, whatever their names."""
    shutil.copytree(place / 'model/h', tmp_path / 'model/h')
    monkeypatch.chdir(tmp_path)
    for out, seed in (('one', 0), ('two', 1)):
        words = f'--dataset toy --ids 8 --images 5 --seed {seed} --data_dir {out}'
        cli.start(prepare.main, prepare.options, words.split())
    small = ['model/h/net_last.pth' if word == 'none' else word for word in SMALL]
    cli.start(train.main, train.options, '--name w --data_dir one two --train_all --holdout 2'.split() + small)
    capsys.readouterr()
    start('--name w --far 0.1')
    assert 'w began from model/h/net_last.pth' in capsys.readouterr().out
    saved = thresholds.load(utils.find_run('w'))
    parts = [sorted((tmp_path / tree / 'pytorch/train_all').iterdir())[-2:] for tree in ('one', 'two')]
    numbers = [len(list(folder.iterdir())) for part in parts for folder in part]
    assert (saved['identities'], saved['pictures']) == (4, sum(numbers))
    assert saved['impostor_pairs'] == math.comb(sum(numbers), 2) - sum(math.comb(n, 2) for n in numbers)
    assert [Path(path).parent.name for path in saved['data_dir']] == ['one', 'two']


def test_trees_without_pairs(place, monkeypatch, capsys, tmp_path):
    """One picture of each; one camera; one person."""
    monkeypatch.chdir(place)
    picture = next((place / 'data/toy/pytorch/query').glob('*/*.jpg'))

    def tree(*names):
        shutil.rmtree(tmp_path / 'train_all', ignore_errors=True)
        for name in names:
            (tmp_path / 'train_all' / name[:4]).mkdir(parents=True, exist_ok=True)
            shutil.copy(picture, tmp_path / 'train_all' / name[:4] / f'{name}_000001_00.jpg')
        return f'--name a --data_dir {tmp_path} --part train_all --far 0.5'

    assert 'no genuine pairs' in sentence(tree('0001_c1s1', '0002_c2s1', '0003_c1s1'), capsys)
    words = tree('0001_c1s1', '0001_c1s2', '0002_c2s1')
    assert 'no genuine pairs' in sentence(words, capsys)
    start(f'{words} --same_camera')
    assert 'no impostor pairs' in sentence(tree('0001_c1s1', '0001_c2s2', '0001_c3s1'), capsys)
