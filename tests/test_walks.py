"""The drawn video and its truth: python -m pytest tests/test_walks.py"""

import itertools

import numpy as np
import pytest

from reid import mot, walks
from reid.problem import Problem
from reid.wardrobe import person


@pytest.fixture(scope='module')
def clip():
    return list(walks.video(seed=0, camera=1, seconds=20, fps=4))


def test_a_video_has_its_frames_at_their_times(clip):
    assert [time for time, _, _ in clip] == [i / 4 for i in range(80)]
    assert all(frame.shape == (360, 640, 3) and frame.dtype == np.uint8 for _, frame, _ in clip)
    assert len(list(walks.video(seconds=0.99, fps=3, people=[]))) == 3


def test_the_same_arguments_give_the_same_video_and_others_another(clip):
    again = list(walks.video(seed=0, camera=1, seconds=1, fps=4))
    assert all((a == b).all() and s == t for (_, a, s), (_, b, t) in zip(again, clip, strict=False))
    for other in (walks.video(seed=1, seconds=1, fps=4), walks.video(camera=2, seconds=1, fps=4)):
        assert next(other)[2] != clip[0][2]


def test_a_later_frame_does_not_depend_on_the_rate():
    slow, fast = (list(walks.video(seed=2, seconds=6, fps=fps, people=[1, 2, 3])) for fps in (1, 2))
    assert [seen for _, _, seen in slow] == [seen for _, _, seen in fast[::2]]


def test_boxes_lie_in_the_frame_and_parts_between_none_and_all(clip):
    for _, _, seen in clip:
        assert [s.who for s in seen] == sorted({s.who for s in seen})
        for who, (left, top, right, bottom), visible in seen:
            assert who in range(1, 9) and 0 <= visible <= 1
            assert 0 <= left < right <= 640 and 0 <= top < bottom <= 360


@pytest.mark.parametrize('camera', range(1, 7))
def test_people_are_where_the_truth_says(camera):
    """What differs from the empty scene is in the boxes, but for noise and shadows at the feet; and it fills them."""
    empty = next(walks.video(camera=camera, seconds=1, fps=1, people=[]))[1].astype(int)
    checked = 0
    for i in range(0, 14, 2):
        stage = walks.Stage(0, camera)
        there = [(w, *place) for w in range(1, 9) if (place := walks.Walker(0, camera, w).at(i))]
        frame, seen = stage.frame(0, there)  # frame 0 has the noise of the empty one
        change = np.abs(frame.astype(int) - empty).max(2)
        outside = np.ones(change.shape, bool)
        for s in seen:
            left, top, right, bottom = (int(v) for v in s.box)
            outside[top:bottom, left:right] = False
            if s.visible > 0.95:
                assert (change[top:bottom, left:right] > 10).mean() > 0.3
                checked += 1
        assert (change[outside] > 60).mean() < 1e-3
    assert checked > 8


def test_visible_is_what_others_leave(clip):
    """Somebody alone is visible; the part that is hidden grows with what is drawn before him."""
    stage = walks.Stage(0, 1)
    alone = stage.frame(0, [(1, 0.0, 8.0, 0.0, 0.0)])[1][0]
    assert alone.visible == 1
    both = stage.frame(0, [(1, 0.0, 8.0, 0.0, 0.0), (2, 0.1, 7.0, 0.0, 0.0)])[1]
    assert both[0].box == alone.box and both[0].visible < 0.4 and both[1].visible == 1
    behind = stage.frame(0, [(1, -2.4, 9.4, 0.0, 0.0)])[1][0]  # the hedge
    before = stage.frame(0, [(1, -2.4, 7.4, 0.0, 0.0)])[1][0]
    assert behind.visible < 0.1 and before.visible == 1
    edge = stage.frame(0, [(1, -walks.EDGE * 8.0, 8.0, 0.0, 0.0)])[1][0]
    assert edge.box[0] == 0 and 0.2 < edge.visible < 0.8
    assert stage.frame(0, [(1, 30.0, 8.0, 0.0, 0.0)])[1] == []


def test_who_is_twice_as_far_is_half_as_high_and_lengths_are_metres():
    stage = walks.Stage(0, 3)
    near, far = (stage.frame(0, [(4, 0.6, z, 0.0, None)])[1][0].box for z in (6.5, 13.0))
    assert (far[3] - far[1]) / (near[3] - near[1]) == pytest.approx(0.5, abs=0.03)
    high = walks.BODY * person(0, 'id', 4).height * walks.FOCUS / 6.5
    assert near[3] - near[1] == pytest.approx(high, rel=0.1)
    for box, z in ((near, 6.5), (far, 13.0)):  # people are `ratio` as high as their feet are below the horizon
        assert box[3] - walks.SKYLINE == pytest.approx(walks.BODY * walks.FOCUS / z / stage.view.ratio, rel=0.06)


