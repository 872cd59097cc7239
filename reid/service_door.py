"""What every request to the service passes first: who may enter, how many, and how much they may bring.

    Door(app, metrics, limits, token, local)      an ASGI application around another one

    403  a page of another site asks, from within somebody's browser (where no token is sent)
    401  the token is not there, or is another one. Of the page, who has logged in enters; others are sent to do so
    413  the body is larger than limits.bytes: by its Content-Length at once, and counted while it comes
    429  limits.queue requests are inside, or what they hold together is more than HELD bodies of the largest size
    408  a body is not there after limits.patience seconds

Who waits outside is told so at once, and nothing of what he brings is kept: memory has a bound whatever comes.
"""

import asyncio
import hmac
import json
import logging
import re
import time
from collections import namedtuple
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlencode

from reid import service_sessions

# batchsize: pictures described together. wait: seconds, for others after the first (reid.batching). queue: requests
# inside. bytes: of a body. pixels: of a picture. patience: seconds for a body.
Limits = namedtuple('Limits', 'batchsize wait queue bytes pixels patience')
LIMITS = Limits(batchsize=32, wait=0.003, queue=256, bytes=10 * 10**6, pixels=25 * 10**6, patience=30)

HELD = 32
LINGER = 2  # seconds
OPEN = ('/health', '/docs', '/openapi.json')  # to whoever asks: what can be asked for is no secret
ALWAYS = ('/health', '/metrics')  # however many there are
LOCAL = r'(localhost|127\.[\d.]+|\[::1\])(:\d+)?'  # names of this machine that nobody else can take


class Refused(Exception):
    """A request that is not done, and the sentence for whoever made it."""

    def __init__(self, status, sentence, **headers):
        super().__init__(sentence)
        self.status, self.sentence = status, sentence
        self.headers = {name.replace('_', '-'): value for name, value in headers.items()}

    async def answer(self, send):
        body = json.dumps({'detail': self.sentence}).encode()
        headers = {'content-type': 'application/json', 'content-length': str(len(body)), **self.headers}
        headers = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await send({'type': 'http.response.start', 'status': self.status, 'headers': headers})
        await send({'type': 'http.response.body', 'body': body})


