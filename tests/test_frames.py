"""Frames out of videos, folders and cameras, and into videos: python -m pytest tests/test_frames.py"""

import functools
import http.server
import io
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from reid import frames
from reid.problem import Problem

try:
    cv2 = frames.opencv()
    cv2.setNumThreads(1)
except Problem as problem:
    pytest.skip(str(problem), allow_module_level=True)

SIZE = (128, 64)  # width, height


def drawn(number, size=SIZE):
    """A frame that shows its number: eight squares, white for 1, on red; blue in its lower right corner."""
    picture = np.zeros((size[1], size[0], 3), np.uint8)
    picture[:, :, 0] = 200
    for bit in range(8):
        picture[:16, bit * 16 : bit * 16 + 16] = 255 * (number >> bit & 1)
    picture[-16:, -16:] = 0, 0, 200
    return picture


def number(picture):
    assert np.abs(picture[40, 40].astype(int) - [200, 0, 0]).max() < 30, 'red'
    assert np.abs(picture[-8, -8].astype(int) - [0, 0, 200]).max() < 40, 'blue'
    return sum(int(picture[8, bit * 16 + 8].mean() > 128) << bit for bit in range(8))


def write(path, count=20, fps=10, size=SIZE):
    """By OpenCV itself."""
    codec = {'.avi': 'MJPG', '.mp4': 'mp4v'}[os.path.splitext(path)[1]]
    video = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), fps, size)
    for i in range(count):
        video.write(np.ascontiguousarray(drawn(i, size)[:, :, ::-1]))
    video.release()
    return path


def numbers(source):
    return [number(frame.picture) for frame in source]


@pytest.fixture
def said():
    return []


# ---------------------------------------------------------------------------------------------------------------------
# 1. files


@pytest.mark.parametrize('ending', ['avi', 'mp4'])
def test_a_video_gives_each_frame_once_in_order_and_in_rgb(tmp_path, ending, said):
    with frames.open(write(tmp_path / f'v.{ending}'), say=said.append) as source:
        assert (source.fps, source.count, source.size, source.live) == (10, 20, SIZE, False)
        assert source.name == str(tmp_path / f'v.{ending}')
        found = list(source)
    assert [number(frame.picture) for frame in found] == [frame.number for frame in found] == list(range(20))
    np.testing.assert_allclose([frame.time for frame in found], np.arange(20) / 10, atol=1e-6)
    assert all(frame.clock is None and frame.picture.dtype == np.uint8 for frame in found)
    assert not said


def test_every_third_frame(tmp_path):
    source = frames.open(write(tmp_path / 'v.avi'), every=3)
    assert (source.count, source.fps) == (7, 10 / 3)
    found = list(source)
    assert [number(frame.picture) for frame in found] == [frame.number for frame in found] == list(range(0, 20, 3))
    np.testing.assert_allclose([frame.time for frame in found], np.arange(0, 20, 3) / 10, atol=1e-6)


def test_a_video_that_was_cut_off_gives_what_there_is(tmp_path, said):
    path = write(tmp_path / 'v.avi', 40)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = [frame.picture for frame in frames.open(path, say=said.append)]
    assert 5 < len(found) < 40
    assert [number(picture) for picture in found[:-1]] == list(range(len(found) - 1))  # the last one may be torn
    assert said == [f'{path} ends after {len(found)} of 40 frames: it was cut off, or is damaged there']


@pytest.mark.parametrize('kind', ['text', 'nothing', 'no index'])
def test_what_is_not_a_video_is_a_sentence(tmp_path, capfd, kind):
    path = write(tmp_path / 'v.mp4')  # its index is at the end
    path.write_bytes({'text': b'Hello\n' * 1000, 'nothing': b'', 'no index': path.read_bytes()[:-500]}[kind])
    with pytest.raises(Problem, match=r'v\.mp4 is not a video that can be read, or one that was cut off'):
        frames.open(path)
    assert capfd.readouterr() == ('', '')  # nor does OpenCV print anything


