"""People in several videos: what search.py video does, once it knows with what to look. All is left in a folder:

tracks.json            all tracks, see told(); `complete` is false while it goes on, and where it was stopped
tracks/<source>.txt    their boxes, frame by frame, in the format of the MOT Challenge
shots/*.jpg            the best shot behind each vector. The name has a digest of the picture: an index that knows a
                       path is never shown another picture there
<source>.mp4           the video with boxes, trails and, in green, the one who was looked for
contact.jpg            him, and the tracks that are most alike
timeline.png           of several sources: when anybody was there, and when he was
"""

import errno
import itertools
import json
import re
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from reid import data, embedding, filming, frames, joining
from reid.files import holds, replacing
from reid.problem import Problem
from reid.sightings import Film, Wanted
from reid.video import middle

WHAT, FORMAT, FILE = 'tracks of people in videos', 1, 'tracks.json'

# ---------------------------------------------------------------------------------------------------------------------
# 1. before: the folder, who is wanted, sources


def opened(given, realtime, stack):
    """Sources, to be closed by an ExitStack."""
    sources = [stack.enter_context(frames.open(one, realtime=realtime)) for one in given]
    if len(sources) > 1 and any(source.live for source in sources):
        raise Problem('a camera has no end: a command of its own for each, please. They may fill one index together')
    return sources


def each(name, values, sources):
    """As many values as there are sources."""
    if len(values) != len(sources):
        raise Problem(f'{name}: {len(values)} values for {len(sources)} sources; one for each is expected')
    return values


def films(sources, given, cameras, starts, out, **how):
    """how: for all of them, as Film takes it."""
    cameras, starts = cameras or range(1, len(given) + 1), starts or [None]
    cameras = each('--camera', cameras, given)
    starts = each('--start', starts * len(given) if len(starts) == 1 else starts, given)  # one may stand for all
    folder(out, given)
    named = zip(sources, names(given), cameras, starts, strict=True)
    return [Film(source, *name, camera, start, out, **how) for source, name, camera, start in named]


def folder(out, sources):
    """Make it, or take the place of an earlier run. What is not of such a run is left alone."""
    try:
        if out.is_dir() and any(out.iterdir()) and not ours(out / FILE):
            raise Problem(f'--out {out} holds {holds(out)}: a new folder, an empty one or that of a run is expected')
        if any(Path(source).expanduser().resolve().parent == out.resolve() for source in sources):
            raise Problem(f'--out {out}: a source lies there, which might be overwritten. Name another folder')
        for inside in ('shots', 'tracks'):
            (out / inside).mkdir(parents=True, exist_ok=True)
        for stale in ('contact.jpg', 'timeline.png'):
            (out / stale).unlink(missing_ok=True)
    except OSError as error:
        raise Problem(f'--out {out} cannot be written to ({error})') from None


def ours(path):
    try:
        return json.loads(path.read_text(encoding='utf-8'))['what'] == WHAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def wanted(paths, embedder, least):
    """Pictures of one person -> Wanted, or None. least: the score from which on it is him, or None."""
    if not paths:
        return None
    vectors = np.stack([f for _, f in embedding.described(embedder, paths)])
    return Wanted(paths[0].stem, data.read(paths[0]), middle(vectors).astype(np.float64), least)


def names(given):
    """(what sentences call it, how its files begin) of each source: no two begin in one way."""
    taken, found = set(), []
    for name in map(frames.shown, given):
        called = name if '://' in name else Path(name).name or name
        stem = name.split('://')[1] if '://' in name else called if Path(name).is_dir() else Path(called).stem
        stem = re.sub(r'[^\w.-]+', '_', stem).strip('._') or 'video'
        several = (f'{stem}_{i}' if i > 1 else stem for i in itertools.count(1))
        stem = next(one for one in several if one.lower() not in taken)
        taken.add(stem.lower())
        found.append((called, stem))
    return found


# ---------------------------------------------------------------------------------------------------------------------
# 2. all sources, one after the other


def watch(films, follower, out, about, drop=False, top=20, least=None, say=print):
    """follower(): a new one for each film. least: from which cosine on two tracks are one person, if that is known.
    Whatever ends it, the folder is left whole."""
    stopped = None
    try:
        keep(films, out, about, complete=False)
        try:
            for film in films:
                report = film.watch(follower(), drop or film.source.live)
                say(f'{film.name}: {len(film.tracks)} tracks in {filming.clock(film.length)}; {report}')
        except (Problem, KeyboardInterrupt) as error:
            stopped = error
        join(films, least)
        keep(films, out, about, complete=stopped is None)
        draw(films, out, top)
    except OSError as error:
        why = 'the disk is full' if error.errno == errno.ENOSPC else str(error)
        raise Problem(f'--out {out} could not be written to its end: {why}') from None
    return stopped


def join(films, least):
    """Number the people: tracks that look alike, in several sources or in one, are one person (reid.joining)."""
    seen = [(source, film, one) for source, film in enumerate(films) for one in film.tracks.values() if one.shot]
    if least is None or len(seen) > joining.MOST:
        return
    tracks = [joining.Track(source, one.spans, one.look, film.wanted.name if film.hit(one.track) else None)
              for source, film, one in seen]  # fmt: skip
    for person, places in enumerate(joining.together(tracks, least), 1):
        for place in places:
            seen[place][-1].person = person


def keep(films, out, about, complete):
    with replacing(out / FILE) as temporary:
        temporary.write_text(json.dumps(told(films, about, complete), indent=1) + '\n', encoding='utf-8')


