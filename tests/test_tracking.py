"""Following people, in a few drawn steps and through a whole drawn video: python -m pytest tests/test_tracking.py"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid import kalman, mot, tracking, walks
from reid.problem import Problem
from reid.tracking import Tracker

STEP = 0.12  # every third frame of 25 a second


def person(x, y=100.0, h=100.0):
    """The box of somebody whose feet are around there."""
    return [x, y, x + 0.4 * h, y + h]


def vectors(*names, d=16):
    """Unit vectors that are at right angles for different names."""
    return np.eye(d)[list(names)].reshape(-1, d)


def step(tracker, time, boxes, scores=None, **more):
    """{id: left edge} of what an update tells."""
    scores = [0.9] * len(boxes) if scores is None else scores
    return {
        t.id: t.box[0] for t in tracker.update(time, np.array(boxes, float).reshape(-1, 4), np.array(scores), **more)
    }


def walk(tracker, times, speed=80.0, x=0.0, **more):
    """One person at x + speed * time. Returns the last answer."""
    for time in times:
        told = step(tracker, time, [person(x + speed * time)], **more)
    return told


def ticks(n, start=0.0):
    return [round(start + i * STEP, 6) for i in range(n)]


# ---------------------------------------------------------------------------------------------------------------------
# 1. motion


def textbook(measurements, seconds):
    """The Kalman filter of eight numbers, with matrices: the state after each measurement."""
    z = measurements[0]
    x, p = np.concatenate([z, np.zeros(4)]), np.diag(np.concatenate([kalman.JITTER, kalman.SPEED]) * z[3]) ** 2
    look = np.hstack([np.eye(4), np.zeros((4, 4))])
    for z, t in zip(measurements[1:], seconds, strict=True):
        f = np.block([[np.eye(4), t * np.eye(4)], [np.zeros((4, 4)), np.eye(4)]])
        q = np.diag((kalman.CHANGE * x[3]) ** 2)
        x, p = f @ x, f @ p @ f.T + np.block([[q * t**3 / 3, q * t**2 / 2], [q * t**2 / 2, q * t]])
        gain = p @ look.T @ np.linalg.inv(look @ p @ look.T + np.diag(kalman.JITTER * x[3]) ** 2)
        x, p = x + gain @ (z - look @ x), (np.eye(8) - gain @ look) @ p
    return x, p


def test_the_filter_is_that_of_the_textbook():
    rng = np.random.default_rng(0)
    boxes = np.array([[person(10 * i + rng.normal(), 100 + rng.normal(), 90 + i) for i in range(6)] for _ in range(3)])
    boxes += rng.normal(0, 2, boxes.shape)  # (3 people, 6 times, 4)
    seconds = rng.uniform(0.04, 0.6, 5)
    states = kalman.start(boxes[:, 0])
    for i, t in enumerate(seconds, 1):
        states = kalman.correct(kalman.predict(states, t), boxes[:, i])
    for state, seen in zip(states, boxes, strict=True):
        x, p = textbook(kalman.measured(seen), seconds)
        np.testing.assert_allclose(state[:2].ravel(), x, rtol=1e-9)
        np.testing.assert_allclose(state[2], np.diag(p)[:4], rtol=1e-9)
        np.testing.assert_allclose(state[3], np.diag(p, 4), rtol=1e-9)
        np.testing.assert_allclose(state[4], np.diag(p)[4:], rtol=1e-9)


def test_two_predictions_are_as_one():
    states = kalman.start(np.array([person(0), person(5, h=30)]))
    states[:, 1, :2] = 40  # moving, with a size that stays
    np.testing.assert_allclose(
        kalman.predict(kalman.predict(states, 0.3), 0.5), kalman.predict(states, 0.8), rtol=1e-12
    )
    np.testing.assert_allclose(kalman.boxes(kalman.start(np.array([person(7)]))), [person(7)])


def test_who_goes_away_does_not_turn_inside_out():
    states = kalman.start(np.array([person(0, h=10)]))
    states[:, 1, 2:] = -5
    left, top, right, bottom = kalman.boxes(kalman.predict(states, 60))[0]
    assert right - left == bottom - top == 1


def test_people_keep_their_numbers_at_irregular_times():
    rng = np.random.default_rng(3)
    times = np.cumsum(rng.uniform(0.03, 0.5, 60))
    tracker, told = Tracker(), []
    for t in times:
        told.append(step(tracker, t, [person(90 * t), person(3000 - 70 * t), person(1500 + 5 * t, 400)]))
    assert all(set(ids) == {1, 2, 3} for ids in told[3:])
    assert [round(told[-1][i]) for i in (1, 2, 3)] == [round(v) for v in (90 * t, 3000 - 70 * t, 1500 + 5 * t)]


def test_a_slow_detector_does_not_lose_people_at_their_first_steps():
    assert set(walk(Tracker(), [0, 0.5, 1.0, 1.5])) == {1}  # by a whole width each


def test_who_passes_behind_something_is_expected_where_he_comes_out():
    tracker = Tracker()
    walk(tracker, ticks(10))
    for t in ticks(10, 10 * STEP):
        assert step(tracker, t, []) == {}
    assert set(walk(tracker, ticks(1, 20 * STEP))) == {1}
    assert tracker.tracks[0].state == 'confirmed' and tracker.ended() == []


def test_two_who_cross_each_other_do_not_swap():
    tracker = Tracker()
    for t in ticks(40):
        if abs(t - 2.4) > 0.3:  # at 200, where one hides the other
            told = step(tracker, t, [person(100 * t - 40), person(440 - 100 * t, 104)])
        else:
            told = step(tracker, t, [person(440 - 100 * t, 104)])
    assert told[1] == pytest.approx(100 * t - 40) and told[2] == pytest.approx(440 - 100 * t)


def test_predict_looks_ahead_and_changes_nothing():
    tracker = Tracker()
    assert tracker.predict(5.0) == {}
    walk(tracker, ticks(12))
    last = ticks(12)[-1]
    ahead = tracker.predict(last + 0.1)
    assert ahead[1] == pytest.approx(person(80 * (last + 0.1)), abs=3)
    assert tracker.predict(last + 0.1)[1] == pytest.approx(ahead[1])
    step(tracker, last + 0.1, [])
    assert set(tracker.predict(last + 0.1)) == {1} and tracker.predict(last + 0.1, unseen=0.05) == {}
    with pytest.raises(Problem, match='looks ahead'):
        tracker.predict(last)


# ---------------------------------------------------------------------------------------------------------------------
# 2. two stages


def test_an_unsure_box_keeps_somebody_and_never_begins_one():
    tracker = Tracker()
    walk(tracker, ticks(5))
    for t in ticks(30, 5 * STEP):
        told = step(tracker, t, [person(80 * t), person(900)], [0.2, 0.5])
        assert set(told) == {1}
    for t in ticks(2, 35 * STEP):
        assert step(tracker, t, [person(80 * t)], [0.05]) == {}


def test_a_sure_box_is_given_away_before_an_unsure_one():
    tracker = Tracker()
    walk(tracker, ticks(6), speed=0)
    told = step(tracker, 1.0, [person(0), person(8)], [0.3, 0.9])  # the unsure one overlaps better
    assert told == {1: 8}


def test_an_unsure_box_does_not_bring_back_the_lost():
    tracker = Tracker()
    walk(tracker, ticks(6), speed=0)
    step(tracker, 0.8, [])
    assert step(tracker, 0.9, [person(0)], [0.5]) == {}
    assert step(tracker, 1.0, [person(0)], [0.9]) == {1: 0}


# ---------------------------------------------------------------------------------------------------------------------
# 3. life


def test_a_number_comes_with_the_third_detection_and_tells_of_the_first_two():
    tracker = Tracker()
    assert walk(tracker, ticks(2)) == {}
    (track,) = tracker.update(0.24, [person(19.2)], [0.7])
    assert (track.id, track.state, track.hits, track.first, track.last) == (1, 'confirmed', 3, 0, 0.24)
    assert [(t, b[0], s) for t, b, s in track.early] == [(0, 0, 0.9), (0.12, pytest.approx(9.6), 0.9)]
    (track,) = tracker.update(0.36, [person(28.8)], [0.9])
    assert track.early == []
    assert step(Tracker(confirm=1), 0, [person(0)]) == {1: 0}


def test_false_alarms_use_up_no_numbers():
    tracker = Tracker()
    for i, t in enumerate(ticks(50)):
        told = step(tracker, t, [person(20 * t), person(500 + 200 * (i % 5)), person(100 * (i % 7), 600)])
    assert set(told) == {1} and tracker.count == 1 and len(tracker.tracks) <= 3
    tracker.close()
    assert [t.id for t in tracker.ended()] == [1]


def test_who_leaves_ends_once_and_numbers_are_never_used_again():
    tracker = Tracker()
    walk(tracker, ticks(5))
    for t in ticks(30, 1):
        step(tracker, t, [])
    (gone,) = tracker.ended()
    assert (gone.id, gone.state, gone.last) == (1, 'ended', ticks(5)[-1])
    assert tracker.ended() == [] and tracker.tracks == []
    assert set(walk(tracker, ticks(5, 6))) == {2}
    tracker.close()
    assert [t.id for t in tracker.ended()] == [2]


def test_who_has_a_look_is_remembered_longer_but_not_for_ever():
    for memory, number in ((30, 1), (4, 2)):
        tracker = Tracker(memory=memory)
        walk(tracker, ticks(5), features=vectors(0))
        for t in range(1, 10):
            step(tracker, t, [], features=vectors())
        assert set(walk(tracker, ticks(5, 10), features=vectors(0))) == {number}


def test_motion_is_not_trusted_after_a_long_gap():
    tracker = Tracker()
    walk(tracker, ticks(8), speed=0)
    assert step(tracker, 60, [person(0)]) == {}  # somebody else may stand there after a minute


# ---------------------------------------------------------------------------------------------------------------------
# 4. appearance


def test_who_was_away_comes_back_with_his_number_and_a_stranger_does_not():
    for name, number in ((0, 1), (1, 2)):
        tracker = Tracker()
        walk(tracker, ticks(5), features=vectors(0))
        told = walk(tracker, ticks(3, 10), speed=-50, x=900, features=vectors(name))
        assert set(told) == {number}


def test_who_comes_back_keeps_nothing_of_his_old_motion_and_tells_what_was_seen_meanwhile():
    tracker = Tracker()
    walk(tracker, ticks(5), features=vectors(0))
    half = vectors(0) + 3 * vectors(1)  # half hidden, he is not recognised at first
    for t in (10.0, 10.1):
        assert walk(tracker, [t], speed=-50, x=900, features=half) == {}
    (track,) = tracker.update(10.2, [person(390)], [0.9], features=vectors(0) * 40)
    assert track.id == 1 and [t for t, _, _ in track.early] == [10.0, 10.1] and track.hits == 8
    assert tracker.predict(10.2)[1] == pytest.approx(person(390), abs=3)


def test_a_look_is_the_mean_of_the_pictures():
    tracker = Tracker(alike=-1)
    for t, name in zip(ticks(3), (0, 1, 1), strict=True):
        walk(tracker, [t], features=vectors(name))
    assert tracker.tracks[0].looks == 3
    mean = 2 / 3 * (vectors(0) + vectors(1)) / 2**0.5 + vectors(1) / 3  # of unit length at each step
    np.testing.assert_allclose(tracker.tracks[0].look, (mean / np.linalg.norm(mean))[0])


def test_nobody_comes_back_faster_than_he_can_run():
    for gap, ids in ((0.5, set()), (9.0, {1})):
        tracker = Tracker()
        walk(tracker, ticks(5), speed=0, features=vectors(0))
        assert set(walk(tracker, [ticks(5)[-1] + gap], x=900, speed=0, features=vectors(0))) == ids


def test_two_who_meet_and_turn_back_are_told_apart_by_appearance_alone():
    def last(looks):
        tracker = Tracker()
        for t in ticks(40):
            a = 100 * min(t, 4.0 - t)  # to 200 and back
            order = [0] if abs(t - 2.0) < 0.4 else [0, 1]
            boxes = [person(a), person(405 - a)]
            told = step(tracker, t, [boxes[i] for i in order], features=vectors(*order) if looks else None)
        return told[1] < told[2], tracker.count

    assert last(looks=True) == (True, 2)
    assert not last(looks=False)[0]


def test_a_stranger_does_not_take_over_the_number_of_somebody_hidden_in_his_place():
    for name, number in ((0, {1}), (1, set())):
        tracker = Tracker()
        walk(tracker, ticks(4), speed=0, features=vectors(0))
        step(tracker, 0.48, [], features=vectors())
        assert set(step(tracker, 0.6, [person(4)], features=vectors(name))) == number


def test_nor_of_somebody_in_view_for_longer_than_until_the_next_look():
    tracker = Tracker()
    walk(tracker, ticks(4), speed=0, features=vectors(0))  # with the third he was looked at, for the next second
    assert set(walk(tracker, ticks(6, 0.48), speed=0, features=vectors(1))) == {1}
    assert walk(tracker, [1.32], speed=0, features=vectors(1)) == {}


def test_appearance_decides_between_two_boxes_and_between_two_tracks():
    for name, x in ((0, -14), (1, 10)):
        tracker = Tracker()
        walk(tracker, ticks(4), speed=0, features=vectors(0))
        told = step(tracker, 0.48, [person(-14), person(10)], features=vectors(name, 1 - name))
        assert told == {1: x}
    for name in (0, 1):
        tracker = Tracker()
        for t in ticks(4):
            step(tracker, t, [person(0), person(20)], features=vectors(0, 1))
        assert step(tracker, 0.48, [person(10)], features=vectors(name)) == {name + 1: 10}


def test_the_best_match_wins_among_several_lost():
    tracker = Tracker(alike=0.3)
    mixed = [vectors(0)[0], vectors(0)[0] + 0.5 * vectors(1)[0]]
    for t in ticks(5):
        step(tracker, t, [person(0), person(300)], features=np.array(mixed))
    back = step(tracker, 20, [person(500), person(800)], features=np.array(mixed[::-1]))
    assert back == {2: 500, 1: 800}


def test_a_box_behind_somebody_does_not_spoil_the_look():
    tracker, both = Tracker(), np.vstack([0.8 * vectors(0) + 0.6 * vectors(1), vectors(1)])
    walk(tracker, ticks(3), speed=0, features=vectors(0))
    for t in ticks(60, 0.36):
        told = step(tracker, t, [person(0), person(15, 110)], features=both)  # the second covers the first
    assert told == {1: 0, 2: 15} and tracker.tracks[0].look[0] > 0.99
    for t in ticks(60, 10):
        step(tracker, t, [person(0), person(15, 90)], features=both)  # the first is nearer
    assert tracker.tracks[0].look[0] < 0.9


def test_vectors_are_asked_for_only_where_they_are_needed_and_once():
    rng, asked = np.random.default_rng(0), []
    people = rng.standard_normal((6, 32))
    by_array, by_function = Tracker(), Tracker()
    for t in ticks(120):
        x = [400 + 300 * np.sin(t / 3 + i) for i in range(6)]
        boxes, scores = [person(v, 100 + 7 * i) for i, v in enumerate(x)], rng.uniform(0.2, 1, 6)
        f = people + 0.3 * rng.standard_normal(people.shape)
        rows = []

        def give(wanted, rows=rows, f=f):
            rows.extend(wanted)
            return f[wanted]

        told = step(by_function, t, boxes, scores, features=give)
        assert told == step(by_array, t, boxes, scores, features=f) and len(set(rows)) == len(rows)
        asked.append(len(rows))
    assert 0 < np.mean(asked[10:]) < 3 and by_array.count == by_function.count == 6


def test_nobody_asks_for_a_box_whose_owner_is_clear():
    tracker, asked = Tracker(), []

    def give(rows):
        asked.extend(rows)
        return vectors(*rows)

    for t in ticks(4):
        step(tracker, t, [person(0), person(26)], features=give)
    asked.clear()
    assert step(tracker, 0.48, [person(0)], features=give) == {1: 0}
    assert step(tracker, 0.6, [person(0)], features=give) == {1: 0}  # the other is lost, and a little in the way
    assert asked == []


def test_a_vector_without_a_direction_tells_nothing():
    for nothing in (np.zeros((1, 16)), np.full((1, 16), np.nan)):
        tracker = Tracker()
        assert set(walk(tracker, ticks(20), features=nothing)) == {1}
        assert tracker.tracks[0].look is None


# ---------------------------------------------------------------------------------------------------------------------
# 5. cuts


def test_after_a_cut_appearance_alone_brings_people_back_from_anywhere():
    tracker = Tracker()
    for t in ticks(6):
        step(tracker, t, [person(0), person(300)], features=vectors(0, 1))
    told = step(tracker, 0.72, [person(300), person(5000, 900)], features=vectors(2, 0), cut=True)
    assert told == {1: 5000}  # and who stands where 2 stood is not 2
    assert tracker.predict(0.72).keys() == {1}


def test_after_a_cut_without_appearance_everybody_is_new():
    tracker = Tracker()
    walk(tracker, ticks(6), speed=0)
    assert step(tracker, 0.72, [person(0)], cut=True) == {}
    assert [t.id for t in tracker.ended()] == [1]
    assert step(tracker, 0.84, [person(0)]) == {}
    assert step(tracker, 0.96, [person(0)], cut=True) == {}  # nor is what was about to get a number
    assert set(walk(tracker, ticks(2, 1.08), speed=0)) == {2}


def test_a_cut_is_seen_and_people_and_light_are_none():
    clips = {c: [frame for _, frame, _ in walks.video(0, c, 6, 2)] for c in range(1, 7)}
    for frames in clips.values():
        assert not any(tracking.cut(b, a) for a, b in itertools.pairwise(frames))
        assert not tracking.cut((frames[0] * 0.7).astype(np.uint8), frames[0])
    assert all(tracking.cut(clips[a][0], clips[b][0]) for a, b in itertools.permutations(clips, 2))
    assert tracking.cut(clips[1][0], clips[1][0][:200])


# ---------------------------------------------------------------------------------------------------------------------
# 6. whatever may come


def test_no_detections():
    tracker = Tracker()
    assert [step(tracker, t, []) for t in ticks(3)] == [{}] * 3
    assert tracker.update(9, np.zeros((0, 4)), np.zeros(0), features=np.zeros((0, 8)), cut=True) == []


def test_a_hundred_people_at_once():
    rng = np.random.default_rng(0)
    home, speed = rng.uniform(0, (9000, 3000), (100, 2)), rng.uniform(-60, 60, (100, 2))
    names = vectors(*range(100), d=100)
    tracker, numbers = Tracker(), {}
    for t in ticks(20):
        order = rng.permutation(100)
        place = (home + t * speed)[order]
        boxes = np.hstack([place, place + [40, 100]])
        for track in tracker.update(t, boxes, np.full(100, 0.9), names[order]):
            row = np.flatnonzero((boxes == track.box).all(1))[0]
            assert numbers.setdefault(track.id, order[row]) == order[row]
    assert len(numbers) == 100


def test_boxes_without_size_and_nan_are_left_out_and_vectors_stay_with_their_boxes():
    bad = [[5, 5, 5, 50], [9, 9, 3, 20], [np.nan, 0, 10, 10], [0, 0, np.inf, 10]]
    tracker = Tracker()
    for t in ticks(4):
        boxes, scores = [*bad, person(0), person(200), person(400)], [0.9] * 5 + [float('nan'), 0.9]
        told = step(tracker, t, boxes, scores, features=vectors(7, 7, 7, 7, 0, 7, 1))
    assert told == {1: 0, 2: 400}
    assert [t.look.argmax() for t in tracker.tracks] == [0, 1]


def test_boxes_outside_of_the_frame_and_tiny_ones_are_followed_as_others():
    tracker = Tracker()
    for t in ticks(30):
        told = step(tracker, t, [person(-500 - 50 * t), person(1e6), [10, 10, 10.5, 11]])
    assert set(told) == {1, 2, 3} and all(np.isfinite(b).all() for b in tracker.predict(t + 1).values())


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), looks=st.booleans(), cuts=st.booleans())
def test_whatever_comes_nobody_is_twice_and_each_box_is_one_mans(seed, looks, cuts):
    rng, trackers, time = np.random.default_rng(seed), [Tracker(), Tracker()], 0.0
    known, over = set(), set()
    for _ in range(25):
        time += rng.choice([0.04, 0.12, 1.0, 5.0])
        n = rng.integers(0, 9)
        corner = rng.integers(0, 5, (n, 2)) * 30.0 + rng.normal(0, 4, (n, 2))
        boxes, scores = np.hstack([corner, corner + rng.uniform(10, 60, (n, 2))]), rng.uniform(0, 1, n)
        f = np.eye(4)[rng.integers(0, 4, n)] + rng.normal(0, 0.1, (n, 4)) if looks else None
        cut = cuts and rng.random() < 0.1
        told, again = (t.update(time, boxes, scores, f, cut) for t in trackers)
        assert [(t.id, *t.box) for t in told] == [(t.id, *t.box) for t in again]  # the same every time
        ids = [t.id for t in told]
        assert ids == sorted(set(ids)) and not over & set(ids)
        shown = [tuple(t.box) for t in told]
        assert len(set(shown)) == len(shown) and set(shown) <= {tuple(b) for b in boxes}
        assert all(t.last == time and t.state == 'confirmed' and t.score >= tracking.LOW for t in told)
        known |= set(ids)
        over |= {t.id for t in trackers[0].ended()}
    trackers[0].close()
    over |= {t.id for t in trackers[0].ended()}
    assert over == known == set(range(1, len(known) + 1))


@pytest.mark.parametrize(
    ('boxes', 'scores', 'features', 'said'),
    [
        ([[0, 0, 1]], [1], None, r'boxes of the shape \(N, 4\)'),
        ([[0, 0, 1, 1]], [1, 1], None, r'found \(1, 4\) and \(2,\)'),
        ([[0, 0, 1, 1]], [1], np.ones((2, 3)), r'features of the shape \(1, D\)'),
        ([[0, 0, 1, 1]], [1], lambda rows: np.ones(3), r'features of the shape \(1, D\)'),
    ],
)
def test_wrong_shapes_are_a_sentence(boxes, scores, features, said):
    with pytest.raises(Problem, match=said):
        Tracker().update(0, boxes, scores, features)


def test_time_runs_forward_and_settings_make_sense():
    tracker = Tracker()
    step(tracker, 1.0, [])
    for time in (1.0, 0.5, float('nan'), float('inf')):
        with pytest.raises(Problem, match='later than that of the last'):
            step(tracker, time, [])
    for wrong in ({'alike': 1.0}, {'memory': -1}, {'low': 0.7}, {'confirm': 0}, {'high': float('nan')}):
        with pytest.raises(Problem, match='of a tracker must lie between'):
            Tracker(**wrong)


# ---------------------------------------------------------------------------------------------------------------------
# 7. a whole video


def detect(rng, seen, looks):
    """What a detector makes of the truth: missed, false and shaken boxes; a score and a vector by how much is seen."""
    boxes, scores, features = [], [], []
    for s in seen:
        shake, noise, score, missed = (
            rng.normal(0, 0.03, 4),
            rng.normal(0, 1 / 8, 64),
            rng.normal(0, 0.07),
            rng.random(),
        )
        if s.visible < 0.25 or missed < 0.08:
            continue
        boxes.append(np.array(s.box) + shake * (s.box[3] - s.box[1]))
        scores.append(np.clip(0.35 + 0.6 * s.visible + score, 0.05, 0.99))
        features.append(looks[s.who] + noise * (1.55 - s.visible))
    for _ in range(rng.poisson(0.15)):
        x, y, h = rng.uniform(0, 600), rng.uniform(80, 200), rng.uniform(60, 150)
        boxes.append(np.array(person(x, y, h)))
        scores.append(rng.uniform(0.1, 0.75))
        features.append(rng.normal(0, 1 / 8, 64))
    return np.array(boxes).reshape(-1, 4), np.array(scores), np.array(features).reshape(-1, 64)


def colours(frame, box):
    """Histograms of six stripes of a box, from head to feet: a poor man's re-ID."""
    left, top, right, bottom = (max(0, round(v)) for v in box)
    inner = (right - left) // 5
    crop = frame[top:bottom, left + inner : right - inner] // 64
    parts = [part.reshape(-1, 3) @ [16, 4, 1] for part in np.array_split(crop, 6)]
    return np.sqrt(np.concatenate([np.bincount(part, minlength=64) / max(1, len(part)) for part in parts]))


