"""How the page (reid.page) answers: HTML from the templates in reid/web.

    form(request)   the fields of a form
    Answers         templates and tables as responses

Texts are escaped by the templates; pictures are made anew by us; and the policy below lets a browser take nothing from
elsewhere, nor run what stands in the HTML.
"""

import base64
import binascii
import csv
import errno
import io
from datetime import datetime
from functools import wraps
from http import HTTPStatus
from pathlib import Path
from urllib.parse import parse_qs, urlencode

from reid.batching import Full
from reid.filming import clock
from reid.page_choice import THEMES, TRACKERS, choice, kept
from reid.page_texts import LANGUAGES, TEXTS
from reid.problem import Problem
from reid.service_door import Refused, busy

WEB = Path(__file__).parent / 'web'
POLICY = "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
# same-origin: with no referrer at all, browsers would not say either where a form comes from, and the door asks that.
HEADERS = {
    'Content-Security-Policy': POLICY,
    'X-Content-Type-Options': 'nosniff',
    'Referrer-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}
FIELDS, FIELD, LONGEST = 500, 2**16, 200  # of a form; bytes of one that is a text; letters of a name
SPOOL = 2**16


class Wrong(Refused):
    """Something in a form, which a text of ours says in any language."""

    def __init__(self, sentence, say):
        super().__init__(422, sentence)
        self.say = say


# ---------------------------------------------------------------------------------------------------------------------
# 1. what comes in


async def form(request, files=0):
    """{name: [values]}: texts, or files as (name, file), which lie on the disk from SPOOL bytes on. Texts stay in
    memory: where a body may be as large as files are, no urlencoded form is taken, which is all text."""
    kind = request.headers.get('content-type', '').partition(';')[0].strip().lower()
    found = {}
    if kind == 'multipart/form-data':
        from starlette.formparsers import MultiPartException, MultiPartParser

        parser = MultiPartParser(
            request.headers, request.stream(), max_files=files, max_fields=FIELDS, max_part_size=FIELD
        )
        parser.spool_max_size = SPOOL
        try:
            parts = await parser.parse()
        except MultiPartException as error:
            raise Refused(400, f'a form of this page is expected ({error.message})') from None
        for name, value in parts.multi_items():
            found.setdefault(name, []).append(value if isinstance(value, str) else (value.filename or '', value))
    elif kind == 'application/x-www-form-urlencoded' and not files:
        try:
            found = parse_qs((await request.body()).decode('latin-1'), True, max_num_fields=FIELDS)
        except ValueError as error:
            raise Refused(400, f'a form of this page is expected ({error})') from None
    else:
        raise Refused(415, f'a form of this page is expected, found {kind or "nothing"}')
    return found


def text(form, name):
    """A field, or ''."""
    value = form.get(name, [''])[0]
    return value if isinstance(value, str) else ''


def uploads(form, name):
    """The files of a field. One that was left empty has no name, and nothing in it."""
    return [one for one in form.get(name, []) if not isinstance(one, str) and (one[0] or one[1].size)]


def named(given):
    """What somebody has typed as a name, or a sentence. One line, as an entry is shown in one."""
    name = ' '.join(given.split())
    if not name:
        raise Wrong('a name is missing', 'no_name')
    if len(name) > LONGEST:
        raise Wrong(f'a name has at most {LONGEST} letters, and this one {len(name)}', 'long_name')
    return name


def key(name):
    """Any name, as a part of an address: also one that is empty, or that is no text."""
    return base64.urlsafe_b64encode(name.encode('utf-8', 'surrogatepass')).decode().rstrip('=')


def unkey(key):
    try:
        return base64.urlsafe_b64decode(key + '=' * (-len(key) % 4)).decode('utf-8', 'surrogatepass')
    except (binascii.Error, ValueError):
        raise Refused(404, 'there is nobody by this address') from None


# ---------------------------------------------------------------------------------------------------------------------
# 2. what goes out


class Answers:
    def __init__(self, detectors, name, most):
        """name: of the network. most: {page: bytes of what may be sent to it}."""
        try:
            from jinja2 import Environment, FileSystemLoader, StrictUndefined
        except ImportError:
            raise Problem('the page needs a package that is not here: pip install jinja2') from None
        self.detectors = detectors
        how = {'autoescape': True, 'trim_blocks': True, 'lstrip_blocks': True, 'undefined': StrictUndefined}
        self.templates = Environment(loader=FileSystemLoader(WEB), **how)
        self.templates.globals |= {
            'network': name,
            'most': most,
            'LONGEST': LONGEST,
            'themes': THEMES,
            'trackers': TRACKERS,
            'key': key,
        }
        self.templates.filters |= {'when': when, 'clock': clock}

    def page(self, request, template, status=200, **values):
        from fastapi.responses import Response

        own = choice(request, self.detectors)

        def t(which, **inside):
            return TEXTS[which][LANGUAGES.index(own.lang)].format(**inside)

        said = request.query_params.get('said')
        notice = t(said) if said in TEXTS and said.startswith('said_') else None
        asked = {name: value for name, value in request.query_params.items() if name != 'said'}
        others = [(lang, urlencode({**asked, 'lang': lang})) for lang in LANGUAGES if lang != own.lang]
        values = {'t': t, 'choice': own, 'others': others, 'problem': None, 'notice': notice, **values}
        html = self.templates.get_template(template).render(values)
        # Names of files that are no text have no UTF-8.
        response = Response(html.encode('utf-8', 'replace'), status, HEADERS, 'text/html; charset=utf-8')
        if request.query_params.get('lang') in LANGUAGES:  # that is kept, and nothing else of an address
            response.set_cookie(**kept(choice(request, self.detectors, {'lang': own.lang})))
        return response

    def route(self, api, path, *methods, **more):
        """A decorator for f(request). What goes wrong in it is a page with a sentence."""

        def add(f):
            @wraps(f)
            async def safe(request):
                try:
                    return await f(request)
                except Exception as error:
                    status, sentence, say = reason(error)
                    return self.page(request, 'wrong.html', status, sentence=sentence, say=say)

            api.add_route(path, safe, methods=list(methods or ['GET']), include_in_schema=False)
            return f

        return add


def reason(error):
    """An error -> code, sentence, the text of ours that says it in any language; or it is raised: a bug."""
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    if isinstance(error, Full) or isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        error = busy()
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        error = Refused(507, 'the disk of the service is full')
    if isinstance(error, Refused):
        known = {404: 'gone', 413: 'too_large', 429: 'busy', 507: 'disk_full'}
        return error.status, error.sentence, getattr(error, 'say', None) or known.get(error.status)
    if isinstance(error, Problem):
        return 503, str(error), None
    if isinstance(error, HTTPException):
        return error.status_code, error.detail or HTTPStatus(error.status_code).phrase, None
    if isinstance(error, ClientDisconnect):
        return 400, 'the request ended too early', None
    raise error


def to(path, **asked):
    """See other: what was sent is done, and to load the page again does it no second time."""
    from fastapi.responses import RedirectResponse

    return RedirectResponse(f'{path}?{urlencode(asked)}' if asked else path, 303, HEADERS)


def file(path, kind, name=None):
    """A file of ours. name: to be kept under."""
    from fastapi.responses import FileResponse

    if not path.is_file():
        raise Refused(404, 'there is no such picture or file any more')
    return FileResponse(path, headers=HEADERS, media_type=kind, filename=name)


def table(name, columns, rows):
    """CSV. The mark at its beginning tells spreadsheets that it is UTF-8; a text that they would take for a formula
    gets an apostrophe before it."""
    from fastapi.responses import Response

    out = io.StringIO()
    writer = csv.writer(out, lineterminator='\r\n')
    writer.writerow(columns)
    writer.writerows([tame(cell) for cell in row] for row in rows)
    headers = {**HEADERS, 'Content-Disposition': f'attachment; filename="{name}"'}
    return Response(('\ufeff' + out.getvalue()).encode('utf-8', 'replace'), 200, headers, 'text/csv; charset=utf-8')


def tame(cell):
    return f"'{cell}" if isinstance(cell, str) and cell[:1] in ('=', '+', '-', '@', '\t', '\r') else cell


def when(seconds):
    """Seconds since 1970 -> 2026-11-21 14:30, in the server's time."""
    try:
        return '' if seconds is None else datetime.fromtimestamp(seconds).isoformat(' ', 'minutes')
    except (ValueError, OverflowError, OSError):
        return str(seconds)
