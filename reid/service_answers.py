"""What the service (reid.service) answers. The text of its interface, /openapi.json, is made of this as well."""

import json
from dataclasses import dataclass
from http import HTTPStatus

from reid.batching import Full
from reid.problem import Problem
from reid.service_door import Refused, busy


@dataclass
class Error:
    detail: str


@dataclass
class Feature:
    feature: list[float]
    dim: int
    run: str


@dataclass
class Same:
    score: float
    distance: float
    verdict: str | None
    bounds: dict[str, float] | None
    note: str | None


@dataclass
class Kept:
    """An entry of the index. camera -1 is one that is not known; time is in seconds since 1970."""

    id: int
    name: str
    camera: int
    time: float | None
    path: str | None
    box: list[float] | None


@dataclass
class Hit(Kept):
    score: float


@dataclass
class Found:
    who: str | None
    threshold: float | None
    hits: list[Hit]


@dataclass
class Page:
    entries: list[Kept]
    next: int | None


@dataclass
class Removed:
    removed: int


@dataclass
class Health:
    status: str


def errors(*codes):
    """For the text: with these codes comes a sentence."""
    return {code: {'model': Error, 'description': HTTPStatus(code).phrase} for code in codes}


def pictures(*fields, also=()):
    """For the text: what a route takes that takes pictures."""
    file = {'type': 'string', 'format': 'binary'}
    form = {'type': 'object', 'properties': dict.fromkeys(fields, file), 'required': [*fields]}
    content = {'multipart/form-data': {'schema': form}}
    if len(fields) == 1:
        content |= {'image/*': {'schema': file}, 'application/octet-stream': {'schema': file}}
    body = {'required': True, 'content': content}
    return {'openapi_extra': {'requestBody': body}, 'responses': errors(400, 408, 413, 415, 503, *also)}


def answer(content, status=200):
    """Any of the above as JSON. It is ASCII: names of files that are no text have no UTF-8."""
    from fastapi import Response

    return Response(json.dumps(content, default=vars, allow_nan=False), status, media_type='application/json')


def sentences(api):
    """Whatever goes wrong is a sentence in {"detail": ...}."""
    from fastapi.exceptions import RequestValidationError
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    def said(status, sentence, headers=None):
        response = answer({'detail': sentence}, status)
        response.headers.update(headers or {})
        return response

    @api.exception_handler(Refused)
    async def refused(request, error):
        return said(error.status, error.sentence, error.headers)

    @api.exception_handler(Full)
    async def full(request, error):
        return await refused(request, busy())

    @api.exception_handler(Problem)  # of the index: its disk is full, its server away
    async def unable(request, error):
        return said(503, str(error))

    @api.exception_handler(RequestValidationError)
    async def invalid(request, error):
        return said(422, '; '.join(f'{fault["loc"][-1]}: {fault["msg"]}' for fault in error.errors()))

    @api.exception_handler(HTTPException)
    async def other(request, error):
        where = f'{request.method} {request.url.path}'
        known = {404: f'{where}: there is no such address, see /docs', 405: f'{where}: it is not done so, see /docs'}
        sentence = known.get(error.status_code) if error.detail == HTTPStatus(error.status_code).phrase else None
        return said(error.status_code, sentence or error.detail, error.headers)

    @api.exception_handler(ClientDisconnect)
    async def away(request, error):
        return said(400, 'the request ended too early')