class Door:
    def __init__(self, app, metrics, limits=LIMITS, token=None, local=False, large=None, sessions=None):
        """local: the service is for this machine alone, and is called by its names alone. large: {address: limits} of
        those with bodies that go to the disk, and may be larger. sessions: of the page, if there are both token and
        page."""
        self.app, self.metrics, self.limits, self.token, self.local = app, metrics, limits, token, local
        self.large, self.sessions = large or {}, sessions
        self.inside = self.held = 0  # the event loop alone changes them

    async def __call__(self, scope, receive, send):
        if scope['type'] != 'http':
            await self.app(scope, receive, send)
            return
        began, body, answered = time.perf_counter(), Body(self, scope, receive), False
        labels = {'method': scope['method'] if scope['method'] in METHODS else 'other', 'path': place(scope['path'])}

        async def noted(message):
            nonlocal answered
            if message['type'] == 'http.response.start':
                answered = True
                self.metrics.count('reid_requests_total', **labels, status=message['status'])
                self.metrics.observe('reid_request_seconds', time.perf_counter() - began, **labels)
                if not body.whole:
                    message = {**message, 'headers': [*message.get('headers', []), (b'connection', b'close')]}
            elif not body.whole:
                await send({**message, 'more_body': True})
                await body.linger()
                message = {'type': 'http.response.body'}
            await send(message)

        try:
            self.admit(scope)
            async with self.room(scope, body):
                await self.app(scope, body.receive, noted)
        except Refused as refused:
            await refused.answer(noted)
        except Exception:  # a bug
            if answered:
                raise
            logging.getLogger(__name__).exception('%(method)s %(path)s', labels)
            await Refused(500, 'something went wrong in the service, and its log says what').answer(noted)

    @asynccontextmanager
    async def room(self, scope, body):
        counted = scope['path'] not in ALWAYS
        self.enter(counted)
        try:
            yield
        finally:
            self.enter(-counted)
            self.held -= body.held

    def enter(self, count):
        self.inside += count
        self.metrics.now['reid_requests_inside', ()] = self.inside

    def admit(self, scope):
        headers = dict(scope['headers'])
        if scope['path'] not in OPEN:
            if self.token is None:
                self.at_home(headers)
            elif hmac.compare_digest(headers.get(b'authorization', b''), b'Bearer ' + self.token.encode()):
                pass
            elif self.sessions is not None and service_sessions.of_page(scope['path']):
                self.logged_in(scope, headers)
            else:
                sentence = 'the header "Authorization: Bearer TOKEN" is expected, with the token of this service'
                raise Refused(401, sentence, WWW_Authenticate='Bearer')
        length, limits = headers.get(b'content-length', b'0'), self.limits_of(scope)
        if not length.isdigit() or int(length) > limits.bytes:
            raise too_much(limits)
        if self.inside >= self.limits.queue and scope['path'] not in ALWAYS:
            raise busy()

    def at_home(self, headers):
        """A page from anywhere may send forms to this address, and may have given its own name this address."""
        host, origin = (headers.get(name, b'').decode('latin-1') for name in (b'host', b'origin'))
        if self.local and not re.fullmatch(LOCAL, host):
            raise Refused(403, f'this is http://localhost or http://127.0.0.1; as {host}, it needs a REID_TOKEN')
        if origin and origin.partition('://')[2] != host:
            raise Refused(403, f'a page of {origin} may not ask this without a REID_TOKEN')

    def logged_in(self, scope, headers):
        host, origin = (headers.get(name, b'').decode('latin-1') for name in (b'host', b'origin'))
        if origin and origin.partition('://')[2] != host:
            way = 'if they are one, nginx between them has to pass on its name: see docs/service.md'
            raise Refused(403, f'a page of {origin} may not ask this of {host}; {way}')
        if re.fullmatch(service_sessions.OPEN, scope['path']):
            return
        if not self.sessions.known(service_sessions.cookie(headers)):
            asked = scope['path'] + ('?' + scope['query_string'].decode('latin-1') if scope['query_string'] else '')
            after = f'?{urlencode({"next": asked})}' if scope['method'] == 'GET' and len(asked) <= 500 else ''
            raise Refused(303, 'log in at /page/login', Location=f'/page/login{after}', Cache_Control='no-store')

    def limits_of(self, scope):
        return self.large.get(scope['path'], self.limits)


def too_much(limits):
    return Refused(413, f'at most {limits.bytes / 1e6:g} MB are taken in one request')


def busy():
    return Refused(429, 'too many requests at a time: try again in a second', Retry_After='1')


class Body:
    """The body of a request, on its way in."""

    def __init__(self, door, scope, receive):
        self.door, self.incoming, self.size, self.held = door, receive, 0, 0  # held: of it, in memory
        self.limits, self.large = door.limits_of(scope), scope['path'] in door.large
        headers = dict(scope['headers'])
        self.whole = headers.get(b'content-length', b'0') == b'0' and b'transfer-encoding' not in headers
        self.until = time.monotonic() + self.limits.patience

    async def receive(self):
        if self.whole:  # what comes now is that the other one has gone
            return await self.incoming()
        try:
            message = await asyncio.wait_for(self.incoming(), max(0, self.until - time.monotonic()))
        except asyncio.TimeoutError:
            raise Refused(408, f'the request was not there after {self.limits.patience:g} seconds') from None
        size = len(message.get('body', b''))
        self.size += size
        if not self.large:
            self.held += size
            self.door.held += size
        self.whole = not message.get('more_body', False)
        if self.size > self.limits.bytes:
            raise too_much(self.limits)
        if self.door.held > HELD * self.door.limits.bytes:
            raise busy()
        return message

    async def linger(self):
        """Whoever is answered while he still sends would not get to read it if the line were cut at once: for a while,
        what he sends is thrown away."""
        until = time.monotonic() + LINGER
        with suppress(asyncio.TimeoutError):
            while not self.whole:
                message = await asyncio.wait_for(self.incoming(), max(0, until - time.monotonic()))
                self.whole = not message.get('more_body', False)


METHODS = ('GET', 'HEAD', 'POST', 'DELETE', 'OPTIONS')
PLACES = '/embed /same /search /gallery /health /metrics /docs /openapi.json'.split()


def place(path):
    """The address as metrics name it: they are few, whatever is asked for."""
    return path if path in PLACES else '/gallery/{id}' if path.startswith('/gallery/') else 'other'
