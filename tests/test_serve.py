"""A real server and a real client: python -m pytest tests/test_serve.py"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image

import model as networks
import serve
import utils
from reid import cli, data, embedding, index, service
from reid.embedding import Embedder
from reid.problem import Problem

for package in ('fastapi', 'uvicorn', 'python_multipart', 'httpx'):
    pytest.importorskip(package)

import httpx  # noqa: E402
import uvicorn  # noqa: E402

LONG = 30  # seconds, after which something hangs
DIM, SIZE = 16, (32, 16)
ABOUT = {'run': 'fake', 'which_epoch': 'last', 'weights': {'sha256': '0'}, 'flip': True, 'ms': '1', 'test_feature': ''}
BOUNDS = {'same': 0.8, 'not_same': 0.2, 'far': 0.01, 'found': 0.9}
PROJECTION = np.random.default_rng(0).standard_normal((32 * 16 * 3, DIM)).astype(np.float32)


def describe(x):
    f = (x.reshape(len(x), -1).astype(np.float32) - 128) @ PROJECTION + 1e-3
    return f / np.linalg.norm(f, axis=1, keepdims=True)


FAKE = Embedder(describe, SIZE, DIM, BOUNDS, ABOUT)


class Gate:
    """A network that stands still until it is opened."""

    def __init__(self):
        self.open, self.begun, self.batches = threading.Event(), threading.Event(), []

    def __call__(self, x):
        self.batches.append(len(x))
        self.begun.set()
        assert self.open.wait(LONG)
        return describe(x)


def drawn(seed, width=20, height=40):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def coded(picture, kind='PNG', **how):
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **how)
    return file.getvalue()


def png(seed):
    return coded(drawn(seed))


def form(body, **others):
    return {'files': {'picture': ('../../x.jpg', body), **others}}


def expected(body):
    return describe(data.sized(data.read(body), SIZE)[None])[0]


@contextlib.contextmanager
def serving(embedder=FAKE, kept=None, **how):
    """A server in a thread, and a client that keeps its connections."""
    api = service.app(embedder, kept, **how)
    server = uvicorn.Server(uvicorn.Config(api, log_level='critical', http='h11', loop='asyncio'))
    listening = serve.bound('127.0.0.1', 0)
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        until = time.monotonic() + LONG
        while not server.started:
            assert time.monotonic() < until
            time.sleep(0.005)
        with httpx.Client(base_url=f'http://127.0.0.1:{listening.getsockname()[1]}', timeout=LONG) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(LONG)
        assert not thread.is_alive()


@pytest.fixture
def kept(tmp_path):
    with index.create(tmp_path / 'people', DIM, ABOUT) as kept:
        yield kept


@pytest.fixture(scope='module')
def plain():
    """Without an index."""
    with serving() as client:
        yield client


@pytest.fixture
def client(kept):
    with serving(kept=kept) as client:
        yield client


def wrong(answer, status, sentence=''):
    assert answer.status_code == status, answer.text
    assert answer.headers['content-type'] == 'application/json'
    assert list(answer.json()) == ['detail']
    assert re.search(sentence, answer.json()['detail']), answer.json()


def sample(client, name):
    found = re.search(rf'^{re.escape(name)} (\S+)$', client.get('/metrics').text, re.M)
    return float(found[1]) if found else None


def wait_for(condition):
    until = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


# ---------------------------------------------------------------------------------------------------------------------
# 1. what it answers


@pytest.mark.parametrize('how', ['form', 'image/png', 'application/octet-stream'])
def test_a_descriptor_is_that_of_the_network(how, plain):
    body = png(1)
    raw = {'content': body, 'headers': {'content-type': how}}
    answer = plain.post('/embed', **(form(body) if how == 'form' else raw))
    assert answer.status_code == 200
    assert (answer.json()['dim'], answer.json()['run']) == (DIM, 'fake')
    assert np.array_equal(np.array(answer.json()['feature'], np.float32), expected(body))  # to the last bit


def test_the_verdict_is_that_of_the_bounds(plain):
    pictures = [png(1), coded((0.9 * drawn(1) + 0.1 * drawn(2)).astype(np.uint8)), png(3)]
    mixed = [coded((share * drawn(1) + (1 - share) * drawn(3)).astype(np.uint8)) for share in np.linspace(0, 1, 12)]
    seen = set()
    for other in pictures + mixed:
        said = plain.post('/same', **form(pictures[0], other=other)).json()
        score = float(expected(pictures[0]) @ expected(other))
        assert said['score'] == pytest.approx(score, abs=1e-6)
        assert said['distance'] == pytest.approx(max(0, 2 - 2 * score) ** 0.5, abs=1e-3)
        verdict = 'same' if score >= 0.8 else 'unsure' if score >= 0.2 else 'not the same'
        assert (said['verdict'], said['bounds'], said['note']) == (verdict, BOUNDS, None)
        seen.add(verdict)
    assert seen == {'same', 'unsure', 'not the same'}


def test_a_network_without_thresholds_gives_scores_and_says_so(kept):
    with serving(FAKE._replace(bounds=Problem('python threshold.py chooses some')), kept) as client:
        said = client.post('/same', **form(png(1), other=png(1))).json()
        assert said['score'] == pytest.approx(1)
        assert (said['verdict'], said['bounds'], said['note']) == (None, None, 'python threshold.py chooses some')
        client.post('/gallery', params={'name': 'Ann'}, **form(png(1)))
        said = client.post('/search', **form(png(2))).json()
        assert (said['who'], said['threshold']) == ('Ann', None)  # whoever is nearest


def test_an_entry_is_added_found_listed_and_removed(client, kept):
    added = client.post('/gallery', params={'name': 'Ann', 'camera': 2, 'time': 1e9, 'path': 'a.png'}, **form(png(1)))
    assert added.status_code == 201
    ann = {'id': 1, 'name': 'Ann', 'camera': 2, 'time': 1e9, 'path': 'a.png', 'box': None}
    assert added.json() == ann == kept.find()[0]._asdict()
    before = time.time()
    bo = client.post('/gallery', params={'name': 'Bo'}, **form(png(2))).json()
    assert before <= bo['time'] <= time.time()
    assert (bo['id'], bo['camera'], bo['path']) == (2, -1, None)
    said = client.post('/search', **form(png(1))).json()
    assert (said['who'], said['threshold']) == ('Ann', 0.8)
    first, second = said['hits']
    assert first == ann | {'score': pytest.approx(1, abs=1e-6)}
    assert second == bo | {'score': pytest.approx(float(expected(png(1)) @ expected(png(2))), abs=1e-6)}
    assert client.get('/gallery').json() == {'entries': [ann, bo], 'next': None}
    assert client.delete('/gallery/1').json() == {'removed': 1}
    wrong(client.delete('/gallery/1'), 404, 'no entry 1')
    assert client.get('/gallery').json()['entries'] == [bo]
    assert client.delete('/gallery', params={'name': 'Bo'}).json() == {'removed': 1}
    assert client.delete('/gallery', params={'name': 'Bo'}).json() == {'removed': 0}
    assert client.post('/search', **form(png(1))).json() == {'who': None, 'threshold': 0.8, 'hits': []}


def test_an_entry_with_the_same_path_gives_way(client):
    for seed, name in enumerate(['Ann', 'Bo']):
        client.post('/gallery', params={'name': name, 'path': '/x.jpg'}, **form(png(seed)))
    assert [entry['name'] for entry in client.get('/gallery').json()['entries']] == ['Bo']


def test_what_is_asked_for_is_all_that_is_looked_at(client, kept):
    known = [('Ann', 1, 100.0), ('Bo', 1, 200.0), ('Ann', 2, 300.0), ('Cy', -1, None)]
    entries = [{'name': name, 'camera': camera, 'time': when} for name, camera, when in known]
    ids = kept.add(entries, np.stack([expected(png(seed)) for seed in range(4)]))
    for asked, right in [
        ({'camera': 1}, [0, 1]),
        ({'camera': -1}, [3]),
        ({'name': 'Ann'}, [0, 2]),
        ({'since': 200}, [1, 2]),
        ({'until': '1970-01-01T00:03:20Z'}, [0]),
        ({'since': '1970-01-01T01:03:20+01:00', 'until': 300}, [1]),
        ({'name': 'Ann', 'camera': 2}, [2]),
        ({'name': 'nobody'}, []),
    ]:
        right = {ids[place] for place in right}
        hits = client.post('/search', params=asked, **form(png(0))).json()['hits']
        assert {hit['id'] for hit in hits} == right, asked
        assert {entry['id'] for entry in client.get('/gallery', params=asked).json()['entries']} == right, asked
    found = client.post('/search', params={'top': 2}, **form(png(1))).json()
    assert len(found['hits']) == 2
    assert found['who'] == 'Bo'
    strict = client.post('/search', params={'threshold': 1}, **form(png(9))).json()
    assert (strict['who'], strict['threshold']) == (None, 1)
    assert client.post('/search', params={'threshold': -1}, **form(png(9))).json()['who'] is not None


def test_pages_hold_each_entry_once(client, kept):
    kept.add([{'name': f'{i % 3}'} for i in range(25)], np.stack([expected(png(0))] * 25))
    for asked in ({}, {'name': '1'}):
        seen, after, right = [], 0, [entry.id for entry in kept.find(**asked)]
        while after is not None:
            page = client.get('/gallery', params={'limit': 4, 'after': after, **asked}).json()
            assert len(page['entries']) <= 4
            seen += [entry['id'] for entry in page['entries']]
            after = page['next']
            kept.remove(seen[:2])  # what others remove moves nothing
        assert seen == right


def test_without_an_index_the_gallery_is_not_there(plain):
    for answer in (
        plain.get('/gallery'),
        plain.post('/gallery', params={'name': 'Ann'}, **form(png(1))),
        plain.post('/search', **form(png(1))),
        plain.delete('/gallery/1'),
    ):
        wrong(answer, 404, r'python search.py index create people')
    assert plain.get('/health').json() == {'status': 'ok'}


# ---------------------------------------------------------------------------------------------------------------------
# 2. whatever comes

FRAMES = [Image.fromarray(drawn(seed)) for seed in (5, 6)]
RIGHT = {
    'jpeg': coded(drawn(5), 'JPEG'),
    'one pixel': coded(drawn(5, 1, 1)),
    '30,000 wide': coded(drawn(5, 30_000, 1)),
    'CMYK': coded(Image.fromarray(drawn(5)).convert('CMYK'), 'JPEG'),
    'grey with 16 bits': coded(Image.fromarray(drawn(5)[..., 0].astype(np.uint16) * 256)),
    'palette': coded(Image.fromarray(drawn(5)).convert('P'), 'GIF'),
    'tiff': coded(drawn(5), 'TIFF'),
    'bmp': coded(drawn(5), 'BMP'),
    'animated gif': coded(FRAMES[0], 'GIF', save_all=True, append_images=FRAMES[1:]),
    'animated webp': coded(FRAMES[0], 'WEBP', save_all=True, append_images=FRAMES[1:], lossless=True),
}
WRONG = {
    'nothing': b'',
    'one byte': b'\xff',
    'truncated jpeg': RIGHT['jpeg'][:400],
    'truncated png': png(5)[:-300],
    'html': b'<!DOCTYPE html><script>alert(1)</script>',
    'svg': b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    'a program in PostScript': coded(drawn(5), 'EPS'),
    'zip': b'PK\x03\x04' + bytes(100),
}


@pytest.mark.parametrize('kind', RIGHT)
def test_pictures_of_any_kind_are_read(kind, plain):
    said = plain.post('/embed', files={'picture': ('x.html', RIGHT[kind], 'text/html')})  # which nobody believes
    assert said.status_code == 200, said.text
    np.testing.assert_allclose(said.json()['feature'], expected(RIGHT[kind]), atol=1e-6)
    if 'webp' in kind:
        np.testing.assert_allclose(said.json()['feature'], expected(png(5)), atol=1e-6)  # the first picture


@pytest.mark.parametrize('kind', WRONG)
def test_what_is_no_picture_is_a_sentence(kind, plain):
    for how in (form(WRONG[kind]), {'content': WRONG[kind], 'headers': {'content-type': 'image/jpeg'}}):
        answer = plain.post('/embed', **how)
        wrong(answer, 400, '^picture is ')
        assert 'BytesIO' not in answer.text


@pytest.mark.filterwarnings('ignore::UserWarning')
def test_damaged_pictures_are_never_an_error_of_ours(plain):
    random = np.random.default_rng(0)
    seen = set()
    for kind, body in RIGHT.items():
        for _ in range(12):
            damaged = np.frombuffer(body, np.uint8).copy()
            where = random.integers(0, min(len(damaged), 700), random.integers(1, 20))
            damaged[where] = random.integers(0, 256, len(where))
            answer = plain.post('/embed', **form(damaged.tobytes()))
            assert answer.status_code in (200, 400, 413), (kind, answer.text)
            assert list(answer.json()) in (['detail'], ['feature', 'dim', 'run'])
            seen.add(answer.status_code)
    assert {200, 400} <= seen


@pytest.mark.parametrize(
    ('content', 'kind', 'status'),
    [
        (b'x', None, 415),
        (b'{}', 'application/json', 415),
        (b'picture=x', 'application/x-www-form-urlencoded', 415),
        (b'x', 'multipart/form-data', 400),
        (b'x', 'multipart/form-data; boundary=', 400),
        (b'x', 'multipart/form-data; boundary=x', 400),
        (b'', 'multipart/form-data; boundary=x', 422),
        (b'--x\r\n\r\nx\r\n--x--\r\n', 'multipart/form-data; boundary=x', 400),
        (b'--x--\r\n', 'multipart/form-data; boundary=x', 422),
    ],
)
def test_bodies_of_another_kind_are_sentences(content, kind, status, plain):
    wrong(plain.post('/embed', content=content, headers={'content-type': kind} if kind else {}), status)


def test_forms_with_other_fields_are_sentences(plain):
    body = png(1)
    wrong(plain.post('/embed', files={'image': body}), 422, '^picture: .* found image$')
    wrong(plain.post('/embed', files={'picture': body, 'other': body}), 400, 'Too many files')
    wrong(plain.post('/embed', files=[('picture', body), ('picture', body)]), 400, 'Too many files')
    wrong(plain.post('/embed', files={'picture': body}, data={'top': '3'}), 400, 'nothing else')
    wrong(plain.post('/embed', files={'picture': (None, 'text')}), 400, 'nothing else')
    wrong(plain.post('/same', files={'picture': body}), 422, '^picture and other: .* found picture$')
    wrong(plain.post('/same', content=body, headers={'content-type': 'image/png'}), 415)


def test_what_is_wrong_in_an_address_is_named(client):
    for asked, sentence in [
        ({'top': 0}, '^top: '),
        ({'top': 1001}, '^top: '),
        ({'top': 'many'}, '^top: '),
        ({'threshold': 'nan'}, '^threshold: '),
        ({'threshold': 1.1}, '^threshold: '),
        ({'camera': 2**31}, '^camera: '),
        ({'camera': 9**400}, '^camera: '),
        ({'since': 'yesterday'}, '^since: '),
        ({'name': ''}, '^name: '),
        ({'tops': 3}, '^tops: only top, threshold, name'),
    ]:
        wrong(client.post('/search', params=asked, **form(png(1))), 422, sentence)
    wrong(client.post('/gallery', **form(png(1))), 422, '^name: ')
    wrong(client.post('/gallery', params={'name': 'x' * 201}, **form(png(1))), 422, '^name: ')
    wrong(client.post('/gallery', params={'name': 'x', 'path': 'x' * 1001}, **form(png(1))), 422, '^path: ')
    wrong(client.delete('/gallery'), 422, '^name: ')
    for odd in ('0', '-1', 'x', str(2**63), '1.5', '1%00'):
        wrong(client.delete(f'/gallery/{odd}'), 422, '^id: ')
    wrong(client.get('/gallery', params={'after': 2**63}), 422)
    wrong(client.get('/nothing'), 404, 'no such address')
    wrong(client.get('/gallery/1/../../etc/passwd'), 404)
    wrong(client.put('/gallery'), 405)
    assert client.get('/gallery').json() == {'entries': [], 'next': None}


NAMES = [
    'Zoë',
    '王小明',
    'محمد',
    '👩‍👧',
    'e\u0301',
    "Robert'); drop table entries; --",
    '<script>alert(1)</script>',
    '../../etc/passwd',
    'C:\\Windows\\win.ini',
    'a\0b',
    '\n\r\t',
    ' ',
    '{{7*7}} ${7*7} %s %00',
    '"\\',
    '\u202egnp.exe',
    'x' * 200,
    '🚶' * 200,
]


def test_names_are_texts_and_nothing_else(client, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path for path in tmp_path.rglob('*') if not path.is_relative_to(tmp_path / 'people')}
    for seed, name in enumerate(NAMES):
        added = client.post('/gallery', params={'name': name, 'path': name}, **form(png(seed)))
        assert added.status_code == 201, added.text
        assert (added.json()['name'], added.json()['path']) == (name, name)
    listed = client.get('/gallery').json()['entries']
    assert [(entry['name'], entry['path']) for entry in listed] == [(name, name) for name in NAMES]
    for seed, name in enumerate(NAMES):
        assert client.post('/search', **form(png(seed))).json()['who'] == name
        assert [e['name'] for e in client.get('/gallery', params={'name': name}).json()['entries']] == [name]
        assert client.delete('/gallery', params={'name': name}).json() == {'removed': 1}
    assert client.get('/gallery').json()['entries'] == []
    assert {path for path in tmp_path.rglob('*') if not path.is_relative_to(tmp_path / 'people')} == before


def test_names_of_files_that_are_no_text_are_shown(client, kept):
    kept.add([{'name': 'Ann', 'path': '\udcff.jpg'}], expected(png(1))[None])  # as search.py adds them
    assert client.get('/gallery').json()['entries'][0]['path'] == '\udcff.jpg'


# ---------------------------------------------------------------------------------------------------------------------
# 3. who may come in, and with how much

SMALL = service.LIMITS._replace(bytes=20_000, queue=2, patience=0.3)


def talk(client, *pieces, quiet=0.0):
    """Bytes over a line of our own -> (code, what came). After them we are quiet, and listen."""
    with socket.create_connection((client.base_url.host, client.base_url.port), LONG) as line:
        for piece in pieces:
            line.sendall(piece)
        time.sleep(quiet)
        said = b''
        while b'\r\n\r\n' not in said or (b'"}' not in said):
            got = line.recv(65536)
            if not got:
                break
            said += got
    return int(said.split()[1]), said


def head(*lines, path='/embed'):
    return '\r\n'.join([f'POST {path} HTTP/1.1', 'Host: 127.0.0.1', 'Content-Type: image/png', *lines, '', '']).encode()


def test_large_bodies_are_refused_before_they_are_there():
    with serving(limits=SMALL) as client:
        wrong(client.post('/embed', **form(bytes(20_001))), 413, 'at most 0.02 MB')
        wrong(client.post('/embed', **form(bytes(4_000_000))), 413)  # all of which is sent before the answer is read
        code, said = talk(client, head('Content-Length: 10000000000'))  # not a byte of it has to come
        assert (code, b'connection: close' in said) == (413, True)
        # Without a length they are counted. The end never comes.
        chunk = b'1000\r\n' + bytes(4096) + b'\r\n'
        assert talk(client, head('Transfer-Encoding: chunked'), *[chunk] * 4)[0] == 408
        assert talk(client, head('Transfer-Encoding: chunked'), *[chunk] * 5)[0] == 413
        wrong(client.post('/same', **form(bytes(15_000), other=bytes(15_000))), 413)  # both of them together
        assert client.post('/embed', **form(png(1))).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for():
    with serving(limits=SMALL) as client:
        assert talk(client, head('Content-Length: 100'), b'half')[0] == 408
        with socket.create_connection((client.base_url.host, client.base_url.port), LONG) as line:
            line.sendall(head('Content-Length: 100') + b'half')  # and away
        wait_for(lambda: sample(client, 'reid_requests_inside') == 0)


def claims(width, height):
    """A PNG of less than a hundred bytes."""

    def chunk(kind, content):
        return struct.pack('>I', len(content)) + kind + content + struct.pack('>I', zlib.crc32(kind + content))

    parts = chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)), chunk(b'IDAT', zlib.compress(b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(parts) + chunk(b'IEND', b'')


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
@pytest.mark.parametrize('size', [(60_000, 60_000), (10_000, 10_000), (25_001, 1000), (2**31 - 1, 2**31 - 1)])
def test_bombs_are_not_decoded(size, plain):
    wrong(plain.post('/embed', **form(claims(*size))), 413, 'pixels')


def test_a_bomb_that_is_whole_is_not_decoded_either(plain):
    wrong(plain.post('/embed', **form(coded(Image.new('1', (9000, 9000))))), 413, '81000000|9000 x 9000')


def test_all_inside_together_hold_so_much_and_no_more():
    limits = service.LIMITS._replace(bytes=20_000)
    with serving(limits=limits) as client, contextlib.ExitStack() as lines:
        for _ in range(40):
            line = lines.enter_context(socket.create_connection((client.base_url.host, client.base_url.port), LONG))
            line.sendall(head('Content-Length: 19999') + bytes(19_000))
        wait_for(lambda: sample(client, 'reid_requests_total{method="POST",path="/embed",status="429"}') == 7)
        assert sample(client, 'reid_requests_inside') >= 33


def test_too_many_are_told_to_come_again():
    gate = Gate()
    with serving(FAKE._replace(describe=gate), limits=SMALL) as client, ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(client.post, '/embed', **form(png(seed))) for seed in range(2)]
        try:
            wait_for(lambda: sample(client, 'reid_requests_inside') == 2)
            answer = client.post('/embed', **form(png(3)))
            wrong(answer, 429, 'again')
            assert int(answer.headers['retry-after']) >= 1
            assert client.get('/health').status_code == 200
        finally:
            gate.open.set()
        assert [future.result().status_code for future in inside] == [200, 200]
        assert client.post('/embed', **form(png(3))).status_code == 200


def test_the_queue_of_pictures_has_an_end_as_well():
    gate = Gate()
    limits = service.LIMITS._replace(queue=3, batchsize=1)
    with serving(FAKE._replace(describe=gate), limits=limits) as client, ThreadPoolExecutor(3) as pool:
        inside = [pool.submit(client.post, '/embed', **form(png(0)))]
        assert gate.begun.wait(LONG)
        inside.append(pool.submit(client.post, '/same', **form(png(1), other=png(2))))
        wait_for(lambda: sample(client, 'reid_queue_length') == 2)
        wrong(client.post('/same', **form(png(1), other=png(2))), 429)
        gate.open.set()
        assert [future.result().status_code for future in inside] == [200, 200]


def test_who_does_not_know_the_token_stays_outside(kept):
    with serving(kept=kept, token='s3cret') as client:
        for headers in (
            {},
            {'Authorization': 'Bearer'},
            {'Authorization': 'Bearer s3cre'},
            {'Authorization': 'Bearer s3crett'},
            {'Authorization': 's3cret'},
            {'Authorization': 'Basic s3cret'},
            {'Authorization': 'Bearer süß'.encode()},
        ):
            for method, path in [
                ('POST', '/embed'),
                ('POST', '/gallery?name=x'),
                ('GET', '/gallery'),
                ('DELETE', '/gallery/1'),
                ('GET', '/metrics'),
                ('GET', '/docs/x'),
                ('GET', '/nothing'),
            ]:
                answer = client.request(method, path, headers=headers)
                wrong(answer, 401, 'Authorization: Bearer')
                assert answer.headers['www-authenticate'] == 'Bearer'
            for path in ('/health', '/docs', '/openapi.json'):  # where it is said how the token is to be sent
                assert client.get(path, headers=headers).status_code == 200
        client.headers['Authorization'] = 'Bearer s3cret'
        assert client.post('/gallery?name=x', **form(png(1))).status_code == 201
        assert client.get('/gallery', headers={'Origin': 'https://elsewhere.org'}).status_code == 200
        text = client.get('/openapi.json').json()
        assert text['components']['securitySchemes']['HTTPBearer']['scheme'] == 'bearer'
        assert 'security' not in text['paths']['/health']['get']


def test_pages_of_other_sites_are_refused(kept):
    with serving(kept=kept, local=True) as client:
        own = f'127.0.0.1:{client.base_url.port}'
        evil = {'Origin': 'https://elsewhere.org'}
        wrong(client.post('/gallery?name=x', headers=evil, **form(png(1))), 403, 'elsewhere.org')
        wrong(client.post('/gallery?name=x', headers={'Origin': 'null'}, **form(png(1))), 403)
        wrong(client.get('/gallery', headers={'Host': 'elsewhere.org'}), 403, 'elsewhere.org')  # its name, our address
        wrong(client.get('/gallery', headers={'Host': '127.0.0.1.elsewhere.org', 'Origin': 'http://x'}), 403)
        for host in (own, 'localhost', 'localhost:99', '[::1]:8000', '127.1.2.3'):
            assert client.get('/gallery', headers={'Host': host}).status_code == 200
        assert client.get('/gallery', headers={'Origin': f'http://{own}'}).status_code == 200
    with serving(kept=kept) as client:  # for others as well: by any name
        assert client.get('/gallery', headers={'Host': 'our.server'}).status_code == 200
        wrong(client.get('/gallery', headers={'Host': 'our.server', **evil}), 403)


# ---------------------------------------------------------------------------------------------------------------------
# 4. several at a time


def test_they_share_a_batch_and_each_gets_its_own():
    gate = Gate()
    with serving(FAKE._replace(describe=gate)) as client, ThreadPoolExecutor(24) as pool:
        first = pool.submit(client.post, '/embed', **form(png(0)))
        assert gate.begun.wait(LONG)
        others = [pool.submit(client.post, '/embed', **form(png(seed))) for seed in range(1, 24)]
        wait_for(lambda: sample(client, 'reid_queue_length') == 23)
        gate.open.set()
        for seed, future in enumerate([first, *others]):
            np.testing.assert_allclose(future.result().json()['feature'], expected(png(seed)), atol=1e-5)
        assert gate.batches == [1, 23]
        assert sample(client, 'reid_batch_size_sum{work="describe"}') == 24
        assert sample(client, 'reid_batch_size_count{work="describe"}') == 2


def test_what_was_acknowledged_holds_for_all_who_ask_later(client, kept):
    """Several add, search and remove. Each looks after its own pictures, among those of the others."""
    faults = []

    def one(number):
        for step in range(6):
            body, name = png(100 * number + step), f'{number}-{step}'
            entry = client.post('/gallery', params={'name': name, 'camera': number}, **form(body)).json()
            for asked in ({}, {'camera': number}, {'name': name}):
                said = client.post('/search', params={'top': 1, **asked}, **form(body)).json()
                if (said['who'], said['hits'][0]['id']) != (name, entry['id']):
                    faults.append((name, asked, said))
            if step % 2:
                if client.delete(f'/gallery/{entry["id"]}').json() != {'removed': 1}:
                    faults.append(f'{name} was not there')
                hits = client.post('/search', params={'top': 1000}, **form(body)).json()['hits']
                if entry['id'] in [hit['id'] for hit in hits]:
                    faults.append(f'{name} is there still')

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(8)))
    assert not faults
    left = sorted((entry.name, entry.camera) for entry in kept.find())
    assert left == [(f'{number}-{step}', number) for number in range(8) for step in (0, 2, 4)]
    np.testing.assert_allclose(kept.vectors([kept.find(name='3-2')[0].id])[0], expected(png(302)), atol=1e-5)


def test_searches_that_are_done_together_are_the_same_as_alone(kept):
    from reid.service_work import nearest

    f = np.stack([expected(png(seed)) for seed in range(30)])
    kept.add([{'name': str(i), 'camera': i % 3} for i in range(30)], f)
    asked = [(f[i], 1 + i % 7, {} if i % 4 else {'camera': i % 3}) for i in range(30)]
    assert nearest(kept, asked) == [kept.query(x[None], top, **filters)[0] for x, top, filters in asked]


# ---------------------------------------------------------------------------------------------------------------------
# 5. what goes wrong on our side


def test_an_index_that_cannot_be_written_is_a_sentence(kept, monkeypatch):
    def full(entries, vectors):
        raise Problem('the disk is full')

    monkeypatch.setattr(kept, 'add', full)
    with serving(kept=kept) as client:
        wrong(client.post('/gallery?name=x', **form(png(1))), 503, 'disk is full')


def test_a_vector_that_no_index_takes_spoils_no_other(kept):
    def describe_some(x):
        f = describe(x)
        f[x.reshape(len(x), -1).max(1) == 0] = np.nan
        return f

    gate = Gate()
    with serving(FAKE._replace(describe=lambda x: gate(x) * 0 + describe_some(x)), kept) as client:
        with ThreadPoolExecutor(3) as pool:
            bodies = [png(1), coded(np.zeros((40, 20, 3), np.uint8)), png(2)]
            asked = [pool.submit(client.post, '/gallery', params={'name': 'x'}, **form(body)) for body in bodies]
            wait_for(lambda: sample(client, 'reid_requests_inside') == 3)
            gate.open.set()
            answers = [future.result() for future in asked]
        assert [answer.status_code for answer in answers] == [201, 503, 201]
        wrong(answers[1], 503, 'vectors of unit length')
        wrong(client.post('/embed', **form(bodies[1])), 503, 'vectors of unit length')


def test_a_bug_is_told_without_its_insides_and_counted():
    def broken(x):
        raise RuntimeError('secret')

    with serving(FAKE._replace(describe=broken)) as client:
        answer = client.post('/embed', **form(png(1)))
        wrong(answer, 500)
        assert 'secret' not in answer.text
        assert sample(client, 'reid_requests_total{method="POST",path="/embed",status="500"}') == 1
        assert sample(client, 'reid_requests_inside') == 0
        assert client.get('/health').status_code == 200


# ---------------------------------------------------------------------------------------------------------------------
# 6. its texts

NUMBER = r'[+-]?(\d+(\.\d+)?(e[+-]?\d+)?|Inf|NaN)'
LABELS = r'\{[a-zA-Z_]\w*="([^"\\\n]|\\["\\n])*"(,[a-zA-Z_]\w*="([^"\\\n]|\\["\\n])*")*\}'
NAME = r'[a-zA-Z_:][\w:]*'
GRAMMAR = re.compile(rf'# HELP {NAME} .+|# TYPE {NAME} (counter|gauge|histogram)|{NAME}({LABELS})? {NUMBER}')


def test_metrics_are_what_prometheus_reads(client):
    for _ in range(3):
        client.post('/gallery', params={'name': 'x'}, **form(png(1)))
    client.request('BREW', '/tea"pot\\')
    client.post('/embed', content=b'')
    answer = client.get('/metrics')
    assert answer.headers['content-type'].startswith('text/plain; version=0.0.4')
    assert answer.text.endswith('\n')
    lines = answer.text.splitlines()
    assert [line for line in lines if not GRAMMAR.fullmatch(line)] == []
    kinds = dict(line.split()[2:4] for line in lines if line.startswith('# TYPE'))
    samples = [line.rpartition(' ')[0] for line in lines if line[0] != '#']
    assert len(set(samples)) == len(samples)
    for name in samples:
        assert re.sub(r'_(bucket|sum|count)$', '', name.partition('{')[0]) in kinds or name.partition('{')[0] in kinds
    assert 'reid_requests_total{method="POST",path="/gallery",status="201"} 3' in lines
    assert 'reid_requests_total{method="other",path="other",status="404"} 1' in lines
    assert 'reid_requests_total{method="POST",path="/embed",status="415"} 1' in lines
    assert 'reid_entries 3' in lines
    counts = [int(n) for n in re.findall(r'seconds_bucket\{method="POST",path="/gallery".*\} (\d+)', answer.text)]
    assert counts == sorted(counts)
    assert counts[-1] == 3
    if sys.platform == 'linux':
        assert sample(client, 'process_resident_memory_bytes') > 1e7


@pytest.mark.filterwarnings('ignore')
def test_the_service_keeps_to_its_text(client):
    """schemathesis asks for what /openapi.json allows, and for what it does not: every answer has a code, a kind and a
    form that is written there, and none is an error of ours."""
    schemathesis = pytest.importorskip('schemathesis')
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis import strategies as st
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode, checks

    bodies = st.sampled_from([png(1), png(2), RIGHT['jpeg'], b'', b'GIF89a'])
    for kind in ('image/*', 'application/octet-stream'):
        schemathesis.openapi.media_type(kind, bodies)
    left_out = [checks.negative_data_rejection, checks.positive_data_acceptance]  # pictures are more than a string
    asked = set()
    for found in schemathesis.openapi.from_url(f'{client.base_url}/openapi.json').get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @seed(1)
            @settings(
                max_examples=10,
                deadline=None,
                database=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case):
                answer = case.call_and_validate(excluded_checks=left_out)
                asked.add((case.operation.label, answer.status_code))

            with contextlib.suppress(Unsatisfiable):  # nothing can be wrong where nothing is asked for
                ask()
    assert len({label for label, _ in asked}) == 9
    assert {200, 201, 400, 404, 422} <= {status for _, status in asked}


# ---------------------------------------------------------------------------------------------------------------------
# 7. the script, as a process


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """A run that has learnt nothing, but has seen pictures: its features differ. And an index for it."""
    cwd = tmp_path_factory.mktemp('place')
    opts = {'backbone': 'resnet18', 'head': 'classblock', 'pool': 'avg', 'height': 64, 'width': 32, 'stride': 2}
    opts |= {'droprate': 0.5, 'linear_num': 32, 'loss_feature': 'after', 'test_feature': 'after'}
    torch.manual_seed(0)
    net = networks.build(argparse.Namespace(**opts, nclasses=4)).train()
    for _ in range(20):
        net.embed(torch.randn(8, 3, 64, 32) * torch.rand(8, 3, 1, 1) + torch.randn(8, 3, 1, 1))
    (cwd / 'model/a').mkdir(parents=True)
    torch.save(net.state_dict(), cwd / 'model/a/net_last.pth')
    (cwd / 'model/a/opts.yaml').write_text(yaml.safe_dump(opts | {'run': {'nclasses': 4}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        index.create(cwd / 'people', 32, network().about).close()
    return cwd


def network():
    """That of the current folder, without a service."""
    return utils.embedder(cli.parse(serve.options(), ['--name', 'a', '--gpu_ids', '-1']))


Started = namedtuple('Started', 'process client said')


@contextlib.contextmanager
def started(*command, cwd, **environment):
    """A service in a process of its own; what it said until it was there."""
    command = [sys.executable, *map(str, command), '--port', '0']
    environment = {**os.environ, 'PYTHONUNBUFFERED': '1', **environment}
    how = {'stdout': subprocess.PIPE, 'stderr': subprocess.PIPE, 'text': True, 'env': environment}
    process = subprocess.Popen(command, cwd=cwd, **how)
    try:
        said = []
        while not (said and said[-1].startswith('http://')):
            said.append(process.stdout.readline())
            assert said[-1], process.stderr.read()
        with httpx.Client(base_url=said[-1].split()[0], timeout=LONG) as client:
            yield Started(process, client, ''.join(said))
    finally:
        process.kill()
        process.communicate()


def test_serve_py_serves_a_run_and_its_index(place, tmp_path, monkeypatch):
    bodies = [coded((drawn(seed) * share).astype(np.uint8)) for seed, share in enumerate([1, 0.7, 0.4, 0.1])]
    with started(ROOT / 'serve.py', '--index', 'people', '--gpu_ids', -1, cwd=place) as (process, client, said):
        assert 'network: a, 32 numbers a picture' in said
        assert 'index: people, 0 entries' in said
        assert 'token: none' in said
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda body: client.post('/embed', **form(body)).json()['feature'], bodies * 4))
        client.post('/gallery', params={'name': 'Ann'}, **form(bodies[0]))
        assert client.post('/search', params={'threshold': 0.99}, **form(bodies[0])).json()['who'] == 'Ann'
        assert 'threshold.py --name a' in client.post('/same', **form(bodies[0], other=bodies[1])).json()['note']
        if os.name != 'nt':  # which sends no signals
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=LONG)
            assert (process.returncode, err) == (0, '')
    for i, body in enumerate(bodies):
        (tmp_path / f'{i}.png').write_bytes(body)
    monkeypatch.chdir(place)
    alone = [f for _, f in embedding.described(network(), [tmp_path / f'{i}.png' for i in range(4)], batchsize=1)]
    assert np.linalg.norm(alone[0] - alone[3]) > 0.01
    np.testing.assert_allclose(answers, alone * 4, atol=1e-5)  # whoever else was in the batch
    with index.open(place / 'people') as kept:
        assert [entry.name for entry in kept.find()] == ['Ann']
        np.testing.assert_allclose(kept.vectors([1])[0], alone[0], atol=1e-5)


def test_what_was_chosen_on_the_page_holds_from_the_next_start(place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    (place / 'model/a/a.onnx').write_bytes(b'no network')
    (place / 'people/page').mkdir(exist_ok=True)

    def begun(*words):
        opts = cli.parse(serve.options(), ['--index', 'people', *words])
        with index.open('people') as kept:
            start = serve.starting(opts, kept)
            return start, *serve.network(opts, kept, start)

    try:
        start, embedder, opts = begun()
        cpu = next(name for name in start.choices['device'] if name.startswith('CPU'))
        assert start.now['engine'] == 'PyTorch' and 'onnx: a.onnx' in start.choices['engine']
        start.keep({'device': cpu, 'engine': 'rm -rf /', 'other': 'x'})
        start, embedder, opts = begun()
        assert (opts.gpu_ids, start.now, start.next()) == ('-1', {'device': cpu, 'engine': 'PyTorch'}, start.now)
        start.keep({'engine': 'onnx: a.onnx'})
        asked = []
        monkeypatch.setattr(utils, 'embedder', lambda opts, *_: asked.append((opts.model, opts.runtime)) or embedder)
        start, _, _ = begun()
        assert (
            asked == [(place.relative_to(place) / 'model/a/a.onnx', 'onnx')] and start.now['engine'] == 'onnx: a.onnx'
        )
        monkeypatch.undo()
        monkeypatch.chdir(place)
        start, again, opts = begun()  # it cannot be used: the service starts all the same
        assert 'cannot be: ' in capsys.readouterr().err and again.about == embedder.about and opts.model is None
        assert begun('--gpu_ids', '0')[0].chosen() == {'engine': 'onnx: a.onnx'}  # what is typed goes before
        for odd in ('', '[]', '{"device": 5}', '{"device": []}', '"x"', '\xff'):
            (place / 'people/page/start.json').write_text(odd)
            assert begun()[0].chosen() == {}
    finally:
        (place / 'model/a/a.onnx').unlink()
        (place / 'people/page/start.json').unlink(missing_ok=True)


SLOW = """
import sys, time
sys.path[:0] = [{root!r}, {tests!r}]
import serve
from reid import cli
from test_serve import FAKE, describe