def test_a_camera_develops_its_pictures():
    """Light and white balance, by hand for one value of one pixel; a dark camera makes a dark picture."""
    stage = walks.Stage(0, 6)
    view = stage.view
    red = (min(1, 100 / 255 * view.gain * view.red) ** view.gamma - 0.5) * view.contrast + 0.5
    assert stage.curves[100] == round(255 * red) and stage.curves[0] <= stage.curves[255] and len(stage.curves) == 768
    frame, ground = stage.frame(0, [])[0], np.asarray(stage.ground)
    assert frame.mean() < 0.9 * ground.mean()
    assert frame[:, :, 2].mean() / frame[:, :, 0].mean() > ground[:, :, 2].mean() / ground[:, :, 0].mean()  # blue


def test_people_walk_at_the_pace_of_people_around_things_and_come_back():
    for camera in walks.PLACES:
        visits = 0
        for who in range(1, 6):
            walker, last = walks.Walker(0, camera, who), None
            for t in np.arange(0, 60, 0.1):
                place = walker.at(t)
                if place and last:
                    assert np.hypot(place[0] - last[0], place[1] - last[1]) <= 0.1 * 1.6 + 0.01
                if place:
                    for kind, x, z, _ in walks.PLACES[camera][2]:
                        wide, _, deep = walks.SIZES[kind]
                        assert np.hypot((place[0] - x) / wide * 2, (place[1] - z) / deep) > 1
                visits += bool(place) and not last
                last = place
            assert walker.visits[0].time[0] != walker.visits[1].time[0]
        assert visits >= 10


def test_somebody_is_hidden_and_seen_again_and_leaves_and_returns(clip):
    hidden = away = 0
    for who in range(1, 9):
        parts = [next((s.visible for s in seen if s.who == who), None) for _, _, seen in clip]
        names = ('away' if p is None else 'seen' if p >= 0.25 else 'hidden' for p in parts)
        states = [name for name, _ in itertools.groupby(names)]
        triples = list(zip(states, states[1:], states[2:], strict=False))
        hidden += ('seen', 'hidden', 'seen') in triples
        away += 'away' in states[1:-1]
    assert hidden >= 4 and away >= 4


def test_somebody_looks_the_same_to_the_eye_in_two_cameras_and_unlike_others():
    """A step of the toy data set's people: the colours of the trousers tell two apart, not the camera."""
    colours = {}
    for camera, who in itertools.product((1, 3), (2, 5)):
        cutout = walks.figure(0, who, 0, None, camera).image.convert('RGBA')
        x = np.asarray(cutout).astype(float)
        left, top, right, bottom = cutout.getchannel('A').point(lambda a: 255 * (a > 127)).getbbox()
        body = x[top + (bottom - top) // 5 : bottom, left:right]
        colours[camera, who] = body[body[:, :, 3] > 250][:, :3].mean(0)
    for who, other in ((2, 5), (5, 2)):
        same = np.abs(colours[1, who] - colours[3, who]).mean()
        assert same < np.abs(colours[1, who] - colours[1, other]).mean()


def test_hidden_ones_do_not_count_in_the_truth():
    seen = [walks.Seen(1, (0, 0, 1, 2), 0.9), walks.Seen(2, (0, 0, 1, 2), 0.2)]
    assert walks.entries(7, seen) == [(7, 1, (0, 0, 1, 2), 1.0), (7, 2, (0, 0, 1, 2), 0.0)]


@pytest.mark.parametrize('wrong', [{'camera': 7}, {'seconds': 0}, {'fps': -1}, {'fps': float('nan')}])
def test_wrong_arguments_are_a_sentence(wrong):
    with pytest.raises(Problem, match='a camera of 1..6'):
        next(walks.video(**wrong))


@pytest.mark.parametrize('name', ['a.avi', 'a.mp4'])
def test_a_file_holds_the_video_and_its_truth(tmp_path, name):
    cv2 = pytest.importorskip('cv2')
    walks.write(tmp_path / name, tmp_path / 'gt.txt', fps=5.0, seed=1, seconds=1.0, people=[1, 2, 3])
    frames = list(walks.video(1, 1, 1.0, 5.0, [1, 2, 3]))
    file = cv2.VideoCapture(str(tmp_path / name))
    assert file.get(cv2.CAP_PROP_FPS) == 5
    for _, frame, _ in frames:
        good, stored = file.read()
        assert good and np.abs(stored[:, :, ::-1].astype(int) - frame).mean() < 8
    assert not file.read()[0]
    truth = mot.read(tmp_path / 'gt.txt')
    expected = mot.rows([entry for i, (_, _, seen) in enumerate(frames, 1) for entry in walks.entries(i, seen)])
    assert all((a == b).all() for a, b in zip(truth, expected, strict=True))


def test_a_file_that_cannot_be_written_is_a_sentence(tmp_path):
    pytest.importorskip('cv2')
    with pytest.raises(Problem, match='ends with'):
        walks.write(tmp_path / 'a.gif')
    with pytest.raises(Problem, match='cannot be written'):
        walks.write(tmp_path / 'none' / 'a.avi', seconds=1)
