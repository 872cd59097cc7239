"""Intervals, cameras and thresholds against plain loops: python -m pytest tests/test_report.py"""

import numpy as np
import pytest

from reid import ranking, report
from reid.problem import Problem
from reid.results import Features


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)

    def people(n, ids):
        who = rng.choice(ids, n)
        f = np.random.default_rng(1).standard_normal((max(ids) + 2, 16))[who] + 0.8 * rng.standard_normal((n, 16))
        f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)
        return Features(f, who, rng.integers(1, 4, n), None)

    return people(80, range(1, 12)), people(400, range(-1, 11))


def random_ranks(rng, n, worst):
    return [np.sort(rng.choice(worst, rng.integers(1, 5), replace=False)) for _ in range(n)]


def test_means_of_the_queries_are_the_figures(parts):
    ranks = ranking.ranks(*parts)
    assert any(len(r) == 0 for r in ranks)
    figures = ranking.figures(ranks)
    for name, (figure, low, high) in report.intervals(ranks).items():
        assert figure == pytest.approx(figures[name])
        assert low < figure < high


def test_the_interval_of_rank1_is_that_of_a_share():
    """Rank@1 of independent queries is a binomial share, whose interval has a formula."""
    ranks = [np.array([0])] * 700 + [np.array([9])] * 300
    _, low, high = report.intervals(ranks)['rank1']
    half = 1.96 * np.sqrt(0.7 * 0.3 / 1000)
    assert (low, high) == pytest.approx((0.7 - half, 0.7 + half), abs=0.004)


def test_a_system_does_not_differ_from_itself():
    ranks = random_ranks(np.random.default_rng(0), 200, 30)
    for gain, low, high, p in report.compare(ranks, ranks).values():
        assert (gain, low, high, p) == (0, 0, 0, 1)


def test_a_clear_difference_is_real_and_a_tiny_one_is_not():
    rng = np.random.default_rng(0)
    good, bad = random_ranks(rng, 300, 10), random_ranks(rng, 300, 60)
    gain, low, high, p = report.compare(good, bad)['map_trapezoid']
    assert 0 < low < gain < high
    assert p < 0.01
    worse = report.compare(bad, good)['map_trapezoid']
    assert worse[0] == pytest.approx(-gain)
    rows = [report.compare(*(random_ranks(rng, 100, 20) for _ in 'ab'), draws=300)['rank1'] for _ in range(60)]
    assert np.mean([p < 0.05 for *_, p in rows]) < 0.15  # as often as it should be, about one in twenty


def test_p_is_that_of_all_permutations():
    """Seven queries have 128 ways to swap."""
    ours, theirs = [np.array([r]) for r in (0, 1, 0, 3, 0, 2, 5)], [np.array([r]) for r in (1, 1, 4, 2, 3, 9, 7)]
    gain = ranking.each(ours)['standard'] - ranking.each(theirs)['standard']
    signs = 1 - 2 * ((np.arange(128)[:, None] >> np.arange(7)) & 1)
    expected = (np.abs(signs @ gain) >= abs(gain.sum()) - 1e-9).mean()
    assert report.compare(ours, theirs, draws=20000)['map_standard'][3] == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize('change', ['ids', 'cams', 'fewer'])
def test_results_of_other_pictures_are_not_compared(parts, change):
    query, gallery = parts
    others = query._replace(f=query.f[:-1], ids=query.ids[:-1], cams=query.cams[:-1])
    if change != 'fewer':
        others = query._replace(**{change: getattr(query, change)[::-1]})
    with pytest.raises(Problem, match='not the same task'):
        report.same_task(query, gallery, others, gallery)
    report.same_task(query, gallery, query, gallery)


def test_the_table_of_cameras(parts):
    query, gallery = parts
    rows, columns, rank1, mean, count = report.by_camera(query, gallery, 'cpu')
    assert rows.tolist() == columns.tolist() == [1, 2, 3]
    for i, here in enumerate(rows):
        for j, there in enumerate(columns):
            asked, looked = query.cams == here, gallery.cams == there
            ranks = ranking.ranks(
                Features(query.f[asked], query.ids[asked], query.cams[asked], None),
                Features(gallery.f[looked], gallery.ids[looked], gallery.cams[looked], None),
            )
            ranks = [r for r in ranks if len(r)]
            assert count[i, j] == len(ranks)
            assert (count[i, j] == 0) == (here == there)
            if ranks:
                figures = ranking.figures(ranks)
                assert (rank1[i, j], mean[i, j]) == pytest.approx((figures['rank1'], figures['map_trapezoid']))
    assert len(list(report.camera_lines(query, gallery, 'cpu'))) == 5
    unknown = query._replace(cams=np.full(80, -1))
    assert 'not known' in ''.join(report.camera_lines(unknown, gallery, 'cpu'))


def test_a_camera_of_false_detections_and_pictures_of_no_camera(parts):
    query, gallery = parts
    cams, ids = gallery.cams.copy(), gallery.ids.copy()
    cams[:30], ids[:30], cams[30:40] = 9, -1, -1
    lines = list(report.camera_lines(query, gallery._replace(cams=cams, ids=ids), 'cpu'))
    assert lines[1].split() == ['1', '2', '3', '9']
    assert all(line.endswith(' -') for line in lines[2:])
    assert not any('nan' in line for line in lines)


def test_two_queries_of_which_one_has_no_answer(recwarn):
    report.intervals([np.array([0]), np.array([], int)])
    assert not recwarn.list


def test_pairs_and_thresholds(parts, monkeypatch):
    monkeypatch.setattr(report.product, 'SCORES', 400 * 7)
    monkeypatch.setattr(report.product, 'PIECE', 90)
    query, gallery = parts
    same, different = report.verification(query, gallery, 'cpu')
    positive, negative = [], []
    for i in range(80):
        good, junk = ranking.judge(query.ids[i], query.cams[i], gallery.ids, gallery.cams)
        scores = gallery.f @ query.f[i]
        positive += scores[good].tolist()
        negative += scores[~good & ~junk].tolist()
    positive, negative = np.array(positive), np.array(negative)
    assert (same.sum(), different.sum()) == (len(positive), len(negative))
    edges = np.linspace(-1, 1, report.BINS + 1)
    assert np.abs(np.cumsum(same) - np.cumsum(np.histogram(positive, edges)[0])).max() <= 2
    rows = report.thresholds(same, different)
    assert [rate for rate, *_ in rows] == [1e-2, 1e-3, 1e-4][: len(rows)]
    for rate, hits, threshold in rows:
        assert (negative >= threshold).mean() <= rate
        assert hits == pytest.approx((positive >= threshold).mean(), abs=2 / len(positive))
        lower = np.sort(negative)[::-1][int(rate * len(negative))]  # from here on there would be too many
        assert threshold - 2 / report.BINS <= lower < threshold
    assert any('not for use' in text for text in report.threshold_lines(same, different))


def test_a_rate_below_one_pair_is_left_out():
    counts = np.zeros(report.BINS, np.int64)
    counts[1000] = 500
    assert [rate for rate, *_ in report.thresholds(counts, counts)] == [1e-2]
