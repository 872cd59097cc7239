"""The page (reid.page): when each person was seen, as bars on one clock: that of the day if it is known when each video
begins, else all of them begin at 0."""

import math
from datetime import datetime

from reid.filming import clock

ROWS, TICKS = 12, 5  # people; labels, at most
LEAST = 0.5  # percent, so that a moment can be seen
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)  # seconds


def timeline(job):
    """-> {rows, ticks}, places in percent of the width; None if nobody was seen in a video."""
    sources = job['sources']
    videos = [source for source in sources if not source['picture'] and source['seconds']]
    daily = bool(videos) and all(source['start'] is not None for source in videos)
    begin = min(source['start'] for source in videos) if daily else 0
    shifts = [source['start'] - begin if daily and not source['picture'] else 0 for source in sources]
    length = max((source['seconds'] + shift for source, shift in zip(sources, shifts, strict=True)), default=0)
    rows = []
    for person, row in enumerate(job['rows']):
        bars = [(look['source'], start, 100 * (start + shifts[look['source']]) / length,
                 max(LEAST, 100 * (end - start) / length))
                for look in row['looks'] for start, end in look['spans'] if length]  # fmt: skip
        if bars and len(rows) < ROWS:
            bars = [(source, start, min(left, 100 - LEAST), wide) for source, start, left, wide in bars]
            rows.append({'person': person, 'bars': bars})
    return {'rows': rows, 'ticks': ticks(begin if daily else None, length)} if rows else None


def ticks(begin, length):
    """[(percent, words)]: round times of the clock."""
    step = next((step for step in STEPS if length / step <= TICKS), 86400 * math.ceil(length / TICKS / 86400))
    day = 0 if begin is None else seconds_of_day(begin)
    first = math.ceil(day / step) * step - day
    return [(100 * at / length, words(begin, at, step, length)) for at in steps(first, length, step)]


def steps(first, length, step):
    return [first + i * step for i in range(int((length - first) // step) + 1)] if first <= length else []


def seconds_of_day(moment):
    local = datetime.fromtimestamp(moment)
    return local.hour * 3600 + local.minute * 60 + local.second + local.microsecond / 1e6


def words(begin, at, step, length):
    if begin is None:
        return clock(at)
    form = '%m-%d %H:%M' if length > 86400 else '%H:%M' if step >= 60 else '%H:%M:%S'
    return datetime.fromtimestamp(begin + at).strftime(form)