def test_a_video_without_frames_is_a_sentence(tmp_path):
    head = matroska([])
    (tmp_path / 'v.mkv').write_bytes(head)
    with pytest.raises(Problem, match=r'v\.mkv (is not a video|can be opened, but holds no frame)'):
        frames.open(tmp_path / 'v.mkv')


def test_a_video_is_upright(tmp_path):
    """A phone held upright writes lying frames, and in the track's matrix that they are to be turned by 90 degrees."""
    path = write(tmp_path / 'v.mp4')
    content = bytearray(path.read_bytes())
    at = content.index(b'tkhd') + 44
    fixed = np.frombuffer(content, '>i4', 9, at).tolist()
    assert fixed == [1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30]
    content[at : at + 36] = np.array([0, 1 << 16, 0, -(1 << 16), 0, 0, SIZE[1] << 16, 0, 1 << 30], '>i4').tobytes()
    path.write_bytes(content)
    source = frames.open(path)
    assert source.size == SIZE[::-1]
    assert [number(np.rot90(frame.picture)) for frame in source] == list(range(20))


def matroska(times):
    """A video of JPEGs at any times (ms), byte by byte: OpenCV writes evenly spaced ones only."""

    def element(identity, content):
        return bytes.fromhex(identity) + (len(content) | 1 << 56).to_bytes(8, 'big') + content

    def jpeg(i):
        file = io.BytesIO()
        Image.fromarray(drawn(i)).save(file, 'JPEG', quality=95)
        return file.getvalue()

    picture = element('b0', SIZE[0].to_bytes(2, 'big')) + element('ba', SIZE[1].to_bytes(2, 'big'))
    track = element('d7', b'\1') + element('73c5', b'\1') + element('83', b'\1') + element('86', b'V_MJPEG')
    blocks = [element('a3', b'\x81' + ms.to_bytes(2, 'big') + b'\x80' + jpeg(i)) for i, ms in enumerate(times)]
    tracks = element('1654ae6b', element('ae', track + element('e0', picture)))
    cluster = element('1f43b675', element('e7', b'\0') + b''.join(blocks))
    return element('1a45dfa3', element('4282', b'matroska')) + element('18538067', tracks + cluster)


def test_times_are_those_of_the_container(tmp_path):
    times = [40, 80, 120, 620, 640, 2640]
    (tmp_path / 'v.mkv').write_bytes(matroska(times))
    found = list(frames.open(tmp_path / 'v.mkv'))
    assert [number(frame.picture) for frame in found] == list(range(6))
    np.testing.assert_allclose([frame.time for frame in found], [(ms - 40) / 1000 for ms in times], atol=1e-6)


# What is a file is never an address, a camera or a pattern.
NAMES = ['0', '-', 'concat:a.avi|b.avi', 'http:', 'file:v.avi', '%03d.avi', 'v 1.avi', '视频.avi', 'rtsp:v.avi']


@pytest.mark.skipif(os.name == 'nt', reason='Windows has no such names')
@pytest.mark.parametrize('name', NAMES)
def test_a_file_is_a_file_whatever_its_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    os.rename(write(tmp_path / 'x.avi', 5), name)
    source = frames.open(name)
    assert (source.name, source.live, numbers(source)) == (name, False, [0, 1, 2, 3, 4])


@pytest.mark.parametrize('name', [*NAMES[1:], 'concat:/etc/hosts', 'v.avi', '', 'pipe:0', 'data:video/avi;base64,AA'])
def test_what_is_nothing_is_a_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem, match='there is no such file or folder'):
        frames.open(name)


def test_a_playlist_in_a_file_reaches_for_no_address(tmp_path, server):
    for name in ('v.m3u8', 'v.avi'):
        lines = ['#EXTM3U', '#EXT-X-TARGETDURATION:1', '#EXTINF:1,', f'{server.url}/v.ts', '#EXT-X-ENDLIST']
        (tmp_path / name).write_text('\n'.join(lines))
        with pytest.raises(Problem):
            frames.open(tmp_path / name)
    assert not server.asked


# ---------------------------------------------------------------------------------------------------------------------
# 2. folders


