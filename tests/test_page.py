"""The page of the service, by HTTP and in a browser: python -m pytest tests/test_page.py"""

import argparse
import asyncio
import contextlib
import csv
import errno
import io
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from test_serve import ABOUT, DIM, FAKE, LONG, NAMES, SIZE, coded, describe, serving, wait_for

import serve
from reid import data, frames, index, page_choice, page_html, page_jobs, page_pictures, page_timeline, service
from reid.page import Pages
from reid.page_start import Start
from reid.page_texts import LANGUAGES, TEXTS
from reid.problem import Problem
from reid.service_sessions import MOST, Sessions, digest
from reid.video import Follower

pytest.importorskip('jinja2')

# ---------------------------------------------------------------------------------------------------------------------
# what there is to look at: people of a few large patches on white, which survive being compressed


def body(seed):
    """Somebody: uint8 (128, 64, 3)."""
    random = np.random.default_rng(seed)
    patches = np.stack(
        [random.integers(0, 255, (8, 4)), random.integers(0, 255, (8, 4)), random.integers(0, 90, (8, 4))], -1
    )
    return patches.astype(np.uint8).repeat(16, 0).repeat(16, 1)


def scene(*places):
    """Of (seed, left, top) -> uint8 (200, 320, 3)."""
    picture = np.full((200, 320, 3), 255, np.uint8)
    for seed, left, top in places:
        picture[top : top + 128, left : left + 64] = body(seed)
    return picture


def people_in(picture):
    """A detector that is right here: whatever is not white, column by column."""
    dark = (picture.min(-1) < 150).sum(0) > 20
    edges = np.flatnonzero(np.diff(np.concatenate([[0], dark, [0]])))
    boxes = []
    for left, right in zip(edges[::2], edges[1::2], strict=True):
        rows = np.flatnonzero((picture[:, left:right].min(-1) < 150).any(1))
        if right - left > 20:
            boxes.append([left, rows[0], right, rows[-1] + 1])
    return np.array(boxes, np.float32).reshape(-1, 4), np.full(len(boxes), 0.9, np.float32)


def f(picture):
    return describe(data.sized(Image.fromarray(picture), SIZE)[None])[0]


@pytest.fixture
def kept(tmp_path):
    with index.create(tmp_path / 'people', DIM, ABOUT) as kept:
        yield kept


@contextlib.contextmanager
def page(kept, folder=None, detect=people_in, reads=True, **how):
    pages = Pages(folder or kept.folder / 'page', {'fake': lambda least: detect}, reads)
    with serving(FAKE, kept, page=pages, local=True, **how) as client:
        client.follow_redirects = True
        yield client


@pytest.fixture
def client(kept):
    with page(kept) as client:
        yield client


class Reader(HTMLParser):
    """What a browser would make of a page: words, and the attributes of its elements."""

    def __init__(self, html):
        super().__init__()
        self.words, self.elements = [], []
        self.feed(html)
        self.text = ' '.join(' '.join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, words):
        self.words.append(words)

    def all(self, tag, attribute):
        return [own[attribute] for name, own in self.elements if name == tag and attribute in own]


def read(answer, status=200):
    assert answer.status_code == status, answer.text
    assert answer.headers['content-security-policy'] == page_html.POLICY
    return Reader(answer.text)


def send(client, kind, *pictures):
    files = [('picture', ('../../x.png', coded(picture), 'image/png')) for picture in pictures]
    answer = client.post(f'/page/{kind}', files=files)
    assert answer.status_code == 200, answer.text
    return answer


def register(client, name, picture, **chosen):
    return client.post(send(client, 'register', picture).url.path, data={'name': name, **chosen})


# ---------------------------------------------------------------------------------------------------------------------
# 1. texts


def test_all_is_said_in_both_languages():
    for name, texts in TEXTS.items():
        assert len(texts) == len(LANGUAGES), name
        assert all(text.strip() for text in texts), name
        assert len({tuple(sorted(re.findall(r'{\w+}', text))) for text in texts}) == 1, name
    assert not any(re.search('[\u4e00-\u9fff]', english) for english, _ in TEXTS.values())
    assert all(re.search('[\u4e00-\u9fff]', chinese) for name, (_, chinese) in TEXTS.items())


def test_whatever_a_template_says_is_a_text_and_the_other_way_round():
    sources = ''.join(path.read_text(encoding='utf-8') for path in page_html.WEB.glob('*.html'))
    said, begun = set(re.findall(r"\bt\('(\w+)'[,)]", sources)), re.findall(r"\bt\('(\w+_)' ~", sources)
    assert said <= set(TEXTS)
    code = ''.join(
        path.read_text(encoding='utf-8') for path in page_html.WEB.parent.glob('page_*.py') if 'text' not in path.name
    )
    code += (page_html.WEB.parent / 'page.py').read_text(encoding='utf-8') + sources
    unused = {name for name in TEXTS if f"'{name}'" not in code and not name.startswith(tuple(begun))}
    assert not unused


def test_the_language_is_that_of_the_address_the_cookie_or_the_browser(client):
    assert 'Nobody is registered' in read(client.get('/page/people')).text
    chinese = {'Accept-Language': 'fr, zh-CN;q=0.9, en;q=0.8'}
    assert '还没有登记' in read(client.get('/page/people', headers=chinese)).text
    assert '还没有登记' in read(client.get('/page/people?lang=zh')).text
    assert '还没有登记' in read(client.get('/page/people')).text  # it is kept
    assert 'Nobody is' in read(client.get('/page/people?lang=en&top=7', headers=chinese)).text
    assert read(client.get('/page/settings')).all('input', 'value')[1] == '10'  # and nothing else of an address
    for odd in ('x;q=y', ',,;;', 'zh;q=0.0.1', 'zh' * 500, '*'):
        assert page_choice.spoken(odd) == 'en'


# ---------------------------------------------------------------------------------------------------------------------
# 2. register, search


def test_somebody_is_registered_and_found(client, kept):
    assert str(client.get('/').url.path) == '/page/people'
    said = read(register(client, '  Ann  Lee ', body(1), camera='7'))
    assert 'Registered.' in said.text
    (entry,) = kept.find()
    assert (entry.name, entry.camera, entry.path) == ('Ann Lee', 7, None)
    np.testing.assert_allclose(kept.vectors([entry.id])[0], f(body(1)), atol=1e-6)
    assert abs(entry.time - time.time()) < LONG
    thumb = client.get(f'/page/thumb/{entry.id}')
    assert thumb.headers['content-type'] == 'image/jpeg'
    shown = np.asarray(Image.open(io.BytesIO(thumb.content)), int)
    assert np.abs(shown - body(1)).mean() < 12
    assert 'Ann Lee' in read(client.get('/page/people')).text

    found = send(client, 'search', body(1))
    said = read(found)
    assert re.search(r'This is Ann Lee .*Ann Lee 1\.000', said.text)
    assert read(client.get(found.url)).text == said.text  # loaded again
    rows = list(csv.DictReader(io.StringIO(client.get(f'{found.url.path}/results.csv').content.decode('utf-8-sig'))))
    assert [(row['name'], row['known'], row['camera']) for row in rows] == [('Ann Lee', 'yes', '7')]
    assert float(rows[0]['score']) == pytest.approx(1, abs=1e-5)

    other = send(client, 'search', body(2))
    score = float(f(body(2)) @ f(body(1)))
    assert score < 0.8  # the threshold of this network
    said = read(other)
    assert 'This is Unknown' in said.text
    assert f'{score:.3f}' in said.text
    low = read(client.get(f'{other.url.path}?threshold={score - 0.01}'))
    assert 'This is Ann Lee' in low.text