def told(films, about, complete):
    """What tracks.json says. Times are seconds of the source, boxes [left, top, right, bottom] in its pixels."""
    wanted, sources, tracks = films[0].wanted, [], []
    for film in films:
        sources.append({'source': film.name, 'camera': film.camera, 'start': film.start, 'fps': film.source.fps,
                        'size': film.source.size, 'seconds': round(film.length, 3),
                        'boxes': f'tracks/{film.stem}.txt'})  # fmt: skip
        for seen in film.tracks.values():
            spans = [[round(side, 3) for side in span] for span in seen.spans]
            tracks.append({'source': film.name, 'track': seen.track, 'person': seen.person, 'from': spans[0][0],
                           'to': spans[-1][1], 'spans': spans, 'score': seen.score, 'found': film.hit(seen.track),
                           'shot': seen.shot, 'views': seen.views})  # fmt: skip
    looked_for = {'name': wanted.name, 'threshold': wanted.threshold} if wanted else None
    return {'what': WHAT, 'format': FORMAT, 'complete': complete, 'network': about, 'looked_for': looked_for,
            'sources': sources, 'tracks': tracks}  # fmt: skip


def best(films, top):
    """[(film, seen)] of the tracks that have a vector: the most alike first or, if nobody is looked for, those of the
    people who were there longest, together."""
    everybody = [(film, seen) for film in films for seen in film.tracks.values() if seen.shot]
    if films[0].wanted:
        return sorted(everybody, key=lambda one: -one[1].score)[:top]
    seconds = Counter()
    for film, seen in everybody:
        seconds[who(film, seen)] += sum(end - start for start, end in seen.spans)
    return sorted(everybody, key=lambda one: (-seconds[who(*one)], who(*one)))[:top]


def people(films):
    """The numbers that have been given."""
    return {seen.person for film in films for seen in film.tracks.values()} - {None}


def who(film, seen):
    """What is the same for all tracks of one person, as far as that is known."""
    return (film.stem, seen.track) if seen.person is None else seen.person


def line(film, seen):
    """0.8312  found  0:00:12-0:00:19  track 3 of street.mp4, camera 1  shots/street_3_0-00-14_1a2b3c4d.jpg
    person 2  0:00:12-0:00:19  ..., if nobody is looked for"""
    when = ', '.join(f'{filming.clock(start)}-{filming.clock(end)}' for start, end in seen.spans)
    score = f'{seen.score:7.4f}  {"found" if film.hit(seen.track) else "     "}  ' if film.wanted else ''
    person = '' if film.wanted or seen.person is None else f'person {seen.person}  '
    return f'{score}{person}{when}  track {seen.track} of {film.name}, camera {film.camera}  {seen.shot}'


def draw(films, out, top):
    """contact.jpg and timeline.png."""
    wanted, found = films[0].wanted, []
    for film, seen in best(films, top):
        hit, picture = film.hit(seen.track), data.read(out / seen.shot)
        name = f'track {seen.track}' if seen.person is None else f'person {seen.person}'
        above = (f'{seen.score:.3f}' if wanted else name) + (' ✓' if hit else '')
        found.append((picture, above, f'{film.name[:18]}\n{filming.clock(seen.first)}-{filming.clock(seen.last)}', hit))
    if wanted:
        bound = 'no threshold is known' if wanted.threshold is None else f'found from {wanted.threshold:.3f} on'
        title = f'{wanted.name} and the {len(found)} tracks most alike ({bound})'
    elif people(films):
        title = f'{len(found)} tracks, by person: those who are seen longest'
    else:
        title = f'the {len(found)} tracks that are seen longest'
    if found:
        filming.contact(wanted and wanted.picture, found, title, out / 'contact.jpg')
    if len(films) > 1:
        draw_timeline(films, out)


def draw_timeline(films, out):
    """The clock of all: by when each begins if that is known of all, else each begins at 0."""
    wanted, known = films[0].wanted, all(film.start is not None for film in films)
    begin = min(film.start for film in films) if known else 0
    rows, length = {}, 0
    for film in films:
        shift = film.start - begin if known else 0
        spans = {hit: [(start + shift, end + shift) for seen in film.tracks.values() if film.hit(seen.track) == hit
                       for start, end in seen.spans] for hit in (False, True)}  # fmt: skip
        rows[f'{film.name}, camera {film.camera}'] = spans[False], spans[True]
        length = max(length, film.length + shift)
    hit = wanted.name if wanted and wanted.threshold is not None else None
    filming.timeline(rows, length, hit, out / 'timeline.png', begin if known else None)


# ---------------------------------------------------------------------------------------------------------------------
# 3. what to say at the end


def tell(films, out, top, bounds, least):
    """Print who was found -> the exit code, as of grep: 1 if nobody was."""
    wanted, everybody = films[0].wanted, sum(len(film.tracks) for film in films)
    judged, found = wanted and wanted.threshold is not None, sum(film.hit(who) for film in films for who in film.tracks)
    for film, seen in best(films, top):
        print(line(film, seen))
    if not everybody:
        print('nobody was seen')
    elif judged:
        print(f'{wanted.name}: {found or "none"} of {everybody} tracks, from a score of {wanted.threshold:.4f} on')
    elif wanted:
        print(f'without a threshold nobody is called found: {bounds}', file=sys.stderr)
    elif count := len(people(films)):
        print(f'{count} people in {everybody} tracks: who looks alike from a score of {least:.4f} on is one person')
    elif len(films) > 1:
        why = bounds if least is None else f'{everybody} tracks are too many to compare all with all'
        print(f'who of one source is who of another is not said: {why}', file=sys.stderr)
    print(f'{out}: {holds(out)}')
    return 0 if found or everybody and not judged else 1