def test_a_folder_comes_in_natural_order_each_picture_in_its_size(tmp_path, said):
    order = ['img1.png', 'img2.png', 'img10.png', 'x.PNG']
    for i, name in enumerate(order):
        Image.fromarray(drawn(i, (128 + 2 * (i == 3), 64))).save(tmp_path / name)
    (tmp_path / 'notes.txt').write_text('not a picture')
    (tmp_path / 'img5.png').write_bytes(b'neither')
    source = frames.open(tmp_path, fps=2, say=said.append)
    assert (source.fps, source.count, source.size) == (2, 5, SIZE)
    found = list(source)
    assert [number(frame.picture) for frame in found] == [0, 1, 2, 3]
    assert [frame.number for frame in found] == [0, 1, 3, 4]  # a gap, where one could not be read
    assert [frame.time for frame in found] == [0, 0.5, 1.5, 2]
    assert found[3].picture.shape == (64, 130, 3)
    assert said == [
        f'skipped: {tmp_path / "img5.png"} is not a picture that can be read',
        f'{tmp_path}: from frame 4 on, frames are 130 x 64',
    ]
    assert [frame.number for frame in frames.open(tmp_path, every=3, say=said.append)] == [0, 3]


def test_one_picture_is_a_folder_of_one(tmp_path):
    Image.fromarray(drawn(7)).save(tmp_path / '%d.png')
    source = frames.open(tmp_path / '%d.png')
    assert (source.count, numbers(source)) == (1, [7])


def test_a_folder_without_pictures_is_a_sentence(tmp_path):
    (tmp_path / 'a.txt').touch()
    with pytest.raises(Problem, match='pictures are expected in this folder, found a.txt'):
        frames.open(tmp_path)
    (tmp_path / 'a.png').touch()
    with pytest.raises(Problem, match='holds no frame that can be read'):
        frames.open(tmp_path, say=str)


# ---------------------------------------------------------------------------------------------------------------------
# 3. time


class Event:
    """Whoever waits for it makes time pass, and it is written down how much."""

    now, waits = 0.0, None

    def __init__(self):
        self.over = False

    def is_set(self):
        return self.over

    def set(self):
        self.over = True

    def wait(self, seconds):
        Event.waits.append(round(seconds, 3))
        Event.now += seconds


@pytest.fixture
def clock(monkeypatch):
    """No test waits: time passes where the code waits, and in Camera.read."""
    monkeypatch.setattr(Event, 'now', 1000.0)
    monkeypatch.setattr(Event, 'waits', [])
    monkeypatch.setattr(frames, 'threading', SimpleNamespace(Event=Event))
    monkeypatch.setattr(frames, 'time', SimpleNamespace(monotonic=lambda: Event.now, time=lambda: Event.now + 1e9))
    return Event


def test_realtime_gives_a_file_at_its_own_pace(tmp_path, clock):
    source = frames.open(write(tmp_path / 'v.avi', 4), realtime=True)
    for frame in source:
        Event.now += 0.03 if frame.number < 2 else 0.25  # the work that is done with it
    assert clock.waits == [0, 0.07, 0.07, 0]  # 0.1 - 0.03 twice; then it is late


class Camera:
    """Stands in for cv2.VideoCapture: tenths of seconds between frames, or those of `times` (ms)."""

    def __init__(self, left, count=0, times=None):
        self.left, self.count, self.times, self.released = left, count, list(times or []), False

    def isOpened(self):
        return self.left > 0

    def get(self, what):
        if what == cv2.CAP_PROP_POS_MSEC:
            return self.times[len(self.times) - self.left - 1]
        return {cv2.CAP_PROP_FPS: 10, cv2.CAP_PROP_FRAME_COUNT: self.count}[what]

    def read(self):
        assert not self.released
        if not self.left:
            return False, None
        self.left -= 1
        Event.now += 0.1
        return True, drawn(int(Event.now))[:, :, ::-1].copy()

    def release(self):
        self.released = True


