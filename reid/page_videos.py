"""The page (reid.page): search in videos and pictures. They are sent, wait for their turn, and leave a table of who was
seen when. Several videos are several cameras: who looks alike in them is one person."""

import io
import json
import re
import shutil
from datetime import datetime

from PIL import Image

from reid import data, thresholds
from reid.filming import clock
from reid.page_choice import choice, number
from reid.page_html import Wrong, file, form, table, text, to, uploads
from reid.page_jobs import OVER, is_video
from reid.page_pictures import fresh, largest, since, small
from reid.page_timeline import timeline
from reid.service_door import Refused

FILES = 200  # of one form: each of them is an open file while they come
SHOWN = 200  # rows; the table to save has all
MANY = 8  # moments of a person
PIECE = 2**20  # bytes


def routes(api, answers, work, pictures, jobs):
    route, bounds = answers.route, work.embedder.bounds

    @route(api, '/page/video', 'GET')
    async def videos(request):
        return answers.page(request, 'video.html', jobs=await work.alone(jobs.all), since=since, files=FILES)

    @route(api, '/page/video', 'POST')
    async def sent(request):
        await work.alone(jobs.room)
        sent = await form(request, files=FILES + 1)
        found, start = uploads(sent, 'video'), begins(text(sent, 'start'))
        if not found:
            raise Wrong('no video was chosen', 'no_video')
        own, wanted = choice(request, answers.detectors), uploads(sent, 'picture')
        detector = own.detector if own.detector != 'none' else next(iter(answers.detectors))
        threshold = thresholds.least(own.threshold, bounds)
        job = {'id': fresh(), 'who': None, 'threshold': threshold, 'every': own.every, 'renew': own.renew,
               'tracker': own.tracker, 'whole': own.detector, 'detector': detector,
               'problem': None, 'rows': [], 'sources': [], 'left_out': 0,
               'entries': 0, 'took': 0}  # fmt: skip
        place = jobs.folder / f'{job["id"]}.part'
        try:
            await work.alone(kept, job, place, found, start)
            if detector == 'none' and not all(source['picture'] for source in job['sources']):
                raise Wrong('a video needs a detector, and there is none', 'no_detector')
            if wanted:
                job['who'] = re.sub(r'\.\w+$', '', wanted[0][0])[-80:] or '?'
                await pictures.apart(cut, place, wanted[0][1].file, detector)
            await work.alone(jobs.add, job)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return to(f'/page/video/{job["id"]}')

    def kept(job, place, found, start):
        """What is neither a video nor a picture, as there is in folders, is left out."""
        (place / 'upload').mkdir(parents=True)
        for name, part in sorted(found, key=lambda one: one[0]) if len(found) > 1 else found:
            picture = kind(part.file)
            if picture is None:
                job['left_out'] += 1
                continue
            with (place / 'upload' / str(len(job['sources']))).open('xb') as copy:
                shutil.copyfileobj(part.file, copy, PIECE)
            job['sources'].append({'name': name[-120:] or 'video', 'picture': picture, 'problem': None, 'note': None,
                                   'seconds': 0, 'start': None if picture else start})  # fmt: skip
        if not job['sources']:
            raise Wrong('no video: MP4, MOV, MKV, WebM, AVI or MPEG is expected', 'no_such_video')
        names, more = [source['name'] for source in job['sources']], len(job['sources']) - 1
        job['name'] = names[0] + (f' + {more}' if more else '')

    def kind(part):
        """Is it a picture, by its head? False: a video; None: neither. The search says what is wrong further on."""
        if is_video(part):
            return False
        try:
            with Image.open(io.BytesIO(pictures.bounded(part))) as picture:
                return picture.format in data.KINDS or None
        except Exception:  # it is too large, or one of the dozen types that Pillow raises
            return None
        finally:
            part.seek(0)

    def cut(place, file, detector):
        """Who is looked for: the largest person in the picture, or all of it."""
        picture = work.read(pictures.bounded(file), 'the picture')
        boxes, _ = pictures.boxes(picture, detector)
        picture = picture.crop(boxes[largest(boxes)[0]]) if boxes else picture
        small(picture, 800).save(place / 'wanted.jpg', quality=95)

    @route(api, '/page/video/{id}', 'GET')
    async def one(request):
        job = await work.alone(jobs.one, request.path_params['id'])
        part, at = jobs.progress(job['id'])
        there = await work.alone(files_of, job)
        rows, over = job['rows'][:SHOWN], job['state'] in OVER
        values = {'job': job, 'rows': rows, 'over': over, 'part': part, 'at': at, 'MANY': MANY}
        values |= {'moment': moment, 'iso': iso}
        return answers.page(request, 'job.html', **values, there=there, line=timeline(job) if over else None)

    def files_of(job):
        """{what: whether it is there}, or of which sources."""
        place, count = jobs.folder / job['id'], len(job['sources'])
        found = {what: {i for i in range(count) if (place / 'found' / str(i) / name).is_file()}
                 for what, name in [('film', 'video.webm'), ('video', 'video.mp4'), ('seen', 'seen.jpg')]}  # fmt: skip
        found['contact'] = count == 1 and (place / 'found' / '0' / 'contact.jpg').is_file()
        return found | {'wanted': (place / 'wanted.jpg').is_file()}

    @route(api, '/page/video/{id}/state.json')
    async def state(request):
        from fastapi.responses import Response

        job = await work.alone(jobs.one, request.path_params['id'])
        part, at = jobs.progress(job['id'])
        said = {'state': job['state'], 'part': part, 'at': at}
        return Response(json.dumps(said), media_type='application/json', headers={'Cache-Control': 'no-store'})

    @route(api, '/page/video/{id}/cancel', 'POST')
    async def cancelled(request):
        await work.alone(jobs.cancel, request.path_params['id'])
        return to(f'/page/video/{request.path_params["id"]}', said='said_cancelled')

    @route(api, '/page/video/{id}/starts', 'POST')
    async def begun(request):
        """When each video begins: what is shown is their clock then."""
        sent, id = await form(request), request.path_params['id']
        starts = {i: begins(text(sent, f'start{i}')) for i in range(FILES) if f'start{i}' in sent}
        await work.alone(jobs.begin, id, starts)
        return to(f'/page/video/{id}', said='said_settings')

    @route(api, '/page/video/{id}/remove', 'GET')
    async def asked(request):
        return answers.page(request, 'remove_video.html', job=await work.alone(jobs.one, request.path_params['id']))

    @route(api, '/page/video/{id}/remove', 'POST')
    async def removed(request):
        await work.alone(jobs.remove, request.path_params['id'])
        return to('/page/video', said='said_video_removed')

    @route(api, '/page/video/{id}/results.csv')
    async def listed(request):
        return table('results.csv', COLUMNS, lines(await work.alone(jobs.one, request.path_params['id'])))

    @route(api, '/page/video/{id}/wanted.jpg')
    async def wanted(request):
        job = await work.alone(jobs.one, request.path_params['id'])
        return file(jobs.folder / job['id'] / 'wanted.jpg', 'image/jpeg')

    @route(api, '/page/video/{id}/{at}/{what}')
    async def made(request):
        """Of a source: the contact sheet, the video with boxes (.mp4 to save, .webm to play here), the picture with
        boxes, or a shot: by names that we have given."""
        job, what = await work.alone(jobs.one, request.path_params['id']), request.path_params['what']
        at = number(request.path_params['at'], int, 0, len(job['sources']) - 1)
        place = jobs.folder / job['id'] / 'found' / str(at)
        if at is not None and what in MADE:
            return file(place / what, *MADE[what])
        if f'{at}/{what}' not in {look['shot'] for row in job['rows'] for look in row['looks']}:
            raise Refused(404, 'there is no such picture')
        return file(place / 'shots' / what, 'image/jpeg')


