"""The page (reid.page): when each person was seen, as bars on one clock: that of the day if it is known when each video
begins, else all of them begin at 0."""

from reid.filming import ticks

ROWS, STRIPS, TICKS = 12, 6, 5  # people; videos side by side; labels, at most
LEAST = 0.5  # percent, so that a moment can be seen


def timeline(job):
    """-> {rows, ticks, more, strips}, or None if nobody was seen in a video. A row has bars (source, seconds, left,
    width, strip), in percent of the width: a strip for each video, for at one time there may be bars of several. more:
    people."""
    videos = {at: source for at, source in enumerate(job['sources']) if not source['picture'] and source['seconds']}
    daily = bool(videos) and all(source['start'] is not None for source in videos.values())
    begin = min(source['start'] for source in videos.values()) if daily else None
    shifts = {at: source['start'] - begin if daily else 0 for at, source in videos.items()}
    length = max((source['seconds'] + shifts[at] for at, source in videos.items()), default=0)
    strips = {at: i % STRIPS for i, at in enumerate(videos)}
    rows = []
    for person, row in enumerate(job['rows']):
        bars = []
        for look in row['looks']:
            for start, end in look['spans'] if look['source'] in videos else []:
                at = look['source']
                left, wide = 100 * (start + shifts[at]) / length, 100 * (end - start) / length
                bars.append((at, start, min(left, 100 - LEAST), max(LEAST, wide), strips[at]))
        rows += [{'person': person, 'bars': bars}] if bars else []
    if not rows:
        return None
    marks = [(100 * at / length, words) for at, words in ticks(begin, length, TICKS)]
    more, high = max(0, len(rows) - ROWS), min(len(videos), STRIPS)
    return {'rows': rows[:ROWS], 'ticks': marks, 'more': more, 'strips': high}
