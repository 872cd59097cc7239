"""The gallery as a service: app(embedder, index) -> a FastAPI application, which serve.py gives to uvicorn.

    POST   /embed                  a picture -> its descriptor
    POST   /same                   two of them -> the same person or not
    POST   /gallery?name=Ann       a picture -> an entry of the index, on the disk when it is answered
    GET    /gallery                what is there, page by page
    DELETE /gallery/{id}           an entry; /gallery?name=Ann: all of that name
    POST   /search                 a picture -> who it is, and the entries that are most alike
    GET    /health, /metrics       is it there; what it does, for Prometheus

Pictures come as a form (curl -F picture=@a.jpg) or, where it is one, as the body itself; all else in the address.
Nothing of a picture is kept but its descriptor (the page, reid.page, keeps small ones), and the name of a file is not
looked at. Mistakes are answered by a code 4xx and {"detail": sentence}.

    service_door.py      who may come in, and with how much
    service_sessions.py  who has logged in to the page
    service_requests.py  what they bring
    service_work.py      what is done with it, in threads
    service_answers.py   what they get
    service_metrics.py   what is counted
"""

import asyncio
from contextlib import asynccontextmanager, suppress
from time import time as clock

import numpy as np

from reid import thresholds
from reid.datasets import UNKNOWN
from reid.problem import Problem
from reid.service_answers import Feature, Found, Health, Kept, Page, Removed, Same, answer, errors, pictures, sentences
from reid.service_door import LIMITS, Door, Refused
from reid.service_metrics import Metrics
from reid.service_requests import addressed, bodies, given, only_known, seconds
from reid.service_sessions import Sessions
from reid.service_work import Work, remove_name

TEXT = """Pictures come as a form: `curl -F picture=@a.jpg 'http://127.0.0.1:8000/search?top=5'`. Where it is one, it
may be the body itself: `curl --data-binary @a.jpg -H 'Content-Type: image/jpeg' ...`. All else is in the address. JPEG,
PNG, WebP, GIF, BMP, TIFF, AVIF and PPM are read, of an animation the first picture. What is wrong is said by a code 4xx
and `{"detail": a sentence}`; 429 means: again, in a second."""

# ---------------------------------------------------------------------------------------------------------------------
# 1. the application


def app(embedder, index=None, limits=LIMITS, token=None, local=False, page=None):
    """token: who asks has to know it. local: it is for this machine alone. page: reid.page.Pages, for people without a
    command line. An index is closed by whoever opened it, after the application has come to its end."""
    try:
        import python_multipart  # noqa: F401 (it is asked for when the first form comes)
        from fastapi import APIRouter, Depends, FastAPI
        from fastapi.security import HTTPBearer
    except ImportError as error:
        packages = 'fastapi uvicorn python-multipart'
        raise Problem(f'the service needs a package that is not here, {error.name}: pip install {packages}') from None
    metrics = Metrics()
    work = Work(embedder, index, limits, metrics)

    @asynccontextmanager
    async def lifespan(api):
        yield
        if page is not None:
            await asyncio.to_thread(page.close)
        await asyncio.to_thread(work.close)  # what was let in is done

    # The page at /docs takes its style and script from a server in the internet; /openapi.json needs nobody.
    api = FastAPI(title='Person re-ID', description=TEXT, redoc_url=None, redirect_slashes=False, lifespan=lifespan)
    guards = [Depends(only_known())]
    if token:
        guards.append(Depends(HTTPBearer(auto_error=False)))  # for the text: it is the door that looks at it
    routes = APIRouter(dependencies=guards, responses=errors(*([401] if token else []), 403, 422, 429))
    picture_routes(routes, work)
    gallery_routes(routes, work)
    search_route(routes, work)
    status_routes(api, routes, work, metrics)
    api.include_router(routes)
    sentences(api)
    large, sessions = {}, None
    if page is not None:
        sessions = Sessions(token) if token else None
        page.into(api, work, sessions)
        large = page.large(limits)
    guard = {'token': token, 'local': local, 'sessions': sessions}
    api.add_middleware(Door, metrics=metrics, limits=limits, large=large, **guard)
    return api


# ---------------------------------------------------------------------------------------------------------------------
# 2. what can be asked for


