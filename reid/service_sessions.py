"""Who has logged in to the page (reid.page) with the token of the service.

A browser gets a number that was drawn at random, in a cookie that no script can read and that no other site makes it
send. The number says nothing of the token; here is its digest alone. All of them end with the service, and at the
latest after HOURS.
"""

import hashlib
import hmac
import re
import secrets
import time

COOKIE, HOURS, MOST = 'reid_session', 12, 1000  # sessions at a time: of more, the oldest end
OPEN = r'/page/(login|files/[\w.]+)'  # what is shown to whoever asks


def of_page(path):
    return path in ('/', '/page') or path.startswith('/page/')


class Sessions:
    def __init__(self, token):
        self.token, self.until = digest(token), {}  # {digest of the number: when it ends}

    def right(self, given):
        """Is it the token? It takes as long to say no as to say yes."""
        return hmac.compare_digest(digest(given), self.token)

    def begin(self):
        now, number = time.time(), secrets.token_urlsafe(32)
        there = [(one, until) for one, until in self.until.items() if until > now]
        self.until = dict(there[len(there) - MOST + 1 :] if len(there) >= MOST else there)
        self.until[digest(number)] = now + HOURS * 3600
        return number

    def known(self, number):
        return number is not None and self.until.get(digest(number), 0) > time.time()

    def end(self, number):
        self.until.pop(digest(number or ''), None)


def cookie(headers):
    """The number in the head of a request, {name: bytes}, or None."""
    found = re.search(rf'(?:^|;)\s*{COOKIE}=([\w-]+)', headers.get(b'cookie', b'').decode('latin-1'))
    return found and found[1]


def digest(text):
    return hashlib.sha256(text.encode('utf-8', 'surrogatepass')).digest()
