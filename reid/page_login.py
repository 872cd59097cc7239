"""The page (reid.page): in and out, where the service has a token. Who may enter is looked at by the door
(reid.service_door), by the sessions that begin and end here (reid.service_sessions)."""

import asyncio
import re

from reid.page_html import form, text, to
from reid.service_door import busy
from reid.service_sessions import COOKIE, HOURS, cookie

PAUSE = 0.5  # seconds after a wrong token. Others who are wrong meanwhile are not let wait: they would take all places


def routes(api, answers, sessions):
    wrong = asyncio.Lock()

    @answers.route(api, '/page/login', 'GET')
    async def asked(request):
        return answers.page(request, 'login.html', after=inside(request.query_params.get('next')))

    @answers.route(api, '/page/login', 'POST')
    async def sent(request):
        given = await form(request)
        after = inside(text(given, 'next'))
        if not sessions.right(text(given, 'token')):
            if wrong.locked():
                raise busy()
            async with wrong:
                await asyncio.sleep(PAUSE)
            return answers.page(request, 'login.html', 403, after=after, problem='wrong_token')
        sessions.end(cookie(dict(request.scope['headers'])))
        response, safe = to(after), request.url.scheme == 'https'
        how = {'httponly': True, 'samesite': 'strict', 'secure': safe, 'max_age': HOURS * 3600}
        response.set_cookie(COOKIE, sessions.begin(), **how)
        return response

    @answers.route(api, '/page/logout', 'POST')
    async def left(request):
        sessions.end(cookie(dict(request.scope['headers'])))
        response = to('/page/login', said='said_logged_out')
        response.delete_cookie(COOKIE, httponly=True, samesite='strict')
        return response


def inside(given):
    """Where somebody wanted to go, if that is a page of ours."""
    return given if given and re.fullmatch(r'/page/[\w./?=&%+-]{0,500}', given) else '/page/people'
