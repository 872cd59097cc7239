"""The page (reid.page): pictures that somebody sends, to be registered or to be searched for.

What is sent becomes a draft (reid.page_pictures) with an address of its own. There a person is chosen; so it may be
loaded again, be open twice, and be left.
"""

import time

import numpy as np

from reid import thresholds
from reid.datasets import UNKNOWN
from reid.index_entries import Entry
from reid.page_choice import choice, number
from reid.page_html import Wrong, file, form, key, named, table, text, to, uploads, when
from reid.page_pictures import SKIP, WHOLE
from reid.service_door import Refused

FILES = 20  # of one form


def routes(api, answers, work, pictures):
    @answers.route(api, '/page/register', 'GET')
    async def register(request):
        return answers.page(request, 'send.html', kind='register')

    @answers.route(api, '/page/search', 'GET')
    async def search(request):
        return answers.page(request, 'send.html', kind='search')

    for kind, most in (('register', FILES), ('search', 1)):
        sending(api, answers, pictures, kind, most)
    registering(api, answers, work, pictures)
    searching(api, answers, work, pictures)

    @answers.route(api, '/page/draft/{id}/{place}.jpg')
    async def shown(request):
        return drawn(request, None)

    @answers.route(api, '/page/draft/{id}/{place}/{box}.jpg')
    async def face(request):
        return drawn(request, request.path_params['box'])

    def drawn(request, box):
        id, place = request.path_params['id'], request.path_params['place']
        draft = pictures.draft(id)
        at = number(place, int, 0, len(draft['pictures']) - 1)
        if at is None:
            raise Refused(404, 'there is no such picture')
        if box is None:
            return file(pictures.drafts / id / f'{at}.jpg', 'image/jpeg')
        which = number(box, int, 0, len(draft['pictures'][at]['boxes']) - 1)
        if which is None:
            raise Refused(404, 'there is no such box')
        return file(pictures.drafts / id / f'{at}-{which}.jpg', 'image/jpeg')


def sending(api, answers, pictures, kind, most):
    @answers.route(api, f'/page/{kind}', 'POST')
    async def sent(request):
        found = uploads(await form(request, files=most), 'picture')
        if not found:
            raise Wrong('no picture was chosen', 'no_picture')
        files = [(name, file.file) for name, file in found]
        detector = choice(request, answers.detectors).detector
        id = await pictures.apart(pictures.take, kind, files, detector)
        return to(f'/page/{kind}/{id}')


# ---------------------------------------------------------------------------------------------------------------------
# 1. register


def registering(api, answers, work, pictures):
    @answers.route(api, '/page/register/{id}', 'GET')
    async def choose(request):
        return chosen(request, {})

    def chosen(request, sent, status=200, problem=None):
        id = request.path_params['id']
        draft = pictures.draft(id, 'register')
        own = [picked(sent, place, picture) for place, picture in enumerate(draft['pictures'])]
        values = {'name': text(sent, 'name')[:2000], 'camera': text(sent, 'camera')[:20], 'picked': own}
        return answers.page(
            request, 'choose.html', status, kind='register', id=id, draft=draft, problem=problem, **values
        )

    @answers.route(api, '/page/register/{id}', 'POST')
    async def kept(request):
        sent, id = await form(request), request.path_params['id']
        draft = pictures.draft(id, 'register')
        try:
            name, camera = named(text(sent, 'name')), camera_of(text(sent, 'camera'))
            own = [picked(sent, place, picture) for place, picture in enumerate(draft['pictures'])]
            if all(box == SKIP for box in own):
                raise Wrong('nobody is chosen', 'nobody_chosen')
        except Wrong as wrong:  # what was typed stays there
            return chosen(request, sent, 422, wrong.say)
        cuts = [(place, box) for place, box in enumerate(own) if box != SKIP]
        looks = [await pictures.apart(pictures.look, id, draft, place, box) for place, box in cuts]
        sized, shown = zip(*looks, strict=True)
        entry = {'name': name, 'camera': camera, 'time': time.time(), 'path': None, 'box': None}
        vectors = await pictures.describe(sized)
        pictures.claim(id)
        try:
            ids = await work.alone(work.index.add, [entry] * len(shown), np.stack(vectors))  # all of them, or none
        except BaseException:
            pictures.unclaim(id)
            raise
        for new, picture in zip(ids, shown, strict=True):
            await work.alone(pictures.keep, Entry(id=new, **entry), picture)
        pictures.done(id)
        return to('/page/person', who=key(name), said='said_registered')


def picked(sent, place, picture):
    """The box that a form says, by its number; WHOLE or SKIP. At first, the one who is largest."""
    given, boxes = text(sent, f'box{place}'), picture['boxes']
    if given in (WHOLE, SKIP):
        return given
    which = number(given, int, 0, len(boxes) - 1)
    if which is not None or not boxes:
        return WHOLE if which is None else which
    return picture['drawn'][0]


def camera_of(given):
    if not given.strip():
        return UNKNOWN
    camera = number(given, int, 0, 2**31 - 1)
    if camera is None:
        raise Wrong(f'camera {given[:20]}: a whole number from 0 on is expected', 'wrong_camera')
    return camera


# ---------------------------------------------------------------------------------------------------------------------
# 2. search


def searching(api, answers, work, pictures):
    bounds = work.embedder.bounds

    @answers.route(api, '/page/search/{id}')
    async def found(request):
        """Several people: who is meant? One, or none that was found: the answer."""
        id = request.path_params['id']
        draft = pictures.draft(id, 'search')
        if 'box' not in request.query_params and len(draft['pictures'][0]['boxes']) > 1:
            own = [picked({}, 0, draft['pictures'][0])]
            return answers.page(
                request, 'choose.html', kind='search', id=id, draft=draft, name='', camera='', picked=own
            )
        box, least, hits = await nearest(request, id, draft)
        values = {'id': id, 'draft': draft, 'box': box, 'least': least, 'hits': hits}
        return answers.page(request, 'found.html', **values, who=thresholds.who(hits, least))

    @answers.route(api, '/page/search/{id}/results.csv')
    async def listed(request):
        draft = pictures.draft(request.path_params['id'], 'search')
        _, least, hits = await nearest(request, request.path_params['id'], draft)
        rows = []
        for score, entry in hits:
            known = 'yes' if least is None or score >= least else 'unknown'
            camera = '' if entry.camera == UNKNOWN else entry.camera
            rows.append((round(score, 6), entry.name, known, entry.id, camera, when(entry.time)))
        return table('results.csv', ('score', 'name', 'known', 'entry', 'camera', 'time'), rows)

    async def nearest(request, id, draft):
        own = choice(request, answers.detectors)
        box = picked({'box0': [request.query_params.get('box', '')]}, 0, draft['pictures'][0])
        box = WHOLE if box == SKIP else box
        sized, _ = await pictures.apart(pictures.look, id, draft, 0, box)
        (f,) = await pictures.describe([sized])
        least = thresholds.least(own.threshold, bounds)
        return box, least, await work.together('search', (f, own.top, {}))
