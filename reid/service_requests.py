"""What comes in to the service (reid.service): the kinds of what is in an address, and pictures."""

import sys
from datetime import datetime
from types import SimpleNamespace
from typing import Annotated

from reid.service_door import Refused


def addressed():
    """The kinds of what is in an address, and how far they go."""
    from fastapi import Path, Query

    def kind(of, about, where=Query, **limits):
        return Annotated[of, where(description=about, **limits)]

    clock = "2026-11-21T14:30, in the server's time if it names no zone, or seconds since 1970"
    length = {'min_length': 1, 'max_length': 200}
    return SimpleNamespace(
        who=kind(str, 'of the person', **length),
        name=kind(str | None, 'of the person', **length),
        camera=kind(int | None, 'its number; -1 is one that is not known', ge=-1, lt=2**31),
        moment=kind(datetime | None, clock),
        path=kind(str | None, 'what the picture is called where it comes from', min_length=1, max_length=1000),
        id=kind(int, 'of the entry', Path, ge=1, lt=2**63),
        after=kind(int, 'the id behind which the page begins', ge=0, lt=2**63),
        limit=kind(int, 'entries of a page', ge=1, le=1000),
        top=kind(int, 'how many', ge=1, le=1000),
        threshold=kind(float | None, 'the score from which on it is somebody known', ge=-1, le=1),
    )


def seconds(moment):
    """A datetime, or None -> seconds since 1970."""
    try:
        return moment and moment.timestamp()
    except (ValueError, OverflowError, OSError):  # Windows knows no local time before 1970
        raise Refused(422, f'{moment} is a time that this machine cannot count') from None


def given(**wanted):
    return {name: value for name, value in wanted.items() if value is not None}


def only_known():
    """A dependency: a name that is mistyped in an address is a mistake, not something to pass over in silence."""
    from fastapi import Request

    async def check(request: Request):
        known = [parameter.alias for parameter in request.scope['route'].dependant.query_params]
        if odd := set(request.query_params) - set(known):
            expected = f'only {", ".join(known)} may be' if known else 'nothing is'
            raise Refused(422, f'{", ".join(sorted(odd))}: {expected} asked for in this address')

    return check


async def bodies(request, *names):
    """The pictures of a request as {name: bytes}. They stay in memory: no file is made of them."""
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    if len(names) == 1 and (kind.startswith('image/') or kind == 'application/octet-stream'):
        return {names[0]: b''.join([piece async for piece in request.stream()])}
    if kind != 'multipart/form-data':
        raise Refused(415, f'a form is expected, as by curl -F {names[0]}=@a.jpg, found {kind or "nothing"}')
    from starlette.formparsers import MultiPartException, MultiPartParser

    parser = MultiPartParser(request.headers, request.stream(), max_files=len(names), max_fields=0)
    parser.spool_max_size = sys.maxsize  # or it would write large ones to a temporary file
    wanted = f'{" and ".join(names)}: expected as {"a file" if len(names) == 1 else "files"} of the form'
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refused(400, f'{wanted}, and nothing else ({error.message})') from None
    if sorted(form) != sorted(names):
        raise Refused(422, f'{wanted}, found {", ".join(form) or "nothing"}')
    return {name: await form[name].read() for name in names}
