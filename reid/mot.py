"""How well people were followed: MOTA, IDF1, HOTA and their like, and the files of the MOT Challenge.

    frame, id, left, top, width, height, confidence, x, y, z

is a line of such a file: frames count from 1, x, y and z are -1 in pictures. In a file of truth the last four are a
flag (0: does not count), a class and the visible part of the person. Classes are left to the reader: select before.

Each metric looks at the same: in every frame, which true people are there, which tracks, and how much their boxes
overlap. Several videos are scored together if no frame and no id of one is used by another.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from reid.files import replacing
from reid.problem import Problem

HIT = 0.5  # a track has found somebody if their boxes overlap by half: the convention of MOTA and IDF1
ALPHAS = np.arange(1, 20) / 20  # HOTA asks for 0.05 to 0.95 and takes the mean
ROUND = np.finfo(float).eps  # an overlap of 0.5 is 0.5, however it was computed


class Rows(NamedTuple):
    """Boxes of people in a video, in the order of their frames."""

    frame: np.ndarray  # (N,) whole numbers from 1
    who: np.ndarray  # (N,) whole numbers
    box: np.ndarray  # (N, 4) left, top, right, bottom
    score: np.ndarray  # (N,) confidence, or in a file of truth 1: counts and 0: does not


class Frame(NamedTuple):
    """One frame as the metrics see it; people and tracks are counted from 0 over the whole video."""

    people: np.ndarray  # (G,)
    tracks: np.ndarray  # (T,)
    overlap: np.ndarray  # (G, T)


# ---------------------------------------------------------------------------------------------------------------------
# 1. files


def rows(entries):
    """(frame, who, box, score) for each box, in any order -> Rows."""
    entries = sorted(entries, key=lambda entry: entry[:2])
    if not entries:
        return Rows(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0))
    frame, who, box, score = zip(*entries, strict=True)
    return Rows(np.array(frame, np.int64), np.array(who, np.int64), np.array(box, float), np.array(score, float))


def read(path):
    """A file of the MOT Challenge, of truth or of tracks -> Rows."""
    entries, seen = [], {}
    try:
        text = Path(path).read_text(encoding='utf-8-sig')
    except (OSError, UnicodeDecodeError) as e:
        raise Problem(f'{path}: a text file in the format of the MOT Challenge is expected; reading failed: {e}') from e
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        frame, who, box, score = parse(path, number, line)
        if (frame, who) in seen:
            raise Problem(
                f'{path}, lines {seen[frame, who]} and {number}: id {who} is in frame {frame} twice, and nobody can be '
                'in two places. Give the two different ids, or drop one.'
            )
        seen[frame, who] = number
        entries.append((frame, who, box, score))
    return rows(entries)


def parse(path, number, line):
    """One line -> (frame, who, (left, top, right, bottom), score)."""
    try:
        values = [float(word) for word in line.split(',')]
        frame, who, left, top, width, height = values[:6]
        sound = np.isfinite(values).all() and frame >= 1 and frame % 1 == 0 and who % 1 == 0
    except ValueError:
        sound = False
    if not sound:
        raise Problem(
            f'{path}, line {number}: "frame, id, left, top, width, height, confidence, ..." is expected, with whole '
            f'numbers for the frame (from 1) and the id; found "{line[:80]}". Mend the line or drop it.'
        )
    score = values[6] if len(values) > 6 else 1.0
    return int(frame), int(who), (left, top, left + width, top + height), score


def write(path, table):
    """Rows -> a file of the MOT Challenge, whole or not at all. Hundredths of a pixel are kept."""
    lines = []
    for frame, who, (left, top, right, bottom), score in zip(*table, strict=True):
        box = f'{left:.2f},{top:.2f},{right - left:.2f},{bottom - top:.2f}'
        lines.append(f'{frame},{who},{box},{score:.4g},-1,-1,-1\n')
    with replacing(Path(path)) as temporary:
        temporary.write_text(''.join(lines), encoding='utf-8', newline='\n')


# ---------------------------------------------------------------------------------------------------------------------
# 2. metrics


def evaluate(truth, found):
    """Rows of truth and Rows of tracks -> {metric: value}. Truth with score 0 does not count."""
    counts = truth.score != 0
    frames, people, tracks = compare(Rows(*(column[counts] for column in truth)), found)
    return {**clear(frames, people), **identity(frames, people, tracks), **hota(frames, people, tracks)}


def compare(truth, found):
    """Both in the form that the metrics take: a Frame for every frame that either knows, how many people and tracks."""
    names, people = np.unique(truth.who, return_inverse=True)
    numbers, tracks = np.unique(found.who, return_inverse=True)
    frames, times = [], np.union1d(truth.frame, found.frame)
    for g, t in zip(split(truth.frame, times), split(found.frame, times), strict=True):
        frames.append(Frame(people[g], tracks[t], iou(truth.box[g, None], found.box[t])))
    return frames, len(names), len(numbers)


def split(frame, times):
    """The frame of each row, and all frames -> the rows of each frame."""
    order = np.argsort(frame, kind='stable')
    return np.split(order, np.searchsorted(frame[order], times)[1:])


def iou(a, b):
    """Boxes (..., 4) and (..., 4) -> intersection over union (...), 0 where both are empty."""
    low, high = np.maximum(a[..., :2], b[..., :2]), np.minimum(a[..., 2:], b[..., 2:])
    common = (high - low).clip(0).prod(-1)
    total = (a[..., 2:] - a[..., :2]).clip(0).prod(-1) + (b[..., 2:] - b[..., :2]).clip(0).prod(-1) - common
    return common / np.where(total > 0, total, 1)


def clear(frames, people):
    """CLEAR MOT (Bernardin and Stiefelhagen, 2008). MOTA = 1 - (misses + false boxes + switches) / true boxes.

    Whom a track has found in the last frame it keeps, as long as they overlap by half. A switch: somebody is found by
    another track than the last one that has found him, however long ago. A fragment: he is found again after a gap.
    As in the reference code, a frame without truth or without tracks is skipped: it makes no gap.
    """
    hits = switches = fragments = overlap = 0
    last = np.full(people, -1)  # the track that has found each of them last
    now = np.full(people, -1)  # the same, -1 if not found in the frame before
    started = np.zeros(people, bool)
    for frame in frames:
        if not frame.overlap.size:
            continue
        kept = frame.tracks == now[frame.people][:, None]
        value = np.where(frame.overlap >= HIT - ROUND, frame.overlap + 1000 * kept, 0)
        g, t = linear_sum_assignment(value, maximize=True)
        g, t = g[value[g, t] > 0], t[value[g, t] > 0]
        who, track = frame.people[g], frame.tracks[t]
        hits, overlap = hits + len(g), overlap + frame.overlap[g, t].sum()
        switches += ((last[who] >= 0) & (last[who] != track)).sum()
        fragments += (started[who] & (now[who] < 0)).sum()
        now[:] = -1
        now[who] = last[who] = track
        started[who] = True
    true, boxes = sum(len(f.people) for f in frames), sum(len(f.tracks) for f in frames)
    mota = (hits - (boxes - hits) - switches) / max(1, true) if true else 0.0
    return {'MOTA': float(mota), 'MOTP': float(overlap / max(1, hits)), 'IDSW': int(switches), 'Frag': int(fragments),
            'TP': hits, 'FN': true - hits, 'FP': boxes - hits}  # fmt: skip


def identity(frames, people, tracks):
    """IDF1 (arXiv 1609.01775): every person gets one track for the whole video, so that the most boxes are right."""
    shared = np.zeros((people, tracks))
    for frame in frames:
        shared[np.ix_(frame.people, frame.tracks)] += frame.overlap >= HIT - ROUND
    right = shared[linear_sum_assignment(shared, maximize=True)].sum()
    true, boxes = sum(len(f.people) for f in frames), sum(len(f.tracks) for f in frames)
    return {'IDF1': float(2 * right / max(1, true + boxes)), 'IDP': float(right / max(1, boxes)),
            'IDR': float(right / max(1, true))}  # fmt: skip


def hota(frames, people, tracks):
    """HOTA (arXiv 2009.07736): at each alpha the root of DetA (are the boxes right?) times AssA (and the numbers?).

    AssA looks at every right box (a true positive c): of all boxes of its person and of its track, in how many do the
    two meet, |TPA| / (|TPA| + |FNA| + |FPA|).
    """
    of_person, of_track, met = np.zeros((people, 1)), np.zeros((1, tracks)), np.zeros((people, tracks))
    for frame in frames:
        of_person[frame.people] += 1
        of_track[:, frame.tracks] += 1
        around = frame.overlap.sum(0) + frame.overlap.sum(1)[:, None] - frame.overlap
        met[np.ix_(frame.people, frame.tracks)] += frame.overlap / np.where(around > ROUND, around, 1)
    alignment = met / (of_person + of_track - met)  # who belongs to whom, over the whole video: decides the matches
    hits = np.zeros((len(ALPHAS), people, tracks))
    for frame in frames:
        value = alignment[np.ix_(frame.people, frame.tracks)] * frame.overlap
        g, t = linear_sum_assignment(value, maximize=True)
        hits[:, frame.people[g], frame.tracks[t]] += frame.overlap[g, t] >= ALPHAS[:, None] - ROUND
    right = hits.sum((1, 2))  # (19,)
    det = right / np.maximum(1, of_person.sum() + of_track.sum() - right)
    ass = (hits * hits / (of_person + of_track - hits)).sum((1, 2)) / np.maximum(1, right)
    return {'HOTA': float(np.sqrt(det * ass).mean()), 'DetA': float(det.mean()), 'AssA': float(ass.mean())}
