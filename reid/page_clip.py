"""The page (reid.page): register somebody from a video. It is sent, a moment is looked for in it, and the frame of that
moment becomes a draft like any picture that was sent (reid.page_pictures). The video lies there as a draft too."""

import io
import json
import os
import shutil
from functools import partial

from PIL import Image

from reid import frames
from reid.filming import clock
from reid.page_choice import choice, number
from reid.page_html import HEADERS, Wrong, form, text, to, uploads
from reid.page_jobs import is_video
from reid.page_pictures import SHOWN, fresh, small
from reid.problem import Problem
from reid.service_door import Refused

PIECE, LONGEST = 2**20, 1e6  # bytes; seconds of a video


def routes(api, answers, work, pictures):
    route = answers.route

    @route(api, '/page/clip', 'POST')
    async def sent(request):
        found = uploads(await form(request, files=1), 'video')
        if not found:
            raise Wrong('no video was chosen', 'no_video')
        return to(f'/page/clip/{await pictures.apart(taken, *found[0])}')

    def taken(name, video):
        """-> the id of a draft."""
        pictures.tidy()
        id = fresh()
        place = pictures.drafts / f'{id}.part'
        place.mkdir()
        try:
            if not is_video(video.file):
                raise Wrong('no video: MP4, MOV, MKV, WebM, AVI or MPEG is expected', 'no_such_video')
            with (place / 'upload').open('xb') as copy:
                shutil.copyfileobj(video.file, copy, PIECE)
            try:
                _, seconds, fps = frames.still(place / 'upload', 0, work.limits.pixels)
            except Problem as problem:
                raise Refused(422, str(problem).replace(str(place / 'upload'), name[-80:] or 'the video')) from None
            draft = {'kind': 'clip', 'name': name[-200:], 'pictures': [], 'seconds': seconds, 'fps': fps}
            (place / 'draft.json').write_text(json.dumps(draft), encoding='utf-8')
            os.replace(place, pictures.drafts / id)
        except BaseException:
            shutil.rmtree(place, ignore_errors=True)
            raise
        return id

    def asked(request):
        """-> its id, the draft, and the moment that an address asks for."""
        id = request.path_params['id']
        draft = pictures.draft(id, 'clip')
        return id, draft, moment(request.query_params.get('at'), draft)

    def moment(given, draft):
        return min(number(given, float, 0, LONGEST) or 0.0, draft['seconds'] or LONGEST)

    def frame(id, at):
        try:
            picture, _, _ = frames.still(pictures.drafts / id / 'upload', at, work.limits.pixels)
        except Problem:
            raise Refused(404, 'this video is not here any more, or cannot be read there') from None
        return Image.fromarray(picture)

    @route(api, '/page/clip/{id}', 'GET')
    async def shown(request):
        id, draft, at = asked(request)
        ways = [(words, min(max(0, at + step), draft['seconds'] or LONGEST)) for words, step in steps(draft['fps'])]
        return answers.page(request, 'clip.html', id=id, draft=draft, at=at, ways=ways, longest=LONGEST)

    @route(api, '/page/clip/{id}/frame.jpg')
    async def seen(request):
        from fastapi.responses import Response

        id, _, at = asked(request)
        picture = await pictures.apart(frame, id, at)
        return Response(jpeg(small(picture, SHOWN), 88), media_type='image/jpeg', headers=HEADERS)

    @route(api, '/page/clip/{id}', 'POST')
    async def chosen(request):
        """This frame."""
        fields, id = await form(request), request.path_params['id']
        draft = pictures.draft(id, 'clip')
        at = moment(text(fields, 'at'), draft)
        picture = await pictures.apart(frame, id, at)
        named = f'{draft["name"]} {clock(at)}', io.BytesIO(jpeg(picture, 95))
        detector = choice(request, answers.detectors).detector
        take = partial(pictures.take, clip=f'/page/clip/{id}?at={at:.3f}')
        return to(f'/page/register/{await pictures.apart(take, "register", [named], detector)}')

    @route(api, '/page/clip/{id}/remove', 'POST')
    async def removed(request):
        pictures.draft(request.path_params['id'], 'clip')
        await pictures.apart(partial(shutil.rmtree, pictures.drafts / request.path_params['id'], ignore_errors=True))
        return to('/page/register', said='said_removed')


def steps(fps):
    return [('−10 s', -10), ('−1 s', -1), ('−1', -1 / fps), ('+1', 1 / fps), ('+1 s', 1), ('+10 s', 10)]


def jpeg(picture, quality):
    out = io.BytesIO()
    picture.save(out, 'JPEG', quality=quality)
    return out.getvalue()