def test_a_stream_that_falls_silent_is_tried_again_and_time_goes_on(monkeypatch, clock, said):
    made = [Camera(n) for n in (3, 0, 0, 0, 2, 0, 1, *[0] * 20)]
    left = list(made)
    monkeypatch.setattr(frames, 'connect', lambda where: left.pop(0))
    source = frames.open('rtsp://admin:secret@door:554/live?token=secret', patience=10, say=said.append)
    assert (source.live, source.count, source.fps, source.name) == (True, None, 10, 'rtsp://door:554/live')
    found = []
    with pytest.raises(Problem, match='rtsp://door:554/live has been silent for 10 s: it is given up'):
        for frame in source:
            found.append(frame)
    assert clock.waits == [0.5, 1, 2, 4, 0.5, 1, 0.5, 1, 2, 4, 8]  # seconds, anew after each return
    # 3 frames; 7.5 s of waiting; 2 frames; 1.5 s; 1 frame
    np.testing.assert_allclose([frame.time for frame in found], [0, 0.1, 0.2, 7.8, 7.9, 9.5], atol=1e-6)
    assert [frame.number for frame in found] == list(range(6))
    np.testing.assert_allclose([frame.clock for frame in found], [1e9 + 1000.1 + frame.time for frame in found])
    assert [sentence.split('live ')[1] for sentence in said] == [
        'has fallen silent: it is tried again for 10 s',
        'is back after 8 s',
        'has fallen silent: it is tried again for 10 s',
        'is back after 2 s',
        'has fallen silent: it is tried again for 10 s',
    ]
    assert all(camera.released for camera in made[: len(made) - len(left)])


def test_a_camera_that_is_not_there_is_a_sentence(monkeypatch, clock):
    asked = []
    monkeypatch.setattr(frames, 'connect', lambda where: asked.append(where) or Camera(0))
    with pytest.raises(Problem, match='camera 3 sends no frame'):
        frames.open('3')
    assert asked == [3]


def test_close_ends_waiting_for_a_stream(monkeypatch):
    """From another thread, as a pipeline does. The camera is silent for ever; without close(), a day."""
    cameras = [Camera(1)]
    monkeypatch.setattr(frames, 'connect', lambda where: cameras.pop() if cameras else Camera(0))
    monkeypatch.setattr(frames, 'PAUSE', 86400)
    waits = threading.Event()
    source = frames.open(0, patience=1e6, say=lambda sentence: waits.set())
    thread = threading.Thread(target=list, args=(source,), daemon=True)
    thread.start()
    assert waits.wait(20)
    source.close()
    thread.join(20)
    assert not thread.is_alive()


def test_times_always_grow(monkeypatch, clock):
    """Some containers say 0 for all, some go back."""
    for times, expected in [
        ([0, 0, 0], [0, 0.1, 0.2]),
        ([500, 400, 900, 900], [0, 0.1, 0.4, 0.5]),
        ([0, 1000, 0, 0, 5000], [0, 1, 1.1, 1.2, 5]),
    ]:
        monkeypatch.setattr(frames, 'connect', lambda where, times=times: Camera(len(times), len(times), times))
        found = [frame.time for frame in frames.open('http://x/v.mp4')]
        np.testing.assert_allclose(found, expected, atol=1e-9)


# ---------------------------------------------------------------------------------------------------------------------
# 4. addresses