def follow(clip, appearance, alike=tracking.ALIKE):
    """A video -> the metrics, with the vectors of `detect`, of `colours` or none."""
    rng, tracker = np.random.default_rng(0), Tracker(alike=alike)
    looks = rng.standard_normal((9, 64)) / 8
    truth, found, number = [], [], {}
    for i, (time, frame, seen) in enumerate(clip, 1):
        number[time] = i
        truth += walks.entries(i, seen)
        boxes, scores, features = detect(rng, seen, looks)
        if appearance == 'colours':
            features = np.array([colours(frame, box) for box in boxes]).reshape(-1, 384)
        for track in tracker.update(time, boxes, scores, features if appearance else None):
            for when, box, score in [*track.early, (time, track.box, track.score)]:
                found.append((number[when], track.id, box, score))
    return mot.evaluate(mot.rows(truth), mot.rows(found))


@pytest.mark.parametrize('camera', [1, 4])
def test_appearance_pays_where_people_are_hidden_and_come_back(camera):
    clip = list(walks.video(seed=1, camera=camera, seconds=24, fps=25 / 3))
    without, by_colours, by_vectors = follow(clip, None), follow(clip, 'colours', 0.8), follow(clip, 'vectors')
    assert without['MOTA'] > 0.65 and by_vectors['MOTA'] > 0.75
    assert by_vectors['IDF1'] > 0.8 and by_vectors['IDF1'] > without['IDF1'] + 0.25
    assert by_colours['IDF1'] > without['IDF1'] + 0.08
    assert by_vectors['HOTA'] > by_colours['HOTA'] > without['HOTA']
    assert by_vectors['IDSW'] < without['IDSW'] / 2
