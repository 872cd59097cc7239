"""Who is in a video, and when: on drawn videos whose truth is known. python -m pytest tests/test_video.py"""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

import search
from reid import (
    cli,
    data,
    detecting,
    filming,
    frames,
    index,
    mot,
    pipeline,
    sightings,
    tracking,
    video,
    walks,
    watching,
)
from reid.embedding import Embedder
from reid.frames import Frame
from reid.problem import Problem

try:
    cv2 = frames.opencv()
    cv2.setNumThreads(1)
except Problem as problem:
    pytest.skip(str(problem), allow_module_level=True)

SEED, FPS, SECONDS, PEOPLE, HE = 1, 10, 12, range(1, 6), 5
SIZE = (64, 32)
ABOUT = {'run': 'colours', 'which_epoch': 'last', 'weights': {'sha256': '0' * 64}, 'flip': False, 'ms': '1'}
ABOUT |= {'test_feature': 'after'}


def describe(x):
    """(B, 64, 32, 3) -> (B, 18): the colours of six stripes from the shoulders down."""
    x = x[:, 10:, 9:22].astype(np.float64).mean(2)  # (B, H, 3)
    f = np.stack([part.mean(1) for part in np.array_split(x, 6, 1)], 1).reshape(len(x), -1) - 110
    return (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)


COLOURS = Embedder(describe, SIZE, 18, {'same': 0.9, 'not_same': 0.5}, ABOUT)


def known(truth):
    """A detector that knows the truth, and takes a frame for the one of this number that it sees in its corner."""

    def detect(picture):
        bits = picture[2:6, 2:66].reshape(4, 16, 4, 3).mean((0, 2, 3)) > 128
        seen = [s for s in truth[int(bits @ 2 ** np.arange(16))] if s.visible >= walks.SEEN]
        boxes = np.array([s.box for s in seen], np.float32).reshape(-1, 4)
        scores = np.array([0.5 + 0.4 * s.visible for s in seen], np.float32)
        return boxes, scores

    return detect