@pytest.fixture
def server(tmp_path):
    """A web server of the folder, on this machine."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, form, *words):
            asked.append(form % words)

    made = http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(Handler, directory=str(tmp_path)))
    made.asked, made.url = asked, f'http://127.0.0.1:{made.server_port}'
    thread = threading.Thread(target=made.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


def test_a_video_behind_an_address_has_an_end(tmp_path, server):
    write(tmp_path / 'v.avi', 5)
    source = frames.open(f'{server.url}/v.avi')
    assert (source.live, source.count, numbers(source)) == (False, 5, [0, 1, 2, 3, 4])


def test_passwords_are_never_shown(server, capfd):
    secret = f'http://admin:secret@{server.url[7:]}/none.avi?key=secret'
    with pytest.raises(Problem) as raised:
        frames.open(secret)
    assert 'secret' not in str(raised.value) and '/none.avi sends no frame' in str(raised.value)
    assert server.asked
    assert 'secret' not in ''.join(capfd.readouterr())
    for address, name in [
        ('rtsp://u:p@h:554/a/b', 'rtsp://h:554/a/b'),
        ('rtsp://u:p/@:?#w@h/a', 'rtsp://h/a'),
        ('rtsp://h/user=admin_password=secret_channel=1', 'rtsp://h'),
        ('http://h/v.mp4?token=secret', 'http://h/v.mp4'),
        ('rtps://u:p@h/a', 'rtps://h/a'),
    ]:
        assert frames.shown(address) == name
    with pytest.raises(Problem, match='^rtps://h/a: there is no such file'):
        frames.open('rtps://u:p@h/a')


# ---------------------------------------------------------------------------------------------------------------------
# 5. to a size, and to a file


@pytest.mark.parametrize('centre', [True, False])
@pytest.mark.parametrize('size', [(60, 60), (30, 99), (200, 50), (100, 50)])
def test_what_is_fitted_keeps_its_shape(size, centre):
    picture = np.full((50, 100, 3), 200, np.uint8)
    whole, (left, top, right, bottom) = frames.fit(picture, size, 7, centre)
    assert whole.shape == (size[1], size[0], 3)
    assert abs((right - left) / (bottom - top) - 2) < 0.1
    assert (right - left, bottom - top)[size[0] / size[1] >= 2] == (size[0], size[1])[size[0] / size[1] >= 2]
    inside = np.zeros(whole.shape[:2], bool)
    inside[top:bottom, left:right] = True
    assert (whole[inside] == 200).all() and (whole[~inside] == 7).all()
    margins = [left, top, size[0] - right, size[1] - bottom]
    assert abs(margins[0] - margins[2]) + abs(margins[1] - margins[3]) <= 1 if centre else margins[:2] == [0, 0]


def test_pictures_are_scaled_as_pillow_does():
    noise = np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)
    expected = np.asarray(Image.fromarray(noise).resize((80, 40), Image.Resampling.BILINEAR))
    found, _ = frames.fit(noise, (80, 40))
    assert np.abs(found.astype(int) - expected).max() <= 1


@pytest.mark.parametrize('ending', ['avi', 'mp4', 'MP4'])
def test_what_is_written_is_read_again(tmp_path, ending):
    path = tmp_path / f'v.{ending}'
    path.write_bytes(b'older')
    with frames.writer(path, 12.5, SIZE) as write:
        for i in range(10):
            write(drawn(i) if i != 4 else np.full((32, 128, 3), 255, np.uint8))  # of another size
        assert path.read_bytes() == b'older'
    assert os.listdir(tmp_path) == [path.name]
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert video.get(cv2.CAP_PROP_FPS) == 12.5
    found = [video.read()[1][:, :, ::-1] for _ in range(10)]
    assert not video.read()[0]
    assert [number(picture) for i, picture in enumerate(found) if i != 4] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert found[4][20:44].min() > 230 and found[4][:12].max() < 30 and found[4][52:].max() < 30  # in the middle


def test_a_video_is_complete_with_all_its_frames(tmp_path):
    path = write(tmp_path / 'v.avi', 20)
    assert [frames.complete(path, count) for count in (19, 20, 21)] == [False, True, False]


def test_a_video_is_whole_or_not_there(tmp_path):
    path = tmp_path / 'v.avi'
    path.write_bytes(b'older')
    with pytest.raises(KeyError), frames.writer(path, 10, SIZE) as write:
        write(drawn(0))
        raise KeyError
    with pytest.raises(Problem, match='there was no frame to write'), frames.writer(path, 10, SIZE):
        pass
    assert os.listdir(tmp_path) == ['v.avi'] and path.read_bytes() == b'older'
    for wrong, words in [
        (tmp_path / 'v.gif', 'videos are written as .mp4, .avi'),
        (tmp_path / 'a' / 'v.mp4', 'there is no folder'),
    ]:
        with pytest.raises(Problem, match=words), frames.writer(wrong, 10, SIZE):
            pass


@pytest.mark.parametrize('ending', ['avi', 'mp4'])
def test_a_full_disk_is_a_sentence(tmp_path, ending):
    """No file may grow beyond 40 kB meanwhile. OpenCV takes each frame as if nothing were wrong."""
    resource = pytest.importorskip('resource')
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    noise = np.random.default_rng(0)
    video = frames.writer(tmp_path / f'v.{ending}', 10, (64, 64))
    write = video.__enter__()
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, before[1]))
    try:
        for _ in range(60):
            write(noise.integers(0, 256, (64, 64, 3), np.uint8))
        with pytest.raises(Problem, match='could not be written to its end: is the disk full?'):
            video.__exit__(None, None, None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not os.listdir(tmp_path)


def test_what_browsers_play_shows_each_picture_at_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(frames, 'STILL', 2)
    path, times = tmp_path / 'v.webm', [0, 0.04, 0.08, 0.5, 1.2, 1.24, 500]
    if not frames.able(path):
        pytest.skip('this OpenCV writes no VP8')
    assert not os.listdir(tmp_path)  # it was tried out
    with frames.browsable(path, 25, (1280, 961)) as write:
        for step, time in enumerate(times):
            write(np.full((961, 1280, 3), 30 * step + 20, np.uint8), time)
    assert path.read_bytes()[:4] == b'\x1aE\xdf\xa3'
    source = frames.open(path)
    assert (source.fps, source.size) == (10, (640, 480))
    shown = [int(frame.picture[200, 300, 0]) // 30 for frame in source]
    # Tenths of seconds; and an end to them, whatever a container says of its times.
    assert shown == [0, 2] + [3] * 4 + [4] * 7 + [6] * 20


@pytest.mark.parametrize('ending', ['avi', 'mp4'])
def test_a_frame_is_that_of_its_time(tmp_path, ending):
    path = tmp_path / f'v.{ending}'
    with frames.writer(path, 10, (64, 48)) as save:
        for i in range(40):
            save(np.full((48, 64, 3), 6 * i, np.uint8))
    for seconds, expected in [(0, 0), (0.1, 1), (1.7, 17), (3.9, 39), (4, 39), (5.5, 39), (99, 39)]:
        picture, length, fps = frames.still(path, seconds, 64 * 48)
        assert abs(picture.mean() / 6 - expected) < 0.8 and (length, fps) == (4, 10), seconds
    with pytest.raises(Problem, match='64 x 48 pixels'):
        frames.still(path, 0, 64 * 48 - 1)
    (tmp_path / 'x').write_bytes(b'x')
    with pytest.raises(Problem, match='is not a video'):
        frames.still(tmp_path / 'x', 0, 99)


def test_what_opencv_cannot_write_is_known(tmp_path, monkeypatch):
    monkeypatch.setitem(frames.CODECS, '.webm', ('????',))
    assert not frames.able(tmp_path / 'v.webm') and not os.listdir(tmp_path)


@pytest.mark.skipif(not hasattr(os, 'getuid') or os.getuid() == 0, reason='root may write anywhere')
def test_a_folder_that_may_not_be_written_to_is_a_sentence(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(Problem, match='cannot be written'), frames.writer(tmp_path / 'v.avi', 10, SIZE):
        pass


def test_without_opencv_pictures_are_read_and_videos_are_a_sentence(tmp_path, monkeypatch):
    path = write(tmp_path / 'v.avi', 2)
    Image.fromarray(drawn(1)).save(tmp_path / 'a.png')
    monkeypatch.setitem(sys.modules, 'cv2', None)
    assert numbers(frames.open(tmp_path)) == [1]
    with pytest.raises(Problem, match='pip install "opencv-python-headless<5"'):
        frames.open(path)
    with pytest.raises(Problem, match='pip install'), frames.writer(tmp_path / 'b.mp4', 10, SIZE):
        pass
