"""The page (reid.page): when each person was seen, as bars on one clock: that of the day if it is known when each video
begins, else all of them begin at 0."""

from reid.filming import ticks

ROWS, TICKS = 12, 5  # people; labels, at most
LEAST = 0.5  # percent, so that a moment can be seen


def timeline(job):
    """-> {rows, ticks, more}, places in percent of the width, more: people; None if nobody was seen in a video."""
    sources = job['sources']
    videos = [source for source in sources if not source['picture'] and source['seconds']]
    daily = bool(videos) and all(source['start'] is not None for source in videos)
    begin = min(source['start'] for source in videos) if daily else 0
    shifts = [source['start'] - begin if daily and not source['picture'] else 0 for source in sources]
    length = max((source['seconds'] + shift for source, shift in zip(sources, shifts, strict=True)), default=0)
    rows, more = [], 0
    for person, row in enumerate(job['rows']):
        bars = [(look['source'], start, 100 * (start + shifts[look['source']]) / length,
                 max(LEAST, 100 * (end - start) / length))
                for look in row['looks'] for start, end in look['spans'] if length]  # fmt: skip
        if bars and len(rows) == ROWS:
            more += 1
        elif bars:
            bars = [(source, start, min(left, 100 - LEAST), wide) for source, start, left, wide in bars]
            rows.append({'person': person, 'bars': bars})
    if not rows:
        return None
    marks = [(100 * at / length, words) for at, words in ticks(begin if daily else None, length, TICKS)]
    return {'rows': rows, 'ticks': marks, 'more': more}
