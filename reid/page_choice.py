"""What somebody has chosen on the page (reid.page): language, colours, how to search. It lies in a cookie;
whatever that says, each value that comes out of here is one that may be."""

import re
from collections import namedtuple
from urllib.parse import parse_qsl, urlencode

from reid.page_texts import LANGUAGES

COOKIE, YEAR = 'reid', 365 * 24 * 3600
# threshold: None is that of the network. detector: a name, or 'none', for whole pictures.
Choice = namedtuple('Choice', 'lang theme top threshold every renew tracker detector')
THEMES, TRACKERS = ('auto', 'light', 'dark'), ('looks', 'motion')


def choice(request, detectors, asked=None):
    """What is asked for, by default in the address, goes before what is kept."""
    kept, asked = dict(parse_qsl(request.cookies.get(COOKIE, ''))), request.query_params if asked is None else asked
    return chosen({**kept, **asked}, request.headers.get('accept-language', ''), detectors)


def chosen(given, accepted, detectors):
    lang = given.get('lang')
    threshold = number(given.get('threshold'), float, -1, 1)
    return Choice(
        lang if lang in LANGUAGES else spoken(accepted),
        given.get('theme') if given.get('theme') in THEMES else 'auto',
        number(given.get('top'), int, 1, 100) or 10,
        threshold,
        number(given.get('every'), int, 1, 30) or 3,
        number(given.get('renew'), float, 0.5, 600) or 5.0,
        given.get('tracker') if given.get('tracker') in TRACKERS else TRACKERS[0],
        given.get('detector') if given.get('detector') in detectors else next(iter(detectors)),
    )


def spoken(accepted):
    """'fr, zh-CN;q=0.9, en;q=0.8' -> 'zh'"""
    wanted = []
    for place, part in enumerate(accepted.split(',')[:20]):
        found = re.fullmatch(r'\s*([a-zA-Z]{1,8})[\w-]*\s*(?:;\s*q=([\d.]{1,5}))?\s*', part)
        if found and found[1].lower() in LANGUAGES:
            share = number(found[2] or '1', float, 0, 1)
            if share:  # 0 is: not this one
                wanted.append((-share, place, found[1].lower()))
    return min(wanted)[2] if wanted else 'en'


def number(text, kind, least, most):
    """None, if it is none or not between the two."""
    try:
        value = kind(text)
    except (TypeError, ValueError):
        return None
    return value if least <= value <= most else None


def kept(choice):
    given = {name: value for name, value in choice._asdict().items() if value is not None}
    return {'key': COOKIE, 'value': urlencode(given), 'max_age': YEAR, 'httponly': True, 'samesite': 'lax'}