def numbered(picture, number):
    """The number of a frame as 16 squares in its upper left corner, which a lossy video keeps."""
    picture = picture.copy()
    bits = (number >> np.arange(16) & 1) * 255
    picture[:8, :68] = 0
    picture[2:6, 2:66] = np.repeat(bits, 4)[None, :, None]
    return picture


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Two cameras that see the same people; a picture of one of them; the truth of both."""
    folder, truth = tmp_path_factory.mktemp('place'), {}
    for name, camera in (('gate', 1), ('yard', 2)):
        truth[name] = []
        with frames.writer(folder / f'{name}.avi', FPS, (walks.WIDTH, walks.HEIGHT)) as write:
            for i, (_, picture, seen) in enumerate(walks.video(SEED, camera, SECONDS, FPS, PEOPLE)):
                write(numbered(picture, len(truth['gate']) + i if name == 'yard' else i))
                truth[name].append(seen)
                him = [s for s in seen if s.who == HE and s.visible > 0.99]
                if name == 'gate' and him:
                    Image.fromarray(video.crop(picture, him[0].box)).save(folder / 'ann.png')
    Image.fromarray(np.full((200, 80, 3), (10, 250, 10), np.uint8)).save(folder / 'nobody.png')
    with frames.writer(folder / 'empty.avi', FPS, (64, 64)) as write:
        for _ in range(20):
            write(np.full((64, 64, 3), 90, np.uint8))
    return SimpleNamespace(folder=folder, **truth)


@pytest.fixture
def run(place, monkeypatch, tmp_path, capsys):
    """run('gate.avi', ...) -> exit code, output, errors; with the detector that knows and the embedder of colours."""
    monkeypatch.chdir(place.folder)
    monkeypatch.setattr(search.utils, 'embedder', lambda opts, *index: COLOURS)
    nobody = np.zeros((0, 4)), np.zeros(0)
    find = known(place.gate + place.yard)
    monkeypatch.setattr(detecting, 'load', lambda *how: lambda picture: find(picture) if len(picture) > 64 else nobody)

    def call(*words):
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.start(search.main, search.options, ['video', *map(str, words), '--gpu_ids', '-1'])
        said = capsys.readouterr()
        return end.value.code, said.out, said.err

    return call


def rows(truth):
    return mot.rows([entry for i, seen in enumerate(truth, 1) for entry in walks.entries(i, seen)])


def person(truth, table, track):
    """Who a track is: the one whom most of its boxes show."""
    shown = [
        max(truth[number - 1], key=lambda s: mot.iou(np.array(s.box), box)).who
        for number, who, box, _ in zip(*table, strict=True)
        if who == track and truth[number - 1]
    ]
    return max(set(shown), key=shown.count)


def pictures(path):
    """By OpenCV itself, RGB."""
    reader, found = cv2.VideoCapture(str(path)), []
    while (frame := reader.read())[0]:
        found.append(frame[1][:, :, ::-1])
    return found


def green(picture):
    """How many pixels."""
    return int((np.abs(picture.astype(int) - filming.GREEN).max(-1) < 30).sum())


# ---------------------------------------------------------------------------------------------------------------------
# 1. shots


def sheet(seed=0, size=(200, 100)):
    """Something with an outline at every size."""
    small = np.random.default_rng(seed).integers(0, 255, (size[0] // 10, size[1] // 10, 3), np.uint8)
    return np.array(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def test_sharpness_is_that_of_opencv():
    grey = sheet()[:, :, 0]
    expected = cv2.Laplacian(grey.astype(np.float64), cv2.CV_64F, ksize=1)[1:-1, 1:-1].std()
    assert video.sharpness(grey) == pytest.approx(expected, rel=1e-4)


def test_what_makes_a_shot_worse():
    box, boxes = np.array([100.0, 100, 200, 300]), np.array([[100.0, 100, 200, 300], [150, 150, 250, 310]])
    frame, shown = (600, 800, 3), sheet()
    best = video.quality(shown, box, 0.9, 0, frame, SIZE)
    small = np.array(Image.fromarray(shown).resize((16, 32)))
    blurred = cv2.GaussianBlur(shown, (0, 0), 25)
    worse = {
        'small': video.quality(small, box, 0.9, 0, frame, SIZE),
        'blurred': video.quality(blurred, box, 0.9, 0, frame, SIZE),
        'unsure': video.quality(shown, box, 0.5, 0, frame, SIZE),
        'hidden': video.quality(shown, box, 0.9, video.hidden(box, boxes), frame, SIZE),
        'cut off': video.quality(shown, box - [100, 0, 100, 0], 0.9, 0, frame, SIZE),
    }
    assert best == pytest.approx(0.9) and max(worse.values()) < 0.8 * best
    # Half as wide, three quarters as high; and who is nearer is not hidden by who is farther away.
    assert video.hidden(box, boxes) == pytest.approx(0.5 * 0.75)
    assert video.hidden(boxes[1], boxes) == 0
    # A sign is no better for being sharper than anybody.
    sign = np.kron(np.indices((20, 10)).sum(0) % 2, np.ones((10, 10)))[..., None].repeat(3, 2).astype(np.uint8) * 255
    assert video.quality(sign, box, 0.9, 0, frame, SIZE) == best


def test_a_crop_is_never_empty_and_never_keeps_the_frame():
    picture = sheet(size=(900, 400))
    for box in ([-20, -20, -5, -5], [399.9, 899.9, 500, 1000], [10.2, 10.2, 10.3, 10.3]):
        assert min(video.crop(picture, np.array(box)).shape[:2]) == 1
    for box in ([0, 0, 400, 900], [10, 10, 50, 90]):
        kept = video.smaller(video.crop(picture, box))
        assert len(kept) <= video.TALL and not np.shares_memory(kept, picture)


def walk(seconds, every=3, renew=video.RENEW, away=(), describe=describe):
    """Somebody goes to and fro -> the follower, the moments."""
    picture = np.repeat(sheet(3, (360, 20))[:, :1], 640, 1)  # wherever he goes, he looks the same

    def source():
        for i in range(round(seconds * FPS)):
            yield Frame(i, i / FPS, picture)

    def detect(_):
        nonlocal looked
        looked += 1
        now = (looked - 1) * every / FPS
        x = 300 + 200 * np.sin(now / 3)
        there = not any(start <= now < end for start, end in away)
        return np.array([[x, 100, x + 60, 250]] * there).reshape(-1, 4), np.array([0.9] * there)

    looked = 0
    embedder = COLOURS._replace(describe=describe)
    follower = video.Follower(detect, embedder, every, renew)
    return follower, pipeline.run(source(), follower.stages())


def test_a_long_track_gets_a_vector_from_time_to_time_and_holds_few_crops():
    follower, moments = walk(60)
    views, most = [], 0
    for moment in moments:
        views += moment.views
        most = max(most, sum(len(span.shots) for span in list(follower.spans.values())))
        assert not moment.spans  # no crop is kept by what came out
    views += follower.close()
    assert {view.track for view in views} == {1} and most == video.SHOTS
    assert views[0].last - views[0].first <= video.FIRST + 0.3
    assert len(views) == 1 + np.ceil((60 - views[0].last) / (video.RENEW + 0.3))
    spans = [(view.first, view.last) for view in views]
    assert all(a[1] <= b[0] for a, b in zip(spans, spans[1:], strict=False))
    assert all(first <= view.shot.time <= last for view, (first, last) in zip(views, spans, strict=True))
    assert not follower.spans


def test_the_best_shots_are_kept():
    follower, picture, box = video.Follower(None, COLOURS), sheet(size=(300, 200)), np.array([50.0, 50, 130, 250])
    scores = np.random.default_rng(0).permutation(20) / 20 + 0.05
    for i, score in enumerate(scores):
        follower.keep(SimpleNamespace(id=4, box=box, score=score, last=i / 25), picture, box[None])
    best = sorted(range(20), key=lambda i: -scores[i])[: video.SHOTS]
    assert [round(shot.time * 25) for shot in follower.spans[4].shots] == best


def test_a_vector_is_the_mean_of_its_shots():
    asked = []

    def spy(x):
        asked.append((x, describe(x)))
        return asked[-1][1]

    follower, moments = walk(0.9, every=1, describe=spy)
    assert not [view for moment in moments for view in moment.views]
    before = len(asked)
    (view,) = follower.close()
    ((x, f),) = asked[before:]
    assert len(x) == video.SHOTS
    mean = sum(f.astype(np.float64)) / len(f)
    np.testing.assert_allclose(view.vector, mean / np.sqrt((mean**2).sum()), atol=1e-6)
    shown = data.sized(Image.fromarray(view.shot.picture), SIZE)
    assert any(np.array_equal(shown, one) for one in x)


def test_of_the_best_shots_the_one_that_is_most_like_the_track_is_shown():
    f = np.array([[1, 0, 0], [0.6, 0.8, 0], [0.6, 0.8, 0]], np.float32)  # a sign, then somebody
    shots = [video.Shot(i, np.zeros(4), quality, None) for i, quality in enumerate((0.9, 0.8, 0.7))]
    span = video.Span(1, 0, 5, 2, shots, look=np.array([0.6, 0.8, 0]))
    assert video.view(span, f).shot.time == 1
    assert video.view(span, f).shot.quality == pytest.approx(0.8)


def test_a_tracker_is_as_strict_as_the_network_knows():
    assert video.alikeness({'same': 0.7}) == 0.7 and video.alikeness({'same': 1.2}) < 1
    assert video.alikeness(Problem('not known')) == tracking.ALIKE
    video.Follower(None, COLOURS._replace(bounds={'same': 1.2}))


def test_nothing_is_left_of_who_has_gone():
    follower, moments = walk(60, away=[(3, 60)])
    for _ in moments:
        pass
    assert not (follower.spans or follower.known or follower.tracker.tracks)
    assert len(follower.frames) <= 4 * 3


# ---------------------------------------------------------------------------------------------------------------------
# 2. the command


def test_somebody_is_found_by_two_cameras(place, run, tmp_path):
    out = tmp_path / 'found'
    words = ['--find', 'ann.png', '--out', out, '--start', '2026-01-01T10:00', '2026-01-01T10:00:06']
    code, said, _ = run('gate.avi', 'yard.avi', *words)
    assert code == 0
    told = json.loads((out / 'tracks.json').read_text())
    assert told['complete'] and told['network'] == ABOUT
    assert told['looked_for'] == {'name': 'ann', 'threshold': 0.9}

    truth, found = {'gate.avi': place.gate, 'yard.avi': place.yard}, {}
    for source in told['sources']:
        name = source['source']
        table = mot.read(out / source['boxes'])
        measured = mot.evaluate(rows(truth[name]), table)  # colours are a poor man's re-ID
        assert measured['MOTA'] > 0.7 and measured['MOTP'] > 0.85 and measured['IDF1'] > 0.55, measured
        assert {t['track'] for t in told['tracks'] if t['source'] == name} == set(table.who.tolist())
        for track in (t for t in told['tracks'] if t['source'] == name):
            times = (table.frame[table.who == track['track']] - 1) / FPS
            assert (track['from'], track['to']) == pytest.approx((times.min(), times.max()), abs=2e-3)
            assert track['found'] == (track['score'] is not None and track['score'] >= 0.9)
            if track['found']:
                found.setdefault(name, set()).add(person(truth[name], table, track['track']))
    assert found == {'gate.avi': {HE}, 'yard.avi': {HE}}

    lines = [line for line in said.splitlines() if ', camera ' in line]
    scores = [float(line.split()[0]) for line in lines]
    assert scores == sorted(scores, reverse=True) and len(lines) == sum(t['shot'] is not None for t in told['tracks'])
    assert [line.split()[1] == 'found' for line in lines] == [score >= 0.9 for score in scores]
    assert 'from a score of 0.9000 on' in said and 'frames/s alone' in said

    assert Image.open(out / 'contact.jpg').width > 800
    bars = np.array(Image.open(out / 'timeline.png').convert('RGB'))
    assert green(bars) > 1000
    # The second camera begins a third of the way: its bars, in the lower half, do not lie left of that.
    low = bars[bars.shape[0] * 55 // 100 : bars.shape[0] * 80 // 100]
    columns = np.flatnonzero((np.abs(low.astype(int) - filming.GREEN).max(-1) < 30).any(0))
    assert columns.min() > bars.shape[1] * 0.35


def test_who_is_seen_by_two_cameras_is_one_person(place, run, tmp_path, monkeypatch):
    out = tmp_path / 'found'
    code, said, _ = run('gate.avi', 'yard.avi', '--out', out, '--no_video')
    assert code == 0
    truth, told = {'gate.avi': place.gate, 'yard.avi': place.yard}, json.loads((out / 'tracks.json').read_text())
    tables = {one['source']: mot.read(out / one['boxes']) for one in told['sources']}
    tracks = [track for track in told['tracks'] if track['shot']]
    assert all(track['person'] for track in tracks)
    people = {number: [t for t in tracks if t['person'] == number] for number in {t['person'] for t in tracks}}
    his = [t['person'] for t in tracks if person(truth[t['source']], tables[t['source']], t['track']) == HE]
    assert {t['source'] for t in people[max(his, key=his.count)]} == set(truth)
    for one, other in itertools.combinations(tracks, 2):
        at_once = any(a < d and c < b for a, b in one['spans'] for c, d in other['spans'])
        assert not (one['source'] == other['source'] and at_once and one['person'] == other['person'])
    assert f'{len(people)} people in {len(told["tracks"])} tracks' in said
    listed = [int(line.split()[1]) for line in said.splitlines() if line.startswith('person ')]
    assert len(list(itertools.groupby(listed))) == len(set(listed))  # those of one person stand together

    unsure = COLOURS._replace(bounds=Problem('no threshold has been chosen'))
    monkeypatch.setattr(search.utils, 'embedder', lambda opts, *index: unsure)
    code, said, err = run('gate.avi', 'yard.avi', '--out', out, '--no_video')
    assert {track['person'] for track in json.loads((out / 'tracks.json').read_text())['tracks']} == {None}
    assert 'person ' not in said and 'is not said: no threshold has been chosen' in err


def test_what_cannot_be_drawn_costs_no_tracks(place, run, tmp_path, monkeypatch):
    def fails(*_):
        raise ValueError('no picture')

    monkeypatch.setattr(watching, 'draw', fails)
    with pytest.raises(ValueError, match='no picture'):
        run('gate.avi', '--out', tmp_path / 'found', '--no_video')
    told = json.loads((tmp_path / 'found/tracks.json').read_text())
    assert told['complete'] and told['tracks']


def test_names_are_no_formulas(tmp_path):
    """To matplotlib, what stands between two $ is one."""
    filming.timeline({'cam$1_$2.mp4': ([(0, 1)], [])}, 2, None, tmp_path / 'timeline.png')
    filming.contact(None, [(Image.new('RGB', (9, 20)), 'cam$1_$2', '$_$', False)], 'cam$1_$2', tmp_path / 'contact.jpg')
    assert Image.open(tmp_path / 'timeline.png').size > (9, 20)


def test_the_annotated_video_shows_each_frame_and_green_is_for_him_alone(place, run, tmp_path):
    out = tmp_path / 'found'
    assert run('gate.avi', '--find', 'ann.png', '--out', out)[0] == 0
    shown = pictures(out / 'gate.mp4')
    assert len(shown) == len(place.gate) and shown[0].shape == (walks.HEIGHT, walks.WIDTH, 3)
    told = json.loads((out / 'tracks.json').read_text())['tracks']
    table, his = mot.read(out / 'tracks/gate.txt'), {t['track'] for t in told if t['found']}
    with_him = {number for number, who in zip(table.frame, table.who, strict=True) if who in his}
    seen = [i for i, picture in enumerate(shown, 1) if green(picture) > 40]
    assert len(seen) > len(with_him) / 3
    # He is drawn for 0.3 s after he was seen last, and until the next look.
    assert all(any(number - i in with_him for i in range(6)) for number in seen)
    assert not (out / 'timeline.png').exists()

    code, said, _ = run('gate.avi', '--find', 'nobody.png', '--out', out)
    assert code == 1 and 'nobody: none of' in said
    assert not any(green(picture) > 40 for picture in pictures(out / 'gate.mp4'))
    assert not any(t['found'] for t in json.loads((out / 'tracks.json').read_text())['tracks'])


def test_people_of_a_video_go_into_an_index(place, run, tmp_path):
    with index.create(tmp_path / 'people', 18, ABOUT):
        pass
    words = ['--index', tmp_path / 'people', '--out', tmp_path / 'found', '--no_video']
    words += ['--start', '2026-01-01T10:00', '--renew', 2]
    assert run('gate.avi', *words, '--camera', 7)[0] == 0
    told = json.loads((tmp_path / 'found/tracks.json').read_text())
    views = [(track['track'], view) for track in told['tracks'] for view in track['views']]
    begin = search.moment('2026-01-01T10:00')
    with index.open(tmp_path / 'people') as kept:
        entries = kept.find()
        assert len(entries) == len(views) > len(told['tracks'])
        for track, view in views:
            path = str((tmp_path / 'found' / view['shot']).resolve())
            (entry,) = kept.find(path=path)
            assert entry.name == f'track {track} of gate.avi' and entry.camera == 7
            assert entry.time == pytest.approx(begin + view['time'], abs=0.01)
        f = describe(data.sized(Image.open(place.folder / 'ann.png'), SIZE)[None])
        (score, nearest), *_ = kept.query(f, 3)[0]
        table = mot.read(tmp_path / 'found/tracks/gate.txt')
        assert score > 0.9 and person(place.gate, table, int(nearest.name.split()[1])) == HE
    assert run('gate.avi', *words, '--camera', 7, '--as', 'Ann')[0] == 0  # the same shots: none is there twice
    with index.open(tmp_path / 'people') as kept:
        assert len(kept.find()) == len(views) and {entry.name for entry in kept.find()} == {'Ann'}
    assert not (tmp_path / 'found/gate.mp4').exists()


def test_without_a_start_nobody_knows_the_time_of_day(place, run, tmp_path):
    with index.create(tmp_path / 'people', 18, ABOUT):
        pass
    assert run('gate.avi', '--index', tmp_path / 'people', '--out', tmp_path / 'found', '--no_video')[0] == 0
    with index.open(tmp_path / 'people') as kept:
        assert {entry.time for entry in kept.find()} == {None} and {entry.camera for entry in kept.find()} == {1}


def test_without_a_threshold_there_is_an_order(place, run, tmp_path, monkeypatch):
    unsure = COLOURS._replace(bounds=Problem('no threshold has been chosen'))
    monkeypatch.setattr(search.utils, 'embedder', lambda opts, *index: unsure)
    code, said, err = run('gate.avi', '--find', 'ann.png', '--out', tmp_path / 'a', '--no_video')
    assert code == 0 and 'found' not in said
    assert 'nobody is called found: no threshold has been chosen' in err
    assert run('gate.avi', '--find', 'ann.png', '--out', tmp_path / 'a', '--no_video', '--threshold', 0.9)[0] == 0
    assert run('gate.avi', '--find', 'ann.png', '--out', tmp_path / 'a', '--no_video', '--threshold', 1)[0] == 1


def test_a_video_without_people(run, tmp_path):
    code, said, _ = run('empty.avi', '--find', 'ann.png', '--out', tmp_path / 'found')
    assert code == 1 and 'nobody was seen' in said
    assert len(pictures(tmp_path / 'found/empty.mp4')) == 20
    assert len(mot.read(tmp_path / 'found/tracks/empty.txt').who) == 0
    assert not (tmp_path / 'found/contact.jpg').exists()
    assert run('empty.avi', '--out', tmp_path / 'found')[0] == 1


def test_what_does_not_go_is_a_sentence(run, tmp_path):
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine/thesis.txt').write_text('x')
    (tmp_path / 'text.mp4').write_text('x')
    for words, sentence in (
        (['nowhere.mp4'], 'nowhere.mp4: there is no such file'),
        ([tmp_path / 'text.mp4'], 'is not a video that can be read'),
        (['gate.avi', '--find', 'none.png'], 'none.png: there is no such file'),
        (['gate.avi', '--out', tmp_path / 'mine'], 'holds thesis.txt: a new folder'),
        (['gate.avi', 'yard.avi', '--camera', 1], '--camera: 1 values for 2 sources'),
        (['gate.avi', '--index', tmp_path / 'no'], 'no'),
        (['gate.avi', '--as', 'Ann'], 'which one is --index?'),
        (['gate.avi', '--out', tmp_path / 'text.mp4'], 'cannot be written to'),
    ):
        code, _, err = run('--out', tmp_path / 'new', *words) if '--out' not in words else run(*words)
        assert code == 2 and sentence in err, err
    assert not (tmp_path / 'new').exists() and (tmp_path / 'mine/thesis.txt').read_text() == 'x'


def test_a_source_is_never_overwritten(place, run, tmp_path):
    out = tmp_path / 'found'
    assert run('empty.avi', '--out', out)[0] == 1
    code, _, err = run(out / 'empty.mp4', '--out', out)
    assert code == 2 and 'a source lies there' in err


def test_a_full_disk_is_a_sentence(run, tmp_path, monkeypatch):
    def full(self, view):
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(sightings.Film, 'save', full)
    code, _, err = run('gate.avi', '--out', tmp_path / 'found')
    assert code == 2 and 'the disk is full' in err


def test_a_stream_that_ends_leaves_what_was_seen(place, run, tmp_path, monkeypatch):
    whole = frames.recorded

    def broken(*how):
        for frame in whole(*how):
            if frame.number == 70:
                raise Problem('the stream is gone')
            yield frame

    monkeypatch.setattr(frames, 'recorded', broken)
    code, said, err = run('gate.avi', '--find', 'ann.png', '--out', tmp_path / 'found')
    assert code == 2 and 'the stream is gone' in err and ', camera 1' in said
    assert len(pictures(tmp_path / 'found/gate.mp4')) == 70
    assert mot.read(tmp_path / 'found/tracks/gate.txt').frame.max() == 70
    told = json.loads((tmp_path / 'found/tracks.json').read_text())
    assert not told['complete'] and any(track['views'] for track in told['tracks'])


def test_in_real_time_frames_are_dropped_and_the_video_keeps_its_length(place, run, tmp_path, monkeypatch):
    find = known(place.gate)

    def slow(picture):
        time.sleep(0.15)
        return find(picture)

    monkeypatch.setattr(detecting, 'load', lambda *how: slow)
    whole = frames.recorded
    monkeypatch.setattr(frames, 'recorded', lambda *how: (f for f in whole(*how) if f.number < 25))
    code, said, _ = run('gate.avi', '--out', tmp_path / 'found', '--realtime', '--every', 1)
    dropped = int(said.split(' together, ')[1].split(' dropped')[0])
    assert code in (0, 1) and 1 <= dropped < 25
    # The last frames may be among those that were dropped.
    assert 20 <= len(pictures(tmp_path / 'found/gate.mp4')) <= 25


# ---------------------------------------------------------------------------------------------------------------------
# 3. the command as a process, with files of networks


@pytest.fixture(scope='module')
def networks(place):
    """Files .onnx: a detector that always sees two people in two places, an embedder of mean colours."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    make, kinds = onnx.helper, onnx.TensorProto
    places = sum((96 // stride) ** 2 for stride in detecting.STRIDES)
    out = np.zeros((1, 84, places), np.float32)
    out[0, :5, 3], out[0, :5, 40] = (20, 32, 10, 24, 0.9), (48, 30, 12, 28, 0.8)

    def save(name, nodes, given, found, constants, **told):
        constants = [onnx.numpy_helper.from_array(value, key) for key, value in constants.items()]
        graph = make.make_graph(nodes, 'g', [given], [found], constants)
        file = make.make_model(graph, opset_imports=[make.make_opsetid('', 13)], ir_version=8)
        for key, value in told.items():
            file.metadata_props.add(key=key, value=json.dumps(value))
        onnx.save(file, place.folder / name)

    nodes = [
        make.make_node('ReduceMean', ['images'], ['mean'], keepdims=0),
        make.make_node('Mul', ['mean', 'zero'], ['none']),
        make.make_node('Add', ['none', 'out'], ['output']),
    ]
    given = make.make_tensor_value_info('images', kinds.FLOAT, (1, 3, 96, 96))
    found = make.make_tensor_value_info('output', kinds.FLOAT, out.shape)
    save('detector.onnx', nodes, given, found, {'zero': np.zeros(1, np.float32), 'out': out})

    nodes = [
        make.make_node('Cast', ['pictures'], ['x'], to=kinds.FLOAT),
        make.make_node('Sub', ['x', 'grey'], ['y']),
        make.make_node('ReduceMean', ['y'], ['mean'], axes=[1, 2], keepdims=0),
        make.make_node('LpNormalization', ['mean'], ['features'], axis=1, p=2),
    ]
    given = make.make_tensor_value_info('pictures', kinds.UINT8, ('n', *SIZE, 3))
    found = make.make_tensor_value_info('features', kinds.FLOAT, ('n', 3))
    about = {'size': SIZE, 'dim': 3, 'parts': 1, 'bounds': {'same': 0.9, 'not_same': 0.5}, 'versions': {}}
    about |= ABOUT | {'format': 'onnx', 'numbers': 'float32', 'input': 'uint8', 'beside': {}}
    save('colours.onnx', nodes, given, found, {'grey': np.array([110.5, 110, 109], np.float32)}, reid=about)
    return ['--detector', 'detector.onnx', '--model', 'colours.onnx', '--gpu_ids', '-1']


def test_the_whole_command_runs(place, networks, card, tmp_path):
    done = card('search.py', 'video', 'gate.avi', *networks, '--out', tmp_path / 'found', cwd=place.folder)
    assert done.returncode == 0, done.stderr
    table = mot.read(tmp_path / 'found/tracks/gate.txt')
    assert set(table.who) == {1, 2} and len(pictures(tmp_path / 'found/gate.mp4')) == len(place.gate)
    # From the third look on, each in every frame; and where both were looked at before.
    assert (np.bincount(table.frame)[7:] == 2).all()
    assert '2 tracks in 0:00:11' in done.stdout
    assert len(list((tmp_path / 'found/shots').glob('gate_1_*.jpg'))) == 3  # of 0.6 to 1.6 s, to 6.9 s, to the end


@pytest.mark.skipif(os.name == 'nt', reason='signals are another thing there')
@pytest.mark.parametrize('word', [signal.SIGINT, signal.SIGTERM])
def test_who_stops_it_keeps_what_was_seen(word, place, networks, tmp_path):
    out = tmp_path / 'found'
    command = [sys.executable, ROOT / 'search.py', 'video', 'gate.avi', *networks, '--realtime', '--out', out]
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a job in the background may ignore
    process = subprocess.Popen(command, cwd=place.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    while not list(out.glob('shots/*.jpg')) and process.poll() is None:  # the first second is over
        time.sleep(0.01)
    process.send_signal(word)
    said, err = process.communicate(timeout=60)
    assert process.returncode == 130 and 'Traceback' not in err, err
    assert 'track 1 of gate.avi' in said
    shown = pictures(out / 'gate.mp4')
    assert 5 <= len(shown) < len(place.gate)
    assert 1 <= mot.read(out / 'tracks/gate.txt').frame.max() <= len(shown)
    told = json.loads((out / 'tracks.json').read_text())
    assert not told['complete'] and [track['track'] for track in told['tracks']] == [1, 2]
    assert (out / 'contact.jpg').is_file() and not list(out.rglob('*.part*'))


# ---------------------------------------------------------------------------------------------------------------------
# 4. small things


def test_the_clock():
    assert [filming.clock(t) for t in (0, 59.9, 60, 3723.4, 360000)] == [
        '0:00:00', '0:00:59', '0:01:00', '1:02:03', '100:00:00'
    ]  # fmt: skip


def test_ticks_are_round_times():
    moment = datetime(2026, 11, 21, 23, 59, 58).timestamp()
    assert filming.ticks(None, 10, 5) == [(at, f'0:00:{at:02d}') for at in range(0, 11, 2)]
    assert filming.ticks(moment, 4, 5) == [
        (0, '23:59:58'), (1, '23:59:59'), (2, '00:00:00'), (3, '00:00:01'), (4, '00:00:02')
    ]  # fmt: skip
    assert filming.ticks(moment, 3600, 5)[0] == (2, '00:00')
    assert [words for _, words in filming.ticks(moment, 3 * 86400, 5)] == ['11-22 00:00', '11-23 00:00', '11-24 00:00']
    assert len(filming.ticks(moment, 400 * 86400, 5)) in (4, 5)
    assert filming.ticks(moment, 0.3, 5) == [(0, '23:59:58')] and filming.ticks(moment + 0.5, 0.3, 5) == []


def test_green_is_drawn_for_hits_alone_and_boxes_may_lie_anywhere():
    picture = np.full((240, 320, 3), 128, np.uint8)
    people = {1: [10.0, 20, 60, 200], 2: [-50.0, -50, 900, 900], 3: [400.0, 300, 500, 400]}
    people = {who: np.array(box) for who, box in people.items()}
    for quiet in (False, True):
        painter = filming.Painter(quiet)
        assert not (painter.draw(picture, 0, people, {}) == filming.GREEN).all(-1).any()
        drawn = painter.draw(picture, 1, people, {1: 'Ann 0.81'})
        assert (drawn[100, 10] == filming.GREEN).all() and drawn.shape == picture.shape
        assert not (drawn[120, 0] == filming.GREEN).all() and (drawn[120, 0] != 128).any()  # the edge of 2's box
        assert (picture == 128).all()
    for i in range(50):
        painter.draw(picture, 1 + i / 10, {1: people[1]}, {})
    assert set(painter.trails) == {1} and len(painter.trails[1]) <= filming.TRAIL * 10 + 1


def test_names_of_files_are_of_their_own():
    given = ['a/street.mp4', 'b/Street.avi', 'rtsp://me:secret@host/live?token=x', '0', 'street']
    found = watching.names(given)
    stems = [stem for _, stem in found]
    assert len({stem.lower() for stem in stems}) == len(given) and not any(set(stem) & set('/:?@ ') for stem in stems)
    assert not any('secret' in text or 'token' in text for pair in found for text in pair)
    assert found[0] == ('street.mp4', 'street') and found[3] == ('camera 0', 'camera_0')


def test_moments_that_are_close_are_one():
    seen = sightings.Seen(1)
    for moment in (0, 0.1, 1.9, 5, 5.1, 20):
        seen.at(moment, moment)
    assert seen.spans == [[0, 1.9], [5, 5.1], [20, 20]] and (seen.first, seen.last) == (0, 20)


def test_a_live_source_is_watched_alone(monkeypatch):
    from contextlib import ExitStack

    live = SimpleNamespace(live=True, __enter__=None)
    monkeypatch.setattr(frames, 'open', lambda *a, **k: live)
    stack = SimpleNamespace(enter_context=lambda source: source)
    assert watching.opened(['0'], False, stack) == [live]
    with ExitStack(), pytest.raises(Problem, match='a command of its own for each'):
        watching.opened(['0', '1'], False, stack)