def test_of_several_people_one_is_chosen(client, kept):
    picture = scene((1, 20, 30), (2, 200, 50))
    chosen = send(client, 'register', picture)
    said = read(chosen)
    boxes = [
        [float(own[side]) for side in ('x', 'y', 'width', 'height')] for tag, own in said.elements if tag == 'rect'
    ]
    assert boxes == [[20, 30, 64, 128], [200, 50, 64, 128]]
    shown = [source for source in said.all('img', 'src') if source.startswith('/page/draft/')]
    for source in shown:
        Image.open(io.BytesIO(client.get(source).content)).verify()
    assert len(shown) == 3
    client.post(chosen.url.path, data={'name': 'Bo', 'box0': '1'})
    np.testing.assert_allclose(kept.vectors([entry.id for entry in kept.find()])[0], f(body(2)), atol=1e-6)

    register(client, 'All', picture, box0='whole')
    np.testing.assert_allclose(kept.vectors([kept.find(name='All')[0].id])[0], f(picture), atol=1e-6)
    asked = send(client, 'search', picture)
    assert 'Who is to be searched for?' in read(asked).text
    assert 'This is Bo' in read(client.get(f'{asked.url.path}?box=1')).text
    assert 'This is Unknown' in read(client.get(f'{asked.url.path}?box=0')).text


def test_several_pictures_become_several_entries_and_some_are_left_out(client, kept):
    sent = send(client, 'register', body(1), body(2), body(3))
    answer = client.post(sent.url.path, data={'name': 'Ann', 'box1': 'skip'})
    assert answer.status_code == 200
    vectors = kept.vectors([entry.id for entry in kept.find(name='Ann')])
    np.testing.assert_allclose(vectors, [f(body(1)), f(body(3))], atol=1e-6)
    sent = send(client, 'register', body(1), body(2))
    answer = client.post(sent.url.path, data={'name': 'Ann', 'box0': 'skip', 'box1': 'skip'})
    assert 'nobody is chosen' in read(answer, 422).text
    assert len(kept.find()) == 2


def test_a_mistake_leaves_what_was_typed(client, kept):
    sent = send(client, 'register', scene((1, 20, 30), (2, 200, 50)))
    for name, camera, sentence in [
        ('', '', 'A name is missing'),
        (' \n\t', '', 'A name is missing'),
        ('x' * 10_000, '', 'at most 200 letters'),
        ('Ann', '-1', 'A camera is a whole number'),
        ('Ann', 'gate', 'A camera is a whole number'),
        ('Ann', str(2**31), 'A camera is a whole number'),
    ]:
        said = read(client.post(sent.url.path, data={'name': name, 'camera': camera, 'box0': '1'}), 422)
        assert sentence in said.text
        assert said.all('input', 'value')[1] == camera
        assert [own['id'] for tag, own in said.elements if tag == 'input' and 'checked' in own] == ['box0-1']
    assert kept.find() == []
    assert client.post(sent.url.path, data={'name': 'x' * 200}).status_code == 200


def test_what_was_sent_is_registered_once(client, kept):
    sent = send(client, 'register', body(1))
    with ThreadPoolExecutor(4) as pool:  # four tabs, or an impatient finger
        answers = list(pool.map(lambda _: client.post(sent.url.path, data={'name': 'Ann'}), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 404, 404, 404]
    assert len(kept.find()) == 1
    assert 'not any more' in read(client.get(sent.url), 404).text
    assert list((kept.folder / 'page' / 'drafts').iterdir()) == []  # nothing is left of what was sent


def test_twenty_at_once(client, kept):
    def one(seed):
        return register(client, f'person {seed:02d}', body(seed)).status_code

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(one, range(20))) == [200] * 20
    found = kept.find()
    assert sorted(entry.name for entry in found) == [f'person {seed:02d}' for seed in range(20)]
    for entry in found:
        np.testing.assert_allclose(kept.vectors([entry.id])[0], f(body(int(entry.name[-2:]))), atol=1e-6)
    assert len(list((kept.folder / 'page' / 'thumbs').iterdir())) == 20


def test_without_a_detector_the_whole_picture_is_taken(kept):
    def absent(least):
        raise Problem('the detector could not be downloaded')

    pages = Pages(kept.folder / 'page', {'away': absent})
    with serving(FAKE, kept, page=pages, local=True) as client:
        client.follow_redirects = True
        sent = send(client, 'register', scene((1, 20, 30)))
        assert 'could not be downloaded' in read(sent).text
        client.post(sent.url.path, data={'name': 'Ann'})
    np.testing.assert_allclose(kept.vectors([kept.find()[0].id])[0], f(scene((1, 20, 30))), atol=1e-6)


def test_what_was_sent_is_not_kept_for_ever(client, kept, monkeypatch):
    sent, drafts = send(client, 'search', body(1)), kept.folder / 'page' / 'drafts'
    shown = f'{sent.url.path}/0.jpg'.replace('search', 'draft')
    assert client.get(shown).status_code == 200
    with monkeypatch.context() as patch:
        patch.setattr(page_pictures, 'DAY', -1)
        assert [client.get(url).status_code for url in (sent.url, shown)] == [404, 404]
        patch.setattr(page_pictures, 'HOUR', 0.01)
        again = page_pictures.Pictures(kept.folder / 'page', None, {}, False)
        wait_for(lambda: not list(drafts.iterdir()))  # at the start
        (drafts / page_pictures.fresh()).mkdir()
        wait_for(lambda: not list(drafts.iterdir()))  # and from time to time
        again.close()
    monkeypatch.setattr(page_pictures, 'MOST', 3)
    kept_ones = [send(client, 'search', body(seed)).url for seed in range(6)]
    assert [client.get(url).status_code for url in kept_ones] == [404, 404, 200, 200, 200, 200]  # and the one that came


# ---------------------------------------------------------------------------------------------------------------------
# 3. people


def test_a_person_is_renamed_with_pictures_and_all(client, kept):
    for seed, name in [(1, 'Ann'), (2, 'Ann'), (3, 'Bo')]:
        register(client, name, body(seed), camera='2')
    before = kept.find(name='Ann')
    said = read(client.post('/page/rename', data={'who': page_html.key('Ann'), 'name': '安'}))
    assert 'Renamed.' in said.text
    after = kept.find(name='安')
    assert [entry[2:] for entry in after] == [entry[2:] for entry in before]  # all but id and name
    np.testing.assert_allclose(kept.vectors([entry.id for entry in after]), [f(body(1)), f(body(2))], atol=1e-6)
    for entry, seed in zip(after, (1, 2), strict=True):
        shown = Image.open(io.BytesIO(client.get(f'/page/thumb/{entry.id}').content))
        assert np.abs(np.asarray(shown, int) - body(seed)).mean() < 12
    client.post('/page/rename', data={'who': page_html.key('Bo'), 'name': '安'})  # now they are one
    assert [entry.name for entry in kept.find()] == ['安'] * 3
    gone = client.post('/page/rename', data={'who': page_html.key('Bo'), 'name': 'Cy'})
    assert 'not any more' in read(gone, 404).text
    assert (
        'at most 200'
        in read(client.post('/page/rename', data={'who': page_html.key('安'), 'name': 'x' * 201}), 422).text
    )


def test_many_are_renamed(client, kept, monkeypatch):
    kept.add(
        [{'name': 'old', 'path': f'/{i}' if i % 2 else None} for i in range(50)],
        np.stack([f(body(i)) for i in range(50)]),
    )
    monkeypatch.setattr('reid.page_people.PIECE', 7)
    client.post('/page/rename', data={'who': page_html.key('old'), 'name': 'new'})
    found = kept.find()
    assert [(entry.name, entry.path) for entry in found] == [('new', f'/{i}' if i % 2 else None) for i in range(50)]
    np.testing.assert_allclose(kept.vectors([e.id for e in found]), [f(body(i)) for i in range(50)], atol=1e-6)


def test_who_is_removed_is_asked_for_and_then_gone(client, kept):
    for seed, name in [(1, 'Ann'), (2, 'Ann'), (3, 'Bo')]:
        register(client, name, body(seed))
    first, second, third = kept.find()
    thumbs = kept.folder / 'page' / 'thumbs'
    assert 'Entries to be deleted: 1' in read(client.get(f'/page/remove?id={first.id}')).text
    assert 'Entries to be deleted: 2' in read(client.get('/page/remove', params={'who': page_html.key('Ann')})).text
    assert len(kept.find()) == 3
    said = client.post('/page/remove', data={'id': first.id})
    assert (said.url.path, 'Deleted.' in read(said).text) == ('/page/person', True)
    assert kept.find() == [second, third]
    assert {path.name.split('-')[0] for path in thumbs.iterdir()} == {str(second.id), str(third.id)}
    assert client.post('/page/remove', data={'id': first.id}).status_code == 404
    said = client.post('/page/remove', data={'who': page_html.key('Ann')})
    assert said.url.path == '/page/people'
    assert kept.find() == [third]
    assert [path.name.split('-')[0] for path in thumbs.iterdir()] == [str(third.id)]  # no picture is left of them
    register(client, 'Cy', body(4))
    assert client.delete(f'/gallery/{third.id}').status_code == 200  # by the API, which knows of no pictures
    client.get('/page/people')
    assert [path.name.split('-')[0] for path in thumbs.iterdir()] == [str(kept.find()[0].id)]


