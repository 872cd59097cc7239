"""The page (reid.page): search in a video. It is sent, waits for its turn, and leaves a table of who was seen when."""

import json
import re
import shutil

from reid import thresholds
from reid.filming import clock
from reid.page_choice import choice
from reid.page_html import Wrong, file, form, table, to, uploads
from reid.page_jobs import OVER, is_video
from reid.page_pictures import fresh, largest, since, small
from reid.service_door import Refused

SHOWN = 200  # rows; the table to save has all
PIECE = 2**20  # bytes


def routes(api, answers, work, pictures, jobs):
    route, bounds = answers.route, work.embedder.bounds

    @route(api, '/page/video', 'GET')
    async def videos(request):
        return answers.page(request, 'video.html', jobs=await work.alone(jobs.all), since=since)

    @route(api, '/page/video', 'POST')
    async def sent(request):
        await work.alone(jobs.room)
        sent = await form(request, files=2)
        found = uploads(sent, 'video')
        if not found:
            raise Wrong('no video was chosen', 'no_video')
        name, video = found[0]
        own, wanted = choice(request, answers.detectors), uploads(sent, 'picture')
        detector = own.detector if own.detector != 'none' else next(iter(answers.detectors))
        if detector == 'none':
            raise Wrong('a video needs a detector, and there is none', 'no_detector')
        threshold = thresholds.least(own.threshold, bounds)
        job = {'id': fresh(), 'name': name[-120:] or 'video', 'who': None, 'threshold': threshold, 'every': own.every,
               'detector': detector, 'problem': None, 'rows': [], 'seconds': 0}  # fmt: skip
        await work.alone(lambda: kept(job, video.file))
        try:
            if wanted:
                job['who'] = re.sub(r'\.\w+$', '', wanted[0][0])[-80:] or '?'
                await pictures.apart(cut, job, wanted[0][1].file, detector)
            await work.alone(jobs.add, job)
        except BaseException:
            shutil.rmtree(jobs.folder / f'{job["id"]}.part', ignore_errors=True)
            raise
        return to(f'/page/video/{job["id"]}')

    def kept(job, video):
        video.seek(0)
        if not is_video(video.read(512)):
            raise Wrong('no video: MP4, MOV, MKV, WebM, AVI or MPEG is expected', 'no_such_video')
        video.seek(0)
        place = jobs.folder / f'{job["id"]}.part'
        place.mkdir()
        try:
            with (place / 'upload').open('xb') as copy:
                shutil.copyfileobj(video, copy, PIECE)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise

    def cut(job, file, detector):
        """Who is looked for: the largest person in the picture, or all of it."""
        picture = pictures.decoded(pictures.bounded(file), 'the picture')
        boxes, _ = pictures.boxes(picture, detector)
        picture = picture.crop(boxes[largest(boxes)[0]]) if boxes else picture
        small(picture, 800).save(jobs.folder / f'{job["id"]}.part' / 'wanted.jpg', quality=95)

    @route(api, '/page/video/{id}', 'GET')
    async def one(request):
        job = await work.alone(jobs.one, request.path_params['id'])
        part, seconds = jobs.progress(job['id'])
        files = jobs.folder / job['id'] / 'found'
        there = {'contact': (files / 'contact.jpg').is_file(), 'video': (files / 'video.mp4').is_file(),
                 'film': (files / 'video.webm').is_file()}  # fmt: skip
        wanted = (jobs.folder / job['id'] / 'wanted.jpg').is_file()
        rows, over = job['rows'][:SHOWN], job['state'] in OVER
        values = {'job': job, 'rows': rows, 'over': over, 'part': part, 'at': seconds}
        return answers.page(request, 'job.html', **values, there=there, wanted=wanted)

    @route(api, '/page/video/{id}/state.json')
    async def state(request):
        from fastapi.responses import Response

        job = await work.alone(jobs.one, request.path_params['id'])
        part, seconds = jobs.progress(job['id'])
        said = {'state': job['state'], 'part': part, 'clock': None if seconds is None else clock(seconds)}
        return Response(json.dumps(said), media_type='application/json', headers={'Cache-Control': 'no-store'})

    @route(api, '/page/video/{id}/cancel', 'POST')
    async def cancelled(request):
        await work.alone(jobs.cancel, request.path_params['id'])
        return to(f'/page/video/{request.path_params["id"]}', said='said_cancelled')

    @route(api, '/page/video/{id}/remove', 'GET')
    async def asked(request):
        return answers.page(request, 'remove_video.html', job=await work.alone(jobs.one, request.path_params['id']))

    @route(api, '/page/video/{id}/remove', 'POST')
    async def removed(request):
        await work.alone(jobs.remove, request.path_params['id'])
        return to('/page/video', said='said_video_removed')

    @route(api, '/page/video/{id}/results.csv')
    async def listed(request):
        job = await work.alone(jobs.one, request.path_params['id'])
        lines = []
        for row in job['rows']:
            score = '' if row['score'] is None else round(row['score'], 6)
            who = score, row['name'] or '', 'yes' if row['hit'] else 'unknown', row['shot']
            for start, end in row['spans']:
                lines.append((job['name'], row['track'], clock(start), clock(end), start, end, *who))
        columns = ('source', 'track', 'from', 'to', 'from_seconds', 'to_seconds', 'score', 'name', 'known', 'shot')
        return table('results.csv', columns, lines)

    @route(api, '/page/video/{id}/{what}')
    async def made(request):
        """The contact sheet, the video with boxes (.mp4 to save, .webm to play here), who was looked for, or a shot:
        by names that we have given."""
        job, what = await work.alone(jobs.one, request.path_params['id']), request.path_params['what']
        place = jobs.folder / job['id']
        if what == 'video.mp4':
            return file(place / 'found' / what, 'video/mp4', 'people.mp4')
        if what == 'video.webm':
            return file(place / 'found' / what, 'video/webm')
        known = {'contact.jpg': place / 'found' / what, 'wanted.jpg': place / what}
        known |= {row['shot']: place / 'found' / 'shots' / row['shot'] for row in job['rows']}
        if what not in known:
            raise Refused(404, 'there is no such picture')
        return file(known[what], 'image/jpeg')