def picture_routes(routes, work):
    from fastapi import Request

    embedder, bounds = work.embedder, work.embedder.bounds

    @routes.post('/embed', summary='A picture -> its descriptor', response_model=Feature, **pictures('picture'))
    async def embed(request: Request):
        """Numbers, together of length 1: the product of two descriptors of one network is their score, -1 to 1."""
        (f,) = await work.describe(await bodies(request, 'picture'))
        return answer(Feature([float(f'{value:.9g}') for value in f], embedder.dim, str(embedder.about['run'])))

    @routes.post('/same', summary='Is it the same person?', response_model=Same, **pictures('picture', 'other'))
    async def same(request: Request):
        """verdict: same, unsure, not the same; null for a network without thresholds, of which the note speaks."""
        one, other = await work.describe(await bodies(request, 'picture', 'other'))
        score = float(one.astype(np.float64) @ other)
        distance = max(0, 2 - 2 * score) ** 0.5
        if isinstance(bounds, Problem):
            return answer(Same(score, distance, None, None, str(bounds)))
        return answer(Same(score, distance, thresholds.judge(score, {'bounds': bounds}), bounds, None))


def gallery_routes(routes, work):
    from fastapi import Request

    a, gone = addressed(), errors(404, 503)
    adding = {'status_code': 201, 'response_model': Kept, **pictures('picture', also=(404,))}

    @routes.post('/gallery', summary='Add a picture', **adding)
    async def add(request: Request, name: a.who, camera: a.camera = None, time: a.moment = None, path: a.path = None):
        """When it is answered, the entry is on the disk and found by all who search from then on. One with the same
        path gives way to it."""
        there(work)
        entry = {'name': name, 'camera': UNKNOWN if camera is None else camera}
        entry |= {'time': clock() if time is None else seconds(time), 'path': path, 'box': None}
        (f,) = await work.describe(await bodies(request, 'picture'))
        return answer({'id': await work.together('add', (entry, f)), **entry}, 201)

    @routes.get('/gallery', summary='What is there', response_model=Page, responses=gone)
    async def entries(
        name: a.name = None,
        camera: a.camera = None,
        since: a.moment = None,
        until: a.moment = None,
        path: a.path = None,
        after: a.after = 0,
        limit: a.limit = 100,
    ):
        """In order of their ids. The next page is that with after=next, as long as next is a number."""
        wanted = given(name=name, camera=camera, since=seconds(since), until=seconds(until), path=path)
        found = await work.alone(lambda: there(work).find(**wanted, after=after, limit=limit + 1))
        shown = [entry._asdict() for entry in found[:limit]]
        return answer(Page(shown, shown[-1]['id'] if len(found) > limit else None))

    @routes.delete('/gallery/{id}', summary='Remove an entry', response_model=Removed, responses=gone)
    async def remove(id: a.id):
        if not await work.alone(there(work).remove, [id]):
            raise Refused(404, f'there is no entry {id}')
        return answer(Removed(1))

    @routes.delete('/gallery', summary='Remove all entries of a name', response_model=Removed, responses=gone)
    async def remove_all(name: a.who):
        return answer(Removed(await work.alone(remove_name, there(work), name)))


def search_route(routes, work):
    from fastapi import Request

    a, bounds = addressed(), work.embedder.bounds

    @routes.post('/search', summary='Who is it?', response_model=Found, **pictures('picture', also=(404,)))
    async def search(
        request: Request,
        top: a.top = 10,
        threshold: a.threshold = None,
        name: a.name = None,
        camera: a.camera = None,
        since: a.moment = None,
        until: a.moment = None,
    ):
        """who: the name of the nearest entry, null if that does not reach the threshold (by default that of the
        network). name, camera, since, until: only such entries are looked at."""
        there(work)
        wanted = given(name=name, camera=camera, since=seconds(since), until=seconds(until))
        (f,) = await work.describe(await bodies(request, 'picture'))
        hits = await work.together('search', (f, top, wanted))
        least = thresholds.least(threshold, bounds)
        return answer(
            Found(thresholds.who(hits, least), least, [{'score': score, **entry._asdict()} for score, entry in hits])
        )


def there(work):
    if work.index is None:
        sentence = 'no index is served here: python search.py index create people, then python serve.py --index people'
        raise Refused(404, sentence)
    return work.index


def status_routes(api, routes, work, metrics):
    from fastapi.responses import PlainTextResponse

    @api.get('/health', summary='Is it there?', response_model=Health)
    async def health():
        return answer(Health('ok'))

    @routes.get('/metrics', summary='What it does, for Prometheus', response_class=PlainTextResponse)
    async def measured():
        gauges = {('reid_queue_length', ()): work.waiting()}
        with suppress(Problem):  # of an index that is away for now
            if work.index is not None:
                gauges['reid_entries', ()] = (await work.alone(work.index.stats))['entries']
        return PlainTextResponse(metrics.text(gauges), media_type='text/plain; version=0.0.4')