def test_people_come_in_pages_and_by_part_of_a_name(client, kept):
    kept.add([{'name': f'Nr {i // 2:03d}'} for i in range(120)], np.stack([f(body(0))] * 120))
    seen = []
    for number in (1, 2, 3):
        said = read(client.get(f'/page/people?page={number}'))
        seen += re.findall(r'Nr \d{3}', said.text)
    assert seen == [f'Nr {i:03d}' for i in range(60)]
    assert 'People: 60, entries: 120' in said.text
    assert re.findall(r'Nr \d{3}', read(client.get('/page/people?q=nR 01')).text) == [
        f'Nr {i:03d}' for i in range(10, 20)
    ]
    assert 'Nobody has' in read(client.get('/page/people?q=zzz')).text
    for odd in ('0', '-1', '99', 'x', '9' * 5000):
        assert client.get('/page/people', params={'page': odd}).status_code == 200


def test_names_are_texts_and_nothing_else(client, kept):
    names = [*NAMES, '', '\udcff.jpg', '=1+1', '<b onclick=x>', "' onmouseover='x"]
    kept.add([{'name': name} for name in names], np.stack([f(body(i)) for i in range(len(names))]))
    said = read(client.get('/page/people'))
    assert said.all('script', 'src') == ['/page/files/page.js']
    assert not [own for _, own in said.elements if any(name.startswith('on') for name in own)]
    assert '<script>alert(1)</script>' in said.text
    for seed, name in enumerate(names):
        answer = client.get('/page/person', params={'who': page_html.key(name)})
        assert read(answer).all('input', 'value')[0] == page_html.key(name)
        assert page_html.unkey(page_html.key(name)) == name
        found = send(client, 'search', body(seed))
        assert len(read(found).all('script', 'src')) == 1
        table = client.get(f'{found.url.path}/results.csv').content.decode('utf-8-sig')
        assert all(cell[:1] not in '=+@' or not cell for row in csv.reader(io.StringIO(table)) for cell in row)
        client.post('/page/remove', data={'who': page_html.key(name)})
    assert kept.find() == []


def test_pictures_that_entries_speak_of(kept, tmp_path):
    Image.fromarray(body(1)).save(tmp_path / 'a.png')
    (tmp_path / 'secret.png').write_text('password')
    (tmp_path / 'secret.txt').write_text('password')
    paths = [str(tmp_path / name) for name in ('a.png', 'secret.png', 'secret.txt', 'none.png')] + [
        'a.png',
        '/dev/zero',
    ]
    kept.add([{'name': 'x', 'path': path} for path in paths], np.stack([f(body(1))] * len(paths)))
    for reads in (True, False):
        with page(kept, tmp_path / f'page{reads}', reads=reads) as client:
            answers = [client.get(f'/page/thumb/{entry.id}') for entry in kept.find()]
        kinds = [answer.headers['content-type'] for answer in answers]
        assert kinds == ['image/jpeg' if reads else 'image/svg+xml', *['image/svg+xml'] * 5]
        assert not any(b'password' in answer.content for answer in answers)


# ---------------------------------------------------------------------------------------------------------------------
# 4. settings


def test_settings_are_kept_and_odd_ones_are_not(client):
    register(client, 'Ann', body(1))
    score = float(f(body(2)) @ f(body(1)))
    given = {
        'threshold': f'{score - 0.01}',
        'top': '5',
        'detector': 'none',
        'every': '1',
        'lang': 'en',
        'theme': 'dark',
    }
    said = read(client.post('/page/settings', data=given))
    assert 'Saved.' in said.text
    assert said.all('html', 'data-theme') == ['dark']
    assert 'This is Ann' in read(send(client, 'search', body(2))).text
    assert not read(send(client, 'register', scene((1, 20, 30)))).all('rect', 'x')  # whole pictures
    odd = {
        'threshold': 'nan',
        'top': '9' * 5000,
        'detector': '/etc/passwd',
        'every': '0',
        'lang': 'xx',
        'theme': '"><script>',
    }
    said = read(client.post('/page/settings', data=odd))
    assert (said.all('input', 'value'), said.all('html', 'data-theme')) == (['', '10', '3', '5'], [])
    for cookie in ('reid=%00;', 'reid=top=1&top=2', 'reid="', 'reid=' + 'x' * 3000):
        client.cookies.clear()
        assert client.get('/page/settings', headers={'Cookie': cookie}).status_code == 200


def test_what_needs_another_start_is_kept_and_says_so(kept, tmp_path):
    start = Start(tmp_path / 'start.json', {'device': {'GPU 0': '0', 'CPU': '-1'}, 'engine': ['PyTorch']}, ['engine'])
    pages = Pages(kept.folder / 'page', {'fake': lambda least: people_in}, start=start)
    with serving(FAKE, kept, page=pages, local=True) as client:
        client.follow_redirects = True
        said = read(client.get('/page/settings'))
        assert 'From the next start of the service' in said.text
        assert [own.get('disabled') for tag, own in said.elements if own.get('id') in ('device', 'engine')] == [
            None,
            None,
        ]
        assert [own['id'] for tag, own in said.elements if 'disabled' in own] == ['engine']
        said = read(client.post('/page/settings/start', data={'device': 'CPU', 'engine': 'PyTorch'}))
        assert 'It holds from the next start' in said.text
        assert 'Now: GPU 0' in said.text  # still
        assert start.chosen() == {'device': 'CPU'}
        for odd in ({'device': '/etc/passwd'}, {'device': ''}, {'x': 'y' * 10_000}):
            assert client.post('/page/settings/start', data=odd).status_code == 200
        assert start.chosen() == {'device': 'CPU'}
    with page(kept, tmp_path / 'other') as client:
        assert client.post('/page/settings/start', data={'device': 'CPU'}).status_code == 404


def test_people_are_followed_as_it_was_chosen(client, kept, film, monkeypatch):
    how = []
    monkeypatch.setattr(
        'reid.page_looking.Follower', lambda *args, **given: how.append(given) or Follower(*args, **given)
    )
    client.post('/page/settings', data={'tracker': 'motion', 'renew': '0.5', 'every': '2'})
    assert over(client, start(client, film)) == 'done'
    assert [(own['looks'], own['renew'], own['every']) for own in how] == [(False, 0.5, 2)]


# ---------------------------------------------------------------------------------------------------------------------
# 5. whatever comes


def test_what_is_no_picture_is_a_sentence(client):
    for content in (b'', b'x', b'<svg xmlns="http://www.w3.org/2000/svg"/>', coded(body(1))[:200]):
        answer = client.post('/page/search', files={'picture': ('<b>.png', content)})
        assert read(answer, 400).all('b', 'x') == []
    assert client.post('/page/search', files={'other': coded(body(1))}).status_code == 422
    assert client.post('/page/search', files=[('picture', ('a', b'x'))] * 2).status_code == 400
    assert client.post('/page/register', files=[('picture', ('a', b'x'))] * 21).status_code == 400
    assert client.post('/page/search', files={'picture': (None, 'x')}).status_code == 422
    for place in ('search', 'register', 'video', 'clip'):  # where bodies are large, but not in memory
        answer = client.post(f'/page/{place}', data={'picture': 'x'})
        assert 'found application/x-www-form-urlencoded' in read(answer, 415).text
        assert client.post(f'/page/{place}', files={'start': (None, 'x' * (2**16 + 1))}).status_code == 400
    assert client.post('/page/search', content=b'x', headers={'content-type': 'multipart/form-data'}).status_code == 400
    assert client.post('/page/search', content=b'{}', headers={'content-type': 'application/json'}).status_code == 415