MADE = {'video.mp4': ('video/mp4', 'people.mp4'), 'video.webm': ('video/webm',), 'contact.jpg': ('image/jpeg',),
        'seen.jpg': ('image/jpeg',)}  # fmt: skip
COLUMNS = ('source', 'track', 'from', 'to', 'from_seconds', 'to_seconds', 'score', 'name', 'known', 'shot', 'person',
           'from_clock', 'to_clock')  # fmt: skip


def lines(job):
    """A row for each moment, and for each person in a picture."""
    for person, row in enumerate(job['rows'], 1):
        for look in row['looks']:
            source = job['sources'][look['source']]
            score = '' if look['score'] is None else round(look['score'], 6)
            who = score, row['name'] or '', 'yes' if row['hit'] else 'unknown', look['shot'], person
            for start, end in look['spans'] or [(None, None)]:
                times = [clock(at) if at is not None else '' for at in (start, end)]
                clocks = [iso(source['start'], at) for at in (start, end)]
                yield source['name'], look['track'], *times, start, end, *who, *clocks


def moment(source, seconds):
    """A time in a video, by the clock of the day if it is known when it begins."""
    return clock(seconds) if source['start'] is None else iso(source['start'], seconds)[11:]


def iso(start, seconds):
    if start is None or seconds is None:
        return ''
    return datetime.fromtimestamp(start + seconds).isoformat(' ', 'seconds')


def begins(given):
    """'2026-11-21T14:30', in the server's time -> seconds since 1970, or None."""
    if not given.strip():
        return None
    try:
        start = datetime.fromisoformat(given.strip()).timestamp()
        iso(start, 10**6)
    except (ValueError, OverflowError, OSError):
        raise Wrong(f'{given[:40]} is no time such as 2026-11-21T14:30', 'wrong_time') from None
    return start