def network(opts, kept, start):
    return FAKE._replace(describe=lambda x: time.sleep(0.7) or describe(x)), opts

serve.network = network
cli.start(serve.main, serve.options, ['--index', 'people', '--batchsize', '3', '--wait_ms', '0', *sys.argv[1:]])
"""


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no SIGTERM')
def test_sigterm_loses_nothing_that_was_let_in(tmp_path):
    index.create(tmp_path / 'people', DIM, ABOUT).close()
    program = SLOW.format(root=str(ROOT), tests=str(ROOT / 'tests'))
    with started('-c', program, cwd=tmp_path) as (process, client, _), ThreadPoolExecutor(8) as pool:
        inside = [pool.submit(client.post, '/gallery', params={'name': f'{i}'}, **form(png(i))) for i in range(8)]
        wait_for(lambda: sample(client, 'reid_requests_inside') == 8)
        process.send_signal(signal.SIGTERM)
        answers = [future.result() for future in inside]
        assert process.wait(LONG) == 0
        assert process.stderr.read() == ''
    assert [answer.status_code for answer in answers] == [201] * 8
    with index.open(tmp_path / 'people') as kept:
        found = {entry.id: entry.name for entry in kept.find()}
        assert found == {answer.json()['id']: f'{i}' for i, answer in enumerate(answers)}
        ids = [answer.json()['id'] for answer in answers]
        np.testing.assert_allclose(kept.vectors(ids), [expected(png(i)) for i in range(8)], atol=1e-5)


def stopped(monkeypatch, cwd, *words):
    """-> the exit code of a service that does not start."""
    monkeypatch.chdir(cwd)
    with pytest.raises(SystemExit) as end:
        cli.start(serve.main, serve.options, [*map(str, words)])
    return end.value.code


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        (['--index', 'gone', '--name', 'a'], 'python search.py index create gone --name a makes one'),
        (['--index', 'gone', '--model', 'a.onnx'], 'search.py index create gone --model a.onnx makes one'),
        (['--name', 'nobody'], 'Runs that are there: a'),
        (['--index', 'other', '--name', 'a'], 'Use that network'),
        (['--host', '203.0.113.1', '--name', 'a'], '--host 203.0.113.1 --port 8000: '),
        (['--host', 'no such name', '--name', 'a'], '--host no such name --port 8000: '),
        (['--port', '70000'], 'argument --port'),
        (['--max_mb', '0'], 'argument --max_mb'),
    ],
)
def test_mistakes_are_sentences(words, sentence, place, monkeypatch, capsys):
    if 'other' in words:
        index.create(place / 'other', 32, ABOUT | {'run': 'a'}).close()
    assert stopped(monkeypatch, place, *words, '--gpu_ids', -1) == 2
    assert sentence in capsys.readouterr().err


def test_a_port_that_is_taken_is_said_before_anything_is_loaded(place, monkeypatch, capsys):
    with serve.bound('127.0.0.1', 0) as other:
        other.listen()
        number = other.getsockname()[1]
        assert stopped(monkeypatch, place, '--name', 'nobody', '--port', number) == 2
    assert f'--port {number}: ' in capsys.readouterr().err


@pytest.mark.parametrize('token', ['', ' ', 'two words', 'süß'])
def test_a_token_that_nobody_could_send_is_refused(token, place, monkeypatch, capsys):
    monkeypatch.setenv('REID_TOKEN', token)
    assert stopped(monkeypatch, place, '--name', 'a') == 2
    assert 'REID_TOKEN' in capsys.readouterr().err


@pytest.mark.parametrize('package', ['fastapi', 'python_multipart', 'uvicorn'])
def test_a_package_that_is_not_there_is_named(package, place, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert stopped(monkeypatch, place, '--name', 'a', '--gpu_ids', -1, '--port', 0) == 2
    assert 'pip install' in capsys.readouterr().err


def test_others_without_a_token_are_warned_of(monkeypatch, capsys):
    listening = serve.bound('0.0.0.0', 0)
    opts = argparse.Namespace(host='0.0.0.0', index=None)
    for token, warned in [(None, True), ('x', False)]:
        serve.tell(opts, FAKE, None, token, listening)
        said = capsys.readouterr()
        assert ('REID_TOKEN=' in said.err) == warned
        assert said.out.splitlines()[-1].startswith(f'http://0.0.0.0:{listening.getsockname()[1]} ')
    listening.close()
    local = {'127.0.0.1': True, 'localhost': True, '::1': True, '127.9.9.9': True, '0.0.0.0': False, 'here.org': False}
    assert {host: serve.is_local(host) for host in local} == local
    # Otherwise asyncio does not see that it is TCP, and half of each answer waits 40 ms for the other side.
    assert listening.proto == socket.IPPROTO_TCP


# ---------------------------------------------------------------------------------------------------------------------
# 8. the clients of benchmarks/serving.py


def test_the_benchmark_counts_what_was_answered(plain, monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location('serving', ROOT / 'benchmarks' / 'serving.py')
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    good, bad = benchmark.request('POST /embed', png(1)), benchmark.request('POST /embed', b'no picture')
    address, counted = str(plain.base_url).rstrip('/'), 'reid_requests_total{method="POST",path="/embed",status="200"}'
    before = sample(plain, counted) or 0
    asked = [(address, [good], 3, 0.2), (address, [good, bad], 3, 0.2)]
    monkeypatch.setattr(sys, 'stdin', io.StringIO('\n'.join(map(json.dumps, asked))))
    benchmark.load()
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert 0 < 0.2 * first['requests_s'] < sample(plain, counted) - before
    assert 0 < first['p50_ms'] <= first['p99_ms']
    assert 'HTTP/1.1 400' in second['fault']
    assert benchmark.batches(address)[1] >= before