def test_no_request_is_too_odd(client, kept):
    register(client, 'Ann', body(1))
    register(client, 'Bo', body(2))
    draft = send(client, 'search', scene((1, 20, 30), (2, 200, 50))).url.path
    values = [
        '',
        '0',
        '-1',
        '1.5',
        'x',
        '9' * 30,
        '9' * 5000,
        '%00',
        '..%2f..%2fetc%2fpasswd',
        '../..',
        '%ff',
        '🚶',
        '==',
        "'",
        'a' * 32,
    ]
    shown = draft.replace('search', 'draft')
    places = ['/page/thumb/{}', '/page/files/{}', '/page/register/{}', '/page/search/{}', '/page/draft/{}/0.jpg',
              '/page/video/{}', '/page/video/{}/state.json', '/page/video/{}/x', '/page/person?who={}',
              '/page/clip/{}', '/page/clip/{}/frame.jpg',
              '/page/remove?who={}', '/page/remove?id={}', '/page/people?q={}', '/page/people?lang={}',
              '/page/people?said={}', '/page/{}', draft + '?box={}', draft + '?top={}&threshold={}&detector={}',
              shown + '/{}.jpg', shown + '/0/{}.jpg']  # fmt: skip
    for place in places:
        for value in values:
            answer = client.get(place.replace('{}', value))
            assert answer.status_code < 500, (place, value, answer.text)
            assert b'root:' not in answer.content
    posts = [
        '/page/rename',
        '/page/remove',
        '/page/settings',
        '/page/video',
        '/page/register',
        '/page/clip',
        draft,
        '/page/video/x/cancel',
    ]
    for place in posts:
        for given in (
            {},
            {'who': 'x'},
            {'who': '!' * 999, 'name': 'y'},
            {'id': 'x'},
            {'id': '9' * 40},
            {str(i): 'x' for i in range(600)},
        ):
            for how in (
                {'data': given},
                {'files': {name: (None, value) for name, value in given.items()}},
                {'content': b'\xff'},
            ):
                assert client.post(place, **how).status_code < 500, (place, given)
    assert len(kept.find()) == 2


def test_pages_of_others_do_nothing_here(client, kept):
    register(client, 'Ann', body(1))
    for headers in ({'Origin': 'https://elsewhere.org'}, {'Origin': 'null'}, {'Host': 'elsewhere.org'}):
        answer = client.post('/page/remove', data={'who': page_html.key('Ann')}, headers=headers)
        assert answer.status_code == 403
    own = str(client.base_url).rstrip('/')
    assert client.post('/page/settings', data={'top': '5'}, headers={'Origin': own}).status_code == 200
    assert len(kept.find()) == 1


def test_a_picture_is_bounded_and_a_video_has_bounds_of_its_own(kept):
    limits = service.LIMITS._replace(bytes=20_000, pixels=10_000)
    pages = Pages(kept.folder / 'page', {'fake': lambda least: people_in}, video_bytes=300_000)
    with serving(FAKE, kept, page=pages, local=True, limits=limits) as client:
        client.follow_redirects = True
        assert client.post('/page/search', files={'picture': bytes(20_001)}).status_code == 413
        assert client.post('/page/register', files={'picture': bytes(20_001)}).status_code == 413  # one of twenty
        assert client.post('/page/register', files={'picture': bytes(500_000)}).status_code == 413
        answer = client.post('/page/search', files={'picture': coded(np.zeros((200, 200, 3), np.uint8))})
        assert 'pixels' in read(answer, 413).text
        assert client.post('/page/video', files={'video': bytes(300_001)}).status_code == 413
        answer = client.post('/page/video', files={'video': bytes(200_000)})
        assert 'no video' in read(answer, 422).text  # but not too large
        files = {'video': b'RIFF\0\0\0\0AVI ' + bytes(500), 'picture': bytes(20_001)}
        assert 'at most 0.02 MB' in read(client.post('/page/video', files=files), 413).text
        assert list((kept.folder / 'page' / 'videos').iterdir()) == []
        wait_for(lambda: 'reid_requests_inside 0' in client.get('/metrics').text)


def test_nothing_comes_from_another_host(client, kept):
    register(client, 'Ann', body(1))
    pages = ['/page/people', '/page/register', '/page/search', '/page/video', '/page/settings', '/page/nothing']
    found = send(client, 'search', scene((1, 20, 30), (2, 200, 50))).url.path
    for place in [*pages, found, f'{found}?box=0', f'/page/person?who={page_html.key("Ann")}']:
        said = Reader(client.get(place).text)
        links = [own[name] for _, own in said.elements for name in ('href', 'src', 'action') if name in own]
        assert links
        assert all(link.startswith(('/page/', '?', '#')) for link in links), links
        assert not [own for _, own in said.elements if 'style' in own]  # which the policy forbids
    for name in ('style.css', 'page.js'):
        text = client.get(f'/page/files/{name}').text
        assert not re.search(r'https?:|//\w+\.|@import|url\(|eval|innerHTML', text)


# ---------------------------------------------------------------------------------------------------------------------
# 6. videos


@pytest.fixture(scope='module')
def film(tmp_path_factory):
    """Two people who walk past each other's place, 3 seconds."""
    pytest.importorskip('cv2')
    path = tmp_path_factory.mktemp('film') / 'street.mp4'
    with frames.writer(path, 10, (320, 200)) as write:
        for i in range(30):
            write(scene((1, 10 + 2 * i, 20), (2, 240 - 2 * i, 50)))
    return path.read_bytes()


def start(client, film, **files):
    answer = client.post('/page/video', files={'video': ('street <b>.mp4', film), **files})
    assert answer.status_code == 200, answer.text
    return answer.url.path


def state(client, place):
    return client.get(f'{place}/state.json').json()['state']


def over(client, place):
    wait_for(lambda: state(client, place) not in ('waiting', 'running'))
    return state(client, place)


def results(client, place):
    return list(csv.DictReader(io.StringIO(client.get(f'{place}/results.csv').content.decode('utf-8-sig'))))


def test_everybody_in_a_video_is_compared_with_the_index(client, kept, film):
    register(client, 'Ann', body(1))
    place = start(client, film)
    assert over(client, place) == 'done'
    ann, other = results(client, place)
    assert (ann['name'], ann['known'], ann['from'], ann['to']) == ('Ann', 'yes', '0:00:00', '0:00:02')
    assert float(ann['score']) > 0.95
    assert other['known'] == 'unknown'
    said = read(client.get(place))
    assert 'Who was seen: 2' in said.text
    assert 'street <b>.mp4' in said.text
    for source in said.all('img', 'src'):
        assert Image.open(io.BytesIO(client.get(source).content)).format == 'JPEG'
    shot = np.asarray(Image.open(io.BytesIO(client.get(f'{place}/{ann["shot"]}').content)).resize((64, 128)), int)
    assert np.abs(shot - body(1)).mean() < np.abs(shot - body(2)).mean() / 2
    video = client.get(f'{place}/0/video.mp4')
    assert 'attachment' in video.headers['content-disposition']
    assert video.content[4:8] == b'ftyp'
    film = client.get(f'{place}/0/video.webm', headers={'Range': 'bytes=0-3'})  # as a browser asks that is to jump
    assert (film.status_code, film.content, film.headers['content-type']) == (206, b'\x1aE\xdf\xa3', 'video/webm')
    assert [link.rpartition('#')[2] for link in said.all('a', 'href') if '.webm' in link] == ['t=0.0'] * 4
    folder = kept.folder / 'page' / 'videos' / place.rpartition('/')[2]
    assert not (folder / 'upload').exists()  # what was sent is not kept
    assert [entry.name for entry in kept.find()] == ['Ann']  # nobody was added
    assert 'are deleted' in read(client.get(f'{place}/remove')).text
    client.post(f'{place}/remove')
    assert not folder.exists()


def test_one_person_is_looked_for_in_a_video_with_another_pace(client, kept, film, monkeypatch):
    monkeypatch.setattr(kept, 'query', None)  # nobody else is asked for
    place = start(client, film, picture=('bo.png', coded(scene((2, 60, 20)))))
    assert over(client, place) == 'done'
    first, second = results(client, place)
    assert (first['name'], first['known'], second['known']) == ('bo', 'yes', 'unknown')
    shot = np.asarray(Image.open(io.BytesIO(client.get(f'{place}/{first["shot"]}').content)).resize((64, 128)), int)
    assert np.abs(shot - body(2)).mean() < np.abs(shot - body(1)).mean() / 2


