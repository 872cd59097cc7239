"""MOT metrics against trackeval and by hand, and the file format: python -m pytest tests/test_mot.py"""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reid import mot
from reid.problem import Problem

BOX = (0, 0, 10, 20)


def walk(who, frames, box=BOX):
    return [(frame, who, box, 1.0) for frame in frames]


def scores(truth, found):
    return mot.evaluate(mot.rows(truth), mot.rows(found))


# ---------------------------------------------------------------------------------------------------------------------
# 1. by hand


def test_who_is_followed_without_fault_has_full_marks():
    truth = walk(1, range(1, 11)) + walk(2, range(4, 9), (50, 0, 60, 20))
    found = walk(7, range(1, 11)) + walk(3, range(4, 9), (50, 0, 60, 20))
    s = scores(truth, found)
    assert all(s[name] == 1 for name in ('MOTA', 'MOTP', 'IDF1', 'IDP', 'IDR', 'HOTA', 'DetA', 'AssA'))
    assert (s['IDSW'], s['Frag'], s['TP'], s['FN'], s['FP']) == (0, 0, 15, 0, 0)


def test_a_change_of_number_in_the_middle():
    s = scores(walk(1, range(1, 11)), walk(5, range(1, 7)) + walk(6, range(7, 11)))
    assert (s['IDSW'], s['Frag'], s['MOTA']) == (1, 0, 0.9)
    assert s['IDF1'] == s['IDP'] == s['IDR'] == 0.6
    assert s['AssA'] == pytest.approx((6 * 6 / 10 + 4 * 4 / 10) / 10) and s['DetA'] == 1
    assert s['HOTA'] == pytest.approx(np.sqrt(s['AssA']))


def test_a_gap_and_a_false_box():
    truth = walk(1, range(1, 11)) + walk(2, range(1, 11), (50, 0, 60, 20))
    found = walk(1, [1, 2, 3, 4, 8, 9, 10]) + walk(2, range(1, 11), (50, 0, 60, 20)) + walk(3, [6], (90, 0, 99, 20))
    s = scores(truth, found)
    assert (s['TP'], s['FN'], s['FP'], s['IDSW'], s['Frag']) == (17, 3, 1, 0, 1)
    assert s['MOTA'] == 1 - 4 / 20 and s['IDF1'] == 2 * 17 / (20 + 18)


def test_a_box_beside_somebody_is_two_errors_and_a_loose_one_counts_at_low_alphas_only():
    beside = scores(walk(1, [1]), walk(1, [1], (10, 0, 20, 20)))
    assert (beside['MOTA'], beside['IDF1'], beside['HOTA']) == (-1, 0, 0)
    loose = scores(walk(1, [1]), walk(1, [1], (0, 0, 10, 12)))  # overlaps by 0.6
    assert loose['MOTP'] == pytest.approx(0.6) and loose['DetA'] == pytest.approx(12 / 19)


def test_an_overlap_of_exactly_half_is_a_hit():
    assert scores(walk(1, [1]), walk(1, [1], (0, 0, 10, 10)))['MOTA'] == 1
    assert scores(walk(1, [1], (0.1, 0.1, 0.4, 0.4)), walk(1, [1], (0.1, 0.1, 0.4, 0.25)))['IDF1'] == 1


def test_a_track_is_not_taken_away_by_a_better_box():
    truth = walk(1, [1, 2])
    found = [(1, 4, BOX, 1), (2, 4, (0, 0, 10, 14), 1), (2, 5, BOX, 1)]
    assert scores(truth, found)['IDSW'] == 0


def test_nothing_at_all():
    some = walk(1, [1, 2])
    assert scores(some, [])['MOTA'] == 0 and scores(some, [])['FN'] == 2
    assert scores([], some)['FP'] == 2 and scores([], some)['IDF1'] == 0
    assert set(scores([], []).values()) == {0}


def test_truth_with_score_0_does_not_count():
    s = scores(walk(1, [1, 2]) + [(1, 2, (50, 0, 60, 20), 0.0)], walk(1, [1, 2]))
    assert s['MOTA'] == s['HOTA'] == 1


def test_two_videos_in_one_add_up():
    rng = np.random.default_rng(1)
    a, b = (random_video(rng, 3, 4, 9, 0.1) for _ in range(2))
    b = [[(f + 100, who + 100, *rest) for f, who, *rest in part] for part in b]
    both = scores(a[0] + b[0], a[1] + b[1])
    parts = [scores(*a), scores(*b)]
    for name in ('TP', 'FN', 'FP', 'IDSW', 'Frag'):
        assert both[name] == sum(s[name] for s in parts)


# ---------------------------------------------------------------------------------------------------------------------
# 2. against others


def random_video(rng, people, tracks, frames, missing):
    """Truth and tracks that follow somebody now and then."""
    home = rng.uniform(0, 60, (people, 2))
    truth, found = [], []
    for frame, who in itertools.product(range(1, frames + 1), range(people)):
        x, y = home[who] + frame
        if rng.random() > missing:
            truth.append((frame, who * 3 + 1, (x, y, x + 20, y + 40), 1.0))
    for track in range(tracks):
        whom = rng.integers(people)
        for frame in range(1, frames + 1):
            whom = rng.integers(people) if rng.random() < 0.1 else whom
            x, y = home[whom] + frame + rng.normal(0, 3, 2)
            if rng.random() > missing + 0.1:
                w, h = rng.uniform(15, 25), rng.uniform(30, 50)
                found.append((frame, track + 50, (x, y, x + w, y + h), float(rng.random())))
    return truth, found