def many(client, *files, **data):
    answer = client.post('/page/video', files=[('video', file) for file in files], data=data)
    assert answer.status_code == 200, answer.text
    assert over(client, answer.url.path) == 'done'
    return answer.url.path


def test_one_person_in_several_videos_and_pictures_is_one_row(client, kept, film):
    register(client, 'Ann', body(1))
    seen = coded(scene((2, 60, 20), (3, 180, 30)))
    files = (
        ('walk/b.mp4', film),
        ('walk/a.mp4', film),
        ('walk/c.png', seen),
        ('walk/.DS_Store', b'x'),
        ('d.png', b'\x89PNG'),
    )
    place = many(client, *files, start='2026-11-21T14:30')
    said = read(client.get(place))
    assert (
        'Who was seen: 3' in said.text
    )  # Ann and one more in both videos, one of whom is in the picture, with a third
    assert 'were left out: 2' in said.text
    assert 'Compared with entries: 1 Tracks, and people in pictures 6 Detector fake' in said.text
    rows = results(client, place)
    ann = [row for row in rows if row['name'] == 'Ann' and row['known'] == 'yes']
    assert [(row['source'], row['person'], row['from_clock']) for row in ann] == [
        ('walk/a.mp4', '1', '2026-11-21 14:30:00'), ('walk/b.mp4', '1', '2026-11-21 14:30:00')
    ]  # fmt: skip
    people = {number: sorted(row['source'] for row in rows if row['person'] == number) for number in '123'}
    assert sorted(people.values()) == [
        ['walk/a.mp4', 'walk/b.mp4'],
        ['walk/a.mp4', 'walk/b.mp4', 'walk/c.png'],
        ['walk/c.png'],
    ]
    assert not any(row['from'] or row['from_clock'] for row in rows if row['source'] == 'walk/c.png')
    for link in said.all('a', 'href') + said.all('img', 'src'):
        if link.startswith(place):
            assert client.get(link.partition('#')[0]).status_code == 200, link
    shown = np.asarray(Image.open(io.BytesIO(client.get(f'{place}/2/seen.jpg').content)), int)
    assert np.abs(shown - scene((2, 60, 20), (3, 180, 30))).max(-1)[20:148, 60].mean() > 50  # its box
    assert not (kept.folder / 'page' / 'videos' / place.rpartition('/')[2] / 'upload').exists()


def test_times_are_those_of_the_clock_once_it_is_known(client, film):
    place = many(client, ('a.mp4', film), ('b.mp4', film))
    said = read(client.get(place))
    assert '0:00:00–0:00:02' in said.text
    bars = [float(left[:-1]) for left in said.all('rect', 'x')]
    assert bars and max(bars) < 5  # each video begins at 0
    assert set(said.all('rect', 'y')) == {'0.00%', '50.00%'}  # and is seen beside the other
    given = {'start0': '2026-11-21T14:30:00', 'start1': '2026-11-21T14:30:03', 'start9': '2026-01-01', 'x': 'y'}
    said = read(client.post(f'{place}/starts', data=given))
    assert '14:30:00–14:30:02' in said.text
    assert '14:30:03–14:30:05' in said.text
    bars = [float(left[:-1]) for left in said.all('rect', 'x')]
    assert min(bars) < 5 < 45 < max(bars)
    assert '14:30:02 14:30:04' in said.text  # of the timeline
    assert [value for value in said.all('input', 'value') if '2026' in value] == list(given.values())[:2]
    for odd in ('x', '14:30', '9999-12-31T23:59', '2026-13-01T00:00', '9' * 5000, '\0'):
        assert client.post(f'{place}/starts', data={'start0': odd}).status_code == 422
        assert client.post('/page/video', data={'start': odd}, files={'video': film}).status_code == 422
    client.post(f'{place}/starts', data={'start0': '', 'start1': ''})
    assert '0:00:00–0:00:02' in read(client.get(place)).text


def test_a_full_disk_and_too_many_files_are_sentences(client, kept, film, monkeypatch):
    for number, status in [(errno.ENOSPC, 507), (errno.EMFILE, 429)]:

        def full(*_, number=number):
            raise OSError(number, 'x')

        with monkeypatch.context() as patch:
            patch.setattr('shutil.copyfileobj', full)
            for place in ('video', 'clip'):
                read(client.post(f'/page/{place}', files={'video': film}), status)
    assert [*(kept.folder / 'page' / 'videos').iterdir(), *(kept.folder / 'page' / 'drafts').iterdir()] == []


def test_names_of_files_may_be_long_and_odd(client, kept, film):
    for name in ('x' * 10_000 + '.mp4', '密' * 3000, '../' * 3000, 'a\nb\x00\u202e', 'CON', '.'):
        answer = client.post('/page/video', files=[('video', (name, film)), ('picture', (name, coded(body(1))))])
        assert answer.status_code in (200, 400), answer.text
        client.post(f'{answer.url.path}/remove')
        answer = client.post('/page/clip', files={'video': (name, film)})
        assert answer.status_code in (200, 400), answer.text
    written = {path.name for path in kept.folder.rglob('*')}
    assert not any(len(name) > 60 for name in written)


def test_what_cannot_be_read_among_many_is_named(client, film):
    cut = film[: len(film) // 3]
    place = many(client, ('<i>.mp4', cut), ('b.mp4', film), ('c.png', coded(body(1))[:200]))
    said = read(client.get(place))
    assert 'Not searched to the end, or with a remark: 2' in said.text
    assert 'c.png is not a picture that can be read' in said.text
    assert re.search(r'<i>\.mp4 is not a video that can be read', said.text)
    assert 'Who was seen: 2' in said.text


def test_a_video_that_was_cut_off_is_searched_up_to_there(client, tmp_path):
    with frames.writer(tmp_path / 'a.avi', 10, (320, 200)) as write:
        for i in range(30):
            write(scene((1, 10 + 2 * i, 20)))
    whole = (tmp_path / 'a.avi').read_bytes()
    place = many(client, ('<i>.avi', whole[: len(whole) * 2 // 3]))
    said = read(client.get(place))
    assert re.search(r'<i>\.avi ends after (19|20) of 30 frames: it was cut off', said.text)
    assert 'Who was seen: 1' in said.text


def test_many_pictures_are_cancelled_and_what_was_seen_stays(kept):
    slow = Slow()
    with page(kept, detect=slow) as client:
        files = [('video', (f'{i}.png', coded(scene((i, 60, 20))))) for i in range(5)]
        place = client.post('/page/video', files=files).url.path
        slow.go.release()
        wait_for(lambda: client.get(f'{place}/state.json').json()['at'] == '2/5')
        assert client.get(f'{place}/state.json').json()['part'] == pytest.approx(0.2)
        client.post(f'{place}/cancel')
        for _ in range(5):
            slow.go.release()
        assert over(client, place) == 'cancelled'
        assert {row['source'] for row in results(client, place)} in ({'0.png'}, {'0.png', '1.png'})


def test_a_timeline_has_an_end(monkeypatch):
    source = {'picture': False, 'seconds': 10, 'start': None}
    look = {'source': 0, 'spans': [[0, 1], [9.99, 10]]}
    line = page_timeline.timeline({'sources': [source], 'rows': [{'looks': [look]}] * 15})
    assert (len(line['rows']), line['more']) == (page_timeline.ROWS, 3)
    assert line['rows'][2] == {'person': 2, 'bars': [(0, 0, 0, 10, 0), (0, 9.99, 99.5, page_timeline.LEAST, 0)]}
    later = [{**source, 'start': start, 'seconds': seconds} for start, seconds in [(100, 10), (110, 10), (None, 0)]]
    looks = [{'source': at, 'spans': [[5, 10]]} for at in range(3)]  # the last of a video that could not be read
    both = page_timeline.timeline({'sources': later, 'rows': [{'looks': looks}]})
    assert (both['strips'], both['rows'][0]['bars']) == (2, [(0, 5, 25, 25, 0), (1, 5, 75, 25, 1)])
    assert line['ticks'] == [(0, '0:00:00'), (20, '0:00:02'), (40, '0:00:04'), (60, '0:00:06'), (80, '0:00:08'),
                             (100, '0:00:10')]  # fmt: skip
    assert page_timeline.timeline({'sources': [source], 'rows': []}) is None


class Slow:
    """A detector that looks when it may."""

    def __init__(self):
        self.go, self.looked = threading.Semaphore(0), threading.Event()

    def __call__(self, picture):
        self.looked.set()
        assert self.go.acquire(timeout=LONG)
        return people_in(picture)


def test_videos_wait_for_their_turn_and_are_cancelled(kept, film):
    slow = Slow()
    with page(kept, detect=slow) as client:
        first, second, third = (start(client, film) for _ in range(3))
        assert slow.looked.wait(LONG)
        assert [state(client, place) for place in (first, second, third)] == ['running', 'waiting', 'waiting']
        assert 'under way' in read(client.get(first)).text
        for _ in range(5):
            slow.go.release()
        wait_for(lambda: (client.get(f'{first}/state.json').json()['part'] or 0) > 0)
        client.post(f'{second}/cancel')
        client.post(f'{first}/cancel')
        for _ in range(100):
            slow.go.release()
        assert (over(client, first), over(client, second), over(client, third)) == ('cancelled', 'cancelled', 'done')
        assert len(results(client, third)) == 2
        assert 'cancelled' in read(client.get('/page/video')).text


def test_what_was_under_way_begins_anew_and_what_was_done_stays(kept, film):
    with page(kept) as client:
        done = start(client, film)
        assert over(client, done) == 'done'
        table = client.get(f'{done}/results.csv').content
    slow = Slow()
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(page(kept, detect=slow))
        going, waiting = start(client, film), start(client, film)
        assert slow.looked.wait(LONG)
        timer = threading.Timer(0.3, lambda: [slow.go.release() for _ in range(100)])
        timer.start()  # the service ends meanwhile
    timer.join()
    with page(kept) as client:
        assert [over(client, place) for place in (going, waiting)] == ['done', 'done']
        assert client.get(f'{done}/results.csv').content == table
        assert [len(results(client, place)) for place in (going, waiting)] == [2, 2]


@pytest.mark.parametrize('noted', [(), ('running',)])
def test_a_full_disk_ends_one_search_and_not_those_after_it(noted, client, kept, film, monkeypatch):
    keep, said = page_jobs.Jobs.keep, []

    def full(jobs, job):
        said.append(job['state'])
        if job['state'] not in noted:
            raise OSError(errno.ENOSPC, 'x')
        keep(jobs, job)

    with monkeypatch.context() as patch:
        patch.setattr(page_jobs.Jobs, 'keep', full)
        place = start(client, film)
        wait_for(lambda: said == ['running', 'done'])
    assert not list((kept.folder / 'page' / 'videos').rglob('upload'))  # which may be what filled the disk
    assert over(client, start(client, film)) == 'done'
    assert state(client, place) == (*noted, 'waiting')[0]
    client.post(f'{place}/cancel')
    assert state(client, place) == 'cancelled'


def test_of_two_services_with_one_folder_the_second_does_not_start(kept):
    place = kept.folder / 'page' / 'videos' / 'x.part'
    with page(kept):
        place.mkdir()  # what is being sent to it
        with pytest.raises(Problem, match='is used by another service'):
            service.app(FAKE, kept, page=Pages(kept.folder / 'page', {}))
        assert place.exists()
    with page(kept):  # it has ended
        assert not place.exists()


def test_a_search_of_an_earlier_version_is_deleted(kept):
    place = kept.folder / 'page' / 'videos' / page_pictures.fresh()
    (place / 'found').mkdir(parents=True)
    (place / 'job.json').write_text('{"state": "done"}')
    with page(kept):
        assert not place.exists()


def test_what_is_no_video_is_a_sentence(client, kept, film):
    lists = [
        b'#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n',
        b'ffconcat version 1.0\nfile /etc/passwd\n',
        b'',
        b'\x89PNG',
    ]
    for content in lists:
        answer = client.post('/page/video', files={'video': ('x.mp4', content)})
        assert answer.status_code == 422, answer.text
    place = start(client, film[: len(film) // 3])  # its index is at its end
    assert over(client, place) == 'failed'
    assert 'is not a video that can be read' in read(client.get(place)).text
    assert not list((kept.folder / 'page' / 'videos').rglob('upload'))


def test_there_is_an_end_to_what_is_kept(client, kept, film, monkeypatch):
    monkeypatch.setattr(page_jobs, 'MOST', 1)
    place = start(client, film)
    assert client.post('/page/video', files={'video': film}).status_code == 429
    client.post(f'{place}/remove')
    assert client.get(place).status_code == 404
    assert start(client, film)


def test_somebody_is_registered_from_a_frame_of_a_video(client, kept, film):
    sent = client.post('/page/clip', files={'video': ('../<b>.mp4', film)})
    said = read(sent)
    assert '../<b>.mp4' in said.text
    place = sent.url.path
    assert said.all('input', 'max') == ['3.0']
    for at, left in [('0', 10), ('2', 50), ('2.9', 68), ('99', 68)]:
        answer = client.get(f'{place}/frame.jpg?at={at}')
        shown = np.asarray(Image.open(io.BytesIO(answer.content)), int)
        assert np.abs(shown - scene((1, left, 20), (2, 250 - left, 50))).mean() < 12, at
    assert said.all('a', 'href')[-4].endswith('at=0.000')  # a frame before the first
    chosen = client.post(place, data={'at': '2'})
    said = read(chosen)
    assert '../<b>.mp4 0:00:02' in said.text
    assert f'{place}?at=2.000' in said.all('a', 'href')
    boxes = [
        [float(own[side]) for side in ('x', 'y', 'width', 'height')] for tag, own in said.elements if tag == 'rect'
    ]
    np.testing.assert_allclose(boxes, [[50, 20, 64, 128], [200, 50, 64, 128]], atol=3)
    client.post(chosen.url.path, data={'name': 'Bo', 'box0': '1'})
    assert float(kept.vectors([kept.find()[0].id])[0] @ f(body(2))) > 0.95
    for odd in ('', 'x', '-1', 'nan', '1e999', '9' * 5000, '%00'):
        assert (
            client.get(f'{place}?at={odd}').status_code == client.get(f'{place}/frame.jpg?at={odd}').status_code == 200
        )
        assert client.post(place, data={'at': odd}).status_code == 200
    assert client.get(place.replace('clip', 'register')).status_code == 404  # it is no picture
    assert client.get(place.replace('clip', 'draft') + '/0.jpg').status_code == 404
    assert client.get(chosen.url.path.replace('register', 'clip')).status_code == 404
    assert 'Deleted.' in read(client.post(f'{place}/remove')).text
    for method, path in [('GET', place), ('GET', f'{place}/frame.jpg'), ('POST', place), ('POST', f'{place}/remove')]:
        assert client.request(method, path, data={'at': '1'}).status_code == 404
    for content in (b'', b'x', coded(body(1)), film[: len(film) // 3]):
        assert client.post('/page/clip', files={'video': ('a.mp4', content)}).status_code == 422
    assert client.post('/page/clip', files={'picture': film}).status_code == 422
    assert not [path for path in (kept.folder / 'page' / 'drafts').iterdir() if path.name.endswith('.part')]


# ---------------------------------------------------------------------------------------------------------------------
# 7. with a token

TOKEN = 's3cret'


def log_in(client, **given):
    return client.post('/page/login', data={'token': TOKEN, **given})


def test_whoever_does_not_know_the_token_sees_the_login_alone(kept):
    entry = kept.add([{'name': 'Ann'}], f(body(1))[None])[0]
    with page(kept, token=TOKEN) as client:
        client.follow_redirects = False
        for path in (
            '/',
            '/page',
            '/page/people',
            f'/page/thumb/{entry}',
            '/page/settings',
            '/page/nothing',
            '/page/video',
            '/page/files/../people',
            '/page/files%2F..%2Fpeople',
            '/page/login/x',
            '/page/loginx',
            '//page/people',
        ):
            answer = client.get(path)
            assert answer.status_code in (303, 401, 404), path
            assert b'Ann' not in answer.content
        for path in ('/page/rename', '/page/remove', '/page/settings', '/page/video', '/page/register', '/page/logout'):
            answer = client.post(path, data={'who': page_html.key('Ann'), 'name': 'Bo'})
            assert (answer.status_code, answer.headers['location']) == (303, '/page/login')
        assert [entry.name for entry in kept.find()] == ['Ann']
        for path in ('/page/login', '/page/files/style.css', '/page/files/page.js'):
            assert client.get(path).status_code == 200
        assert client.get('/gallery').status_code == 401
        assert client.get('/page/people', headers={'Authorization': f'Bearer {TOKEN}'}).status_code == 200


def test_whoever_knows_the_token_gets_a_cookie_that_does_not_say_it(kept, monkeypatch):
    kept.add([{'name': 'Ann'}], f(body(1))[None])
    monkeypatch.setattr('reid.page_login.PAUSE', 0)
    with page(kept, token=TOKEN) as client:
        for wrong in ('', 'S3cret', 's3cret ', 'x' * 10_000, '密', '\0'):
            answer = client.post('/page/login', data={'token': wrong})
            assert 'not the token' in read(answer, 403).text
            assert 'set-cookie' not in answer.headers
        asked = client.get('/page/people?q=ann')
        assert asked.url.path == '/page/login'
        client.follow_redirects = False
        answer = log_in(client, next=Reader(asked.text).all('input', 'value')[0])
        assert (answer.status_code, answer.headers['location']) == (303, '/page/people?q=ann')
        cookie = answer.headers['set-cookie']
        number = re.match(r'reid_session=([\w-]{43}); HttpOnly; Max-Age=43200; Path=/; SameSite=strict$', cookie)[1]
        assert TOKEN not in cookie
        log_in(client)
        assert 'Ann' in read(client.get('/page/people')).text
        assert client.get('/gallery').status_code == 401  # the page, and nothing else
        for headers in ({'Origin': 'https://elsewhere.org'}, {'Origin': 'null'}):
            assert client.post('/page/remove', data={'who': page_html.key('Ann')}, headers=headers).status_code == 403
            refused = client.post('/page/login', data={'token': TOKEN}, headers=headers)
            assert (refused.status_code, 'nginx' in refused.json()['detail']) == (403, True)
        now = client.cookies['reid_session']
        client.cookies.clear()
        for odd in (number, number[:-1], 'x', '', '%00', TOKEN, 'ü'.encode().decode('latin-1')):
            headers = {'Cookie': f'reid_session={odd}'.encode('latin-1')}
            assert client.get('/page/people', headers=headers).status_code == 303, (
                odd
            )  # the first ended at the second login
        headers = {'Cookie': f'a=b; reid_session={now}'}
        assert client.get('/page/people', headers=headers).status_code == 200
        answer = client.post('/page/logout', headers=headers)
        assert 'Max-Age=0' in answer.headers['set-cookie']
        assert client.get('/page/people', headers=headers).status_code == 303  # wherever the cookie was copied to
        for elsewhere in (
            'https://elsewhere.org',
            '//elsewhere.org',
            '/page/../x',
            '/page/\\x',
            '/page/a\r\nb: c',
            '/gallery',
        ):
            answer = log_in(client, next=elsewhere)
            assert answer.headers['location'] in ('/page/people', '/page/../x')
        secure = client.post('/page/login', data={'token': TOKEN}, headers={'X-Forwarded-Proto': 'https'})
        assert 'Secure' in secure.headers['set-cookie']


def test_who_is_wrong_while_another_is_does_not_wait_and_takes_no_place(kept, monkeypatch):
    asleep, over = threading.Event(), threading.Event()

    async def sleep(seconds):
        asleep.set()
        await asyncio.to_thread(over.wait, LONG)

    monkeypatch.setattr('reid.page_login.asyncio', SimpleNamespace(Lock=asyncio.Lock, sleep=sleep))
    with page(kept, token=TOKEN) as client, ThreadPoolExecutor(1) as pool:
        client.follow_redirects = False
        first = pool.submit(client.post, '/page/login', data={'token': 'x'})
        try:
            assert asleep.wait(LONG)
            assert 'Too much' in read(client.post('/page/login', data={'token': 'y'}), 429).text
            assert log_in(client).status_code == 303
        finally:
            over.set()
        assert 'not the token' in read(first.result(), 403).text


def test_sessions_end():
    sessions = Sessions(TOKEN)
    first = sessions.begin()
    assert sessions.known(first)
    later = time.time() + 12 * 3600 + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('time.time', lambda: later)
        assert not sessions.known(first)
        second = sessions.begin()
        assert list(sessions.until) == [digest(second)]  # what is over is forgotten
        many = [sessions.begin() for _ in range(MOST)]
        assert not sessions.known(second)
        assert all(map(sessions.known, many))
        assert len(sessions.until) == MOST


# ---------------------------------------------------------------------------------------------------------------------
# 8. serve.py


def test_where_there_is_no_page_a_sentence_says_why(kept, tmp_path):
    (tmp_path / 'y.onnx').write_bytes(b'')  # it is looked at when it is asked for
    opts = argparse.Namespace(
        index=str(kept.folder),
        page_dir=None,
        detector=str(tmp_path / 'y.onnx'),
        gpu_ids='-1',
        host='127.0.0.1',
        max_video_mb=7,
    )
    pages, why = serve.pages_of(opts, kept)
    assert (pages.folder, list(pages.detectors), pages.reads, why) == (
        kept.folder / 'page',
        ['y.onnx', 'hog', 'none'],
        True,
        None,
    )
    large = pages.large(service.LIMITS)
    assert [(large[f'/page/{name}'].bytes, large[f'/page/{name}'].patience) for name in ('video', 'register')] == [
        (7_000_000, 600),
        (200_000_000, 600),
    ]
    pages.video_bytes = 4_000_000_000
    assert pages.large(service.LIMITS)['/page/clip'].patience == 8000  # by half a megabyte a second
    assert not serve.pages_of(opts, kept, token=TOKEN)[0].reads  # it is for others, behind another server
    assert '--index' in serve.pages_of(opts, None)[1]
    milvus = argparse.Namespace(**{**vars(opts), 'index': 'http://host:19530'})
    assert '--page_dir' in serve.pages_of(milvus, kept)[1]
    own = argparse.Namespace(**{**vars(milvus), 'page_dir': tmp_path / 'own', 'host': '0.0.0.0'})
    pages, _ = serve.pages_of(own, kept)
    assert (pages.folder, pages.reads) == (tmp_path / 'own', False)
    for name in ('yolox', str(tmp_path / 'none.onnx')):
        with pytest.raises(Problem, match='there is no|pip install'):
            serve.pages_of(argparse.Namespace(**{**vars(opts), 'detector': name}), kept)


# ---------------------------------------------------------------------------------------------------------------------
# 9. in a browser


@pytest.fixture(scope='module')
def browser():
    api = pytest.importorskip('playwright.sync_api')
    path = next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)
    if path is None:
        pytest.skip('no chromium is installed')
    flags = ['--no-sandbox', '--disable-gpu', '--disable-background-networking']
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@pytest.fixture
def tab(client, browser):
    """A window as narrow as a phone, and all that it has asked for."""
    context = browser.new_context(base_url=str(client.base_url), viewport={'width': 360, 'height': 740}, locale='en')
    asked, faults = [], []
    context.on('request', lambda request: asked.append(request.url))
    context.on('weberror', lambda error: faults.append(str(error.error)))
    context.on('console', lambda message: faults.append(message.text) if message.type == 'error' else None)
    context.set_default_timeout(LONG * 1000)
    yield SimpleNamespace(context=context, page=context.new_page(), faults=faults)
    context.close()
    assert all(url.startswith((str(client.base_url), 'data:', 'blob:')) for url in asked), asked
    assert not faults


def fits(page):
    """Nothing sticks out to the right."""
    page.wait_for_load_state()
    return page.evaluate('document.documentElement.scrollWidth <= window.innerWidth')


def picture(name, content):
    return {'name': name, 'mimeType': 'image/png', 'buffer': content}


def test_a_browser_registers_searches_renames_and_removes(tab, kept):
    page = tab.page
    page.goto('/')
    page.get_by_role('link', name='Register somebody').click()
    page.get_by_label('Pictures').set_input_files(picture('a.png', coded(scene((1, 20, 30), (2, 200, 50)))))
    page.get_by_role('button', name='Continue').click()
    page.locator('rect').nth(1).click()  # into the picture
    assert page.get_by_role('radio', name='Person 2').is_checked()
    page.keyboard.press('ArrowLeft')  # and by keys
    assert page.get_by_role('radio', name='Person 1').is_checked()
    assert page.locator('rect.on').get_attribute('x') == '20'
    assert fits(page)
    page.get_by_label('Name').fill('<script>alert(1)</script>')
    page.keyboard.press('Enter')
    page.get_by_text('Registered.').wait_for()
    page.reload()  # it is done no second time
    np.testing.assert_allclose(kept.vectors([kept.find()[0].id])[0], f(body(1)), atol=1e-6)
    assert fits(page)

    page.goto('/page/search')
    page.get_by_label('Picture').set_input_files(picture('b.png', coded(body(1))))
    page.get_by_role('button', name='Continue').click()
    page.get_by_role('heading', name='<script>alert(1)</script>').wait_for()
    assert page.locator('tbody tr').count() == 1
    assert fits(page)
    with page.expect_download() as waited:
        page.get_by_role('link', name='Save as CSV').click()
    assert '1.0,<script>alert(1)</script>,yes' in Path(waited.value.path()).read_text(encoding='utf-8-sig')

    other = tab.context.new_page()  # a second tab
    other.goto('/page/people')
    page.goto('/page/people')
    page.get_by_role('link', name='Edit').click()
    page.get_by_label('Name').fill('Ann')
    page.get_by_role('button', name='Rename').click()
    page.get_by_role('heading', name='Ann').wait_for()
    other.get_by_role('link', name='Edit').click()  # of who is called otherwise now
    other.get_by_text('not any more').wait_for()
    assert tab.faults.pop().startswith('Failed to load resource: the server responded with a status of 404')
    page.get_by_role('link', name='Delete this person').click()
    page.get_by_role('button', name='Yes, delete').click()
    page.get_by_text('Deleted.').wait_for()
    assert kept.find() == []


def test_a_browser_sees_how_far_a_video_is(tab, film, kept):
    page = tab.page
    page.goto('/page/video')
    page.get_by_label('Videos and pictures').set_input_files({'name': 'a.mp4', 'mimeType': 'video/mp4', 'buffer': film})
    page.get_by_role('button', name='Start').click()
    page.get_by_text('Who was seen: 2').wait_for()  # by itself
    assert page.locator('tbody tr').count() == 2
    assert fits(page)
    moment = page.locator('td a.moment').first
    moment.evaluate("link => link.setAttribute('href', link.getAttribute('href').replace('t=0.0', 't=1.4'))")
    moment.click()
    player = page.locator('#player')
    assert player.evaluate('player => player.currentTime') >= 1.4
    wait_for(lambda: player.evaluate('player => player.ended'))  # it was played from there on
    assert player.evaluate('player => player.duration') == pytest.approx(3, abs=0.11)
    assert page.url.endswith(page.locator('a.danger').get_attribute('href').removesuffix('/remove'))  # no other page


def test_a_browser_sends_a_folder(tab, tmp_path):
    (tmp_path / 'walk').mkdir()
    for seed, name in enumerate(('a.png', 'b.png', 'notes.txt')):
        (tmp_path / 'walk' / name).write_bytes(coded(body(seed)) if name != 'notes.txt' else b'x')
    tab.page.goto('/page/video')
    tab.page.get_by_label('Or a folder').set_input_files(tmp_path / 'walk')
    tab.page.get_by_role('button', name='Start').click()
    tab.page.get_by_text('were left out: 1').wait_for()
    assert tab.page.get_by_role('link', name='walk/b.png').count() == 1
    assert fits(tab.page)


def test_a_browser_looks_for_a_frame_and_draws_the_people_in_it(tab, film, kept):
    page = tab.page
    page.goto('/page/register')
    video = {'name': 'a.mp4', 'mimeType': 'video/mp4', 'buffer': film}
    page.get_by_label('Video', exact=True).set_input_files(video)
    page.get_by_role('button', name='Look for a frame').click()
    page.get_by_label('Moment').wait_for()
    page.wait_for_load_state()  # with its script
    page.get_by_label('Moment').press('End')
    page.wait_for_url('**?at=3')
    page.get_by_role('link', name='−1 s').click()
    page.get_by_alt_text('The frame at 0:00:02').wait_for()
    assert fits(page)
    page.get_by_role('button', name='Choose somebody in this frame').click()
    page.locator('rect').nth(1).click()
    page.get_by_label('Name').fill('Bo')
    page.keyboard.press('Enter')
    page.get_by_text('Registered.').wait_for()
    assert float(kept.vectors([kept.find()[0].id])[0] @ f(body(2))) > 0.95


def test_a_browser_shows_the_colours_that_were_chosen(tab):
    page = tab.page
    seen = {}
    for system in ('light', 'dark'):
        page.emulate_media(color_scheme=system)
        for theme in ('auto', 'light', 'dark'):
            page.goto('/page/settings')
            page.get_by_label('Colours').select_option(theme)
            page.get_by_role('button', name='Save').click()
            page.get_by_text('Saved.').wait_for()
            page.wait_for_load_state()  # with its style sheet
            seen[system, theme] = page.evaluate('getComputedStyle(document.documentElement).backgroundColor')
    light, dark = seen['light', 'auto'], seen['dark', 'auto']
    assert light != dark
    assert seen['light', 'light'] == seen['dark', 'light'] == light
    assert seen['light', 'dark'] == seen['dark', 'dark'] == dark


def test_whoever_has_no_mouse_sees_where_he_is(tab):
    page = tab.page
    page.goto('/page/settings')
    names = []
    for _ in range(18):
        page.keyboard.press('Tab')
        name, width = page.evaluate(
            '[(document.activeElement.id || document.activeElement.textContent).trim(),'
            ' getComputedStyle(document.activeElement).outlineWidth]'
        )
        names.append(name)
        assert width == '3px', name
    assert names[:3] == ['To the content', 'Person re-ID', 'People']
    assert {'threshold', 'top', 'detector', 'every', 'renew', 'tracker', 'lang', 'theme', 'Save'} <= set(names)


def test_a_browser_logs_in_and_out(kept, browser, film):
    with page(kept, token=TOKEN) as client:
        context = browser.new_context(
            base_url=str(client.base_url), locale='zh-CN', viewport={'width': 375, 'height': 740}
        )
        tab = context.new_page()
        tab.goto('/page/settings')
        tab.get_by_label('令牌').fill('x')
        tab.keyboard.press('Enter')
        tab.get_by_text('令牌不正确').wait_for()
        tab.get_by_label('令牌').fill(TOKEN)
        tab.keyboard.press('Enter')
        tab.wait_for_url('**/page/settings')
        assert tab.evaluate('document.cookie') == ''  # no script reads it
        assert fits(tab)
        tab.get_by_role('link', name='登记').click()
        tab.get_by_label('图片').set_input_files(picture('a.png', coded(body(1))))
        tab.get_by_role('button', name='继续').click()
        tab.get_by_label('姓名').fill('安')
        tab.keyboard.press('Enter')
        tab.get_by_text('已登记').wait_for()
        tab.get_by_role('button', name='退出').click()
        tab.get_by_text('已退出登录').wait_for()
        tab.go_back()
        tab.reload()
        tab.get_by_label('令牌').wait_for()
        context.close()


def test_without_a_script_all_is_done_as_well(client, browser, kept, film):
    context = browser.new_context(base_url=str(client.base_url), java_script_enabled=False, locale='zh-CN')
    page = context.new_page()
    page.goto('/page/register')
    page.get_by_label('图片').set_input_files(picture('a.png', coded(scene((1, 20, 30), (2, 200, 50)))))
    page.get_by_role('button', name='继续').click()
    page.get_by_text('人物 2').click()
    page.get_by_label('姓名').fill('王小明')
    page.get_by_role('button', name='登记', exact=True).click()
    page.get_by_text('已登记').wait_for()
    np.testing.assert_allclose(kept.vectors([kept.find(name='王小明')[0].id])[0], f(body(2)), atol=1e-6)
    context.close()