def reference(truth, found):
    """The same by trackeval."""
    metrics = pytest.importorskip('trackeval.metrics')
    frames, people, tracks = mot.compare(mot.rows(truth), mot.rows(found))
    data = {
        'num_timesteps': len(frames), 'num_gt_ids': people, 'num_tracker_ids': tracks,
        'num_gt_dets': len(truth), 'num_tracker_dets': len(found),
        'gt_ids': [f.people for f in frames], 'tracker_ids': [f.tracks for f in frames],
        'similarity_scores': [by_loops(truth, found, frame) for frame in sorted({e[0] for e in truth + found})],
    }  # fmt: skip
    quiet = {'PRINT_CONFIG': False, 'THRESHOLD': 0.5}
    results = {}
    for metric in (metrics.CLEAR(quiet), metrics.Identity(quiet), metrics.HOTA()):
        results |= metric.eval_sequence(data)
    for name in ('HOTA', 'DetA', 'AssA'):
        results[name] = np.mean(results[name])
    return {name: results[f'CLR_{name}' if name in ('TP', 'FN', 'FP') else name] for name in scores([], [])}


def by_loops(truth, found, frame):
    g, t = ([e[2] for e in sorted(part, key=lambda e: e[:2]) if e[0] == frame] for part in (truth, found))
    table = np.zeros((len(g), len(t)))
    for i, j in itertools.product(range(len(g)), range(len(t))):
        (a, b, c, d), (e, f, p, q) = g[i], t[j]
        common = max(0, min(c, p) - max(a, e)) * max(0, min(d, q) - max(b, f))
        table[i, j] = common / ((c - a) * (d - b) + (p - e) * (q - f) - common)
    return table


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(0, 7), st.integers(1, 25), st.sampled_from([0, 0.2, 0.8]))
def test_all_figures_are_those_of_trackeval(seed, people, tracks, frames, missing):
    truth, found = random_video(np.random.default_rng(seed), people, tracks, frames, missing)
    assert scores(truth, found) == pytest.approx(reference(truth, found), rel=1e-9, abs=1e-12)


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    truth, found = (mot.rows(part) for part in random_video(rng, 4, 5, 12, 0.1))
    mixed = [rng.permutation(len(table.who)) for table in (truth, found)]
    parts = [mot.Rows(*(column[i] for column in table)) for table, i in zip((truth, found), mixed, strict=True)]
    assert mot.evaluate(*parts) == pytest.approx(mot.evaluate(truth, found))


def test_empty_boxes_overlap_with_nothing():
    boxes = np.array([[0, 0, 0, 0], [5, 5, 1, 1], [0, 0, 10, 10]], float)
    assert (mot.iou(boxes[:, None], boxes) == np.diag([0, 0, 1])).all()


# ---------------------------------------------------------------------------------------------------------------------
# 3. files


def test_a_file_is_what_the_challenge_asks_for_and_comes_back(tmp_path):
    table = mot.rows([(2, 3, (1.5, 2, 11.25, 42), 0.875), (1, 3, (0, -4, 10, 20), 1)])
    mot.write(tmp_path / 'a.txt', table)
    text = (tmp_path / 'a.txt').read_bytes().decode()
    assert text == '1,3,0.00,-4.00,10.00,24.00,1,-1,-1,-1\n2,3,1.50,2.00,9.75,40.00,0.875,-1,-1,-1\n'
    for ours, theirs in zip(mot.read(tmp_path / 'a.txt'), table, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_others_write_is_read(tmp_path):
    path = tmp_path / 'gt.txt'
    path.write_bytes(b'\xef\xbb\xbf2, 1.0, 5, 6, 7, 8, 0, 1, 0.43\r\n\r\n1,-1,912.5,484,97,109,-1\r\n1,4,1e1,2,3,4')
    table = mot.read(path)
    assert table.frame.tolist() == [1, 1, 2] and table.who.tolist() == [-1, 4, 1]
    assert table.score.tolist() == [-1, 1, 0] and table.box[2].tolist() == [5, 6, 12, 14]


@pytest.mark.parametrize(
    'line',
    ['1,2,3,4,5', 'a,1,0,0,1,1', '0,1,0,0,1,1', '1.5,1,0,0,1,1', '1,1.5,0,0,1,1', '1,1,nan,0,1,1', '1 1 0 0 1 1'],
)
def test_a_bad_line_is_named(tmp_path, line):
    (tmp_path / 'x.txt').write_text(f'1,1,0,0,1,1,1\n{line}\n')
    with pytest.raises(Problem, match=r'x\.txt, line 2: .*found'):
        mot.read(tmp_path / 'x.txt')


def test_nobody_is_twice_in_a_frame_and_a_file_must_be_there(tmp_path):
    (tmp_path / 'x.txt').write_text('1,1,0,0,1,1,1\n2,1,0,0,1,1,1\n1,1,5,5,1,1,1\n')
    with pytest.raises(Problem, match='lines 1 and 3: id 1 is in frame 1 twice'):
        mot.read(tmp_path / 'x.txt')
    with pytest.raises(Problem, match='reading failed'):
        mot.read(tmp_path / 'none.txt')
    (tmp_path / 'empty.txt').write_text('')
    assert len(mot.read(tmp_path / 'empty.txt').who) == 0
