"""Frames in, frames out: a video, a folder of pictures, a camera or a stream; and videos to write.

    with frames.open('street.mp4') as source:    # or pictures/, or 0, the first camera, or rtsp://...
        for frame in source:
            frame.picture                        # uint8 (H, W, 3), RGB
    with frames.writer('out.mp4', source.fps, source.size) as write:
        write(picture)

OpenCV reads and writes the videos. It tells of hardly any fault, so what it does is checked here.
"""

import os
import re
import sys
import threading
import time
from collections import namedtuple
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from reid import data
from reid.datasets import is_picture
from reid.files import holds
from reid.problem import Problem

# number: the place in the source, from 0, so that gaps show. time: seconds since its first frame, always growing.
# clock: seconds since 1970 if it is live, else None.
Frame = namedtuple('Frame', 'number time picture clock', defaults=[None])

SCHEMES = ('rtsp', 'rtsps', 'http', 'https', 'rtmp', 'rtmps', 'srt', 'udp', 'rtp')
USUAL = 25.0  # frames a second, where nobody says
PAUSE, LONGEST = 0.5, 30.0  # seconds before a lost stream is tried again: at first, and at most
TIMEOUT = 10_000  # milliseconds that an address may take to answer, and to send a frame


def tell(sentence):
    """To stderr, around progress bars."""
    tqdm.write(sentence, file=sys.stderr)


def opencv():
    """It and its FFmpeg print what goes wrong, addresses with passwords too, unless told not to before the import."""
    os.environ.setdefault('OPENCV_LOG_LEVEL', 'SILENT')
    os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
    try:
        import cv2
    except ImportError as error:
        raise Problem(f'OpenCV is needed here ({error}): pip install "opencv-python-headless<5"') from None
    return cv2


# ---------------------------------------------------------------------------------------------------------------------
# 1. sources


class Source:
    """What open() gives: frames, once, in order. Known before the first one:

    name   for sentences: of an address neither the user nor the password;
    fps    how many frames a second are given, and count, how many in all (None: nobody knows), `every` included;
    size   (width, height) of the first frame. Others keep their own, should it change;
    live   a camera or a stream, which waits for nobody.

    close() may be called from any thread. It ends waiting at once, but not a read that is under way.
    """

    def __init__(self, name, frames, fps, count, live, realtime, stop, say):
        self.name, self.frames, self.fps, self.count, self.live = name, frames, fps, count, live
        self.realtime, self.stop, self.say, self.began = realtime and not live, stop, say, None
        self.first = next(frames, None)  # what is wrong with it shows here
        if self.first is None:
            raise Problem(f'{name} can be opened, but holds no frame that can be read')
        self.size = self.last_size = self.first.picture.shape[1::-1]

    def __iter__(self):
        return self

    def __next__(self):
        frame, self.first = self.first or next(self.frames), None
        if self.realtime:  # not before its time
            self.began = self.began or time.monotonic() - frame.time
            self.stop.wait(max(0, self.began + frame.time - time.monotonic()))
        size = frame.picture.shape[1::-1]
        if size != self.last_size:
            self.say(f'{self.name}: from frame {frame.number} on, frames are {size[0]} x {size[1]}')
            self.last_size = size
        return frame

    def close(self):
        self.stop.set()
        self.first = None
        with suppress(ValueError):  # another thread is in there, and ends by itself
            self.frames.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


def open(source, every=1, fps=None, realtime=False, patience=60, say=tell):
    """A video, a folder of pictures or one of them, a camera's number or an address -> Source.

    every: only each n-th frame is given. fps: of a folder; a video has its own. realtime: a file is given at its own
    pace, as a camera would. patience: seconds that a camera or a stream may be away before it is given up. say is told,
    in a sentence, of what need not end the work.

    What lies there as a file is one, whatever its name, and OpenCV gets its absolute path: no name is taken for an
    address.
    """
    name, text, stop = shown(source), str(source), threading.Event()
    path = os.path.abspath(os.path.expanduser(text))
    here = text != '' and os.path.exists(path)
    if here and (os.path.isdir(path) or is_picture(path)):
        paths, fps, live = listed(Path(path)), fps or USUAL, False
        frames, count = pictures(paths, every, fps, stop, say), len(paths)
    else:
        again = partial(connect, path if here else address(text))
        video = again()
        count, fps = known(video)
        live = not here and (text.isdecimal() or count is None)  # an address may be that of a file
        if live:
            count, frames = None, streamed(video, again, name, every, patience, stop, say)
        else:
            frames = recorded(video, name, every, fps, count, stop, say)
    count = count and -(-count // every)  # rounded up
    return Source(name, frames, fps / every, count, live, realtime, stop, say)


def shown(source):
    """How sentences call it: of an address neither user and password nor what may be their place, a=b or what follows
    a question mark."""
    text = str(source)
    if '://' not in text:
        return f'camera {text}' if text.isdecimal() and not os.path.exists(text) else text
    return re.split(r'[?#]|/[^/?#]*=', re.sub('://.*@', '://', text, flags=re.S))[0]


def address(text):
    """What is not there as a file, as OpenCV takes it."""
    if text.isdecimal():
        return int(text)
    if text.startswith(tuple(f'{scheme}://' for scheme in SCHEMES)):
        return text
    raise Problem(
        f'{shown(text)}: there is no such file or folder. A video, a folder of pictures, the number of a camera (the '
        f'first is 0) or an address ({", ".join(SCHEMES)}) is expected'
    )


def natural(path):
    """A key for sorting that puts 2.jpg before 10.jpg."""
    return [int(part) if part.isdecimal() else part for part in re.split(r'(\d+)', path.name.lower())]


def listed(path):
    if path.is_file():
        return [path]
    found = sorted(filter(is_picture, path.iterdir()), key=natural)
    if not found:
        raise Problem(f'{path}: pictures are expected in this folder, found {holds(path)}')
    return found


def pictures(paths, every, fps, stop, say):
    """Frames of a folder; those that cannot be read are left out."""
    for number in range(0, len(paths), every):
        if stop.is_set():
            return
        try:
            picture = np.array(data.read(paths[number]))
        except Problem as problem:
            say(f'skipped: {problem}')
        else:
            yield Frame(number, number / fps, picture)


# ---------------------------------------------------------------------------------------------------------------------
# 2. by OpenCV


def connect(where):
    cv2 = opencv()
    if isinstance(where, int):
        return cv2.VideoCapture(where)
    limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT]
    return cv2.VideoCapture(where, cv2.CAP_FFMPEG, limits)  # FFmpeg alone: others see patterns in names


def known(video):
    """What it says of itself -> frames (None: it does not know), frames a second."""
    cv2 = opencv()
    count, fps = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
    return int(count) if 0 < count < 1e9 else None, fps if 0 < fps <= 1000 else USUAL


def bounded(size, most):
    width, height = size
    if width * height > most:
        raise Problem(f'a frame has {width:.0f} x {height:.0f} pixels: that is more than is read here')


def rgb(picture):
    return opencv().cvtColor(picture, opencv().COLOR_BGR2RGB)


def recorded(video, name, every, fps, count, stop, say):
    """Frames of a file, upright. Times are the container's, for frames need not be evenly spaced; where they do not
    grow, one frame's time goes by."""
    cv2 = opencv()
    if not video.isOpened():
        raise Problem(f'{name} is not a video that can be read, or one that was cut off before its index was written')
    try:
        number, start, before = 0, None, 0
        while not stop.is_set():
            found, picture = video.read()
            if not found:
                break
            now = video.get(cv2.CAP_PROP_POS_MSEC) / 1000
            start = now if start is None else start
            before = now - start if now - start > before or not number else before + 1 / fps
            if number % every == 0:
                yield Frame(number, before, rgb(picture))
            number += 1
        # What a container says is an estimate in some: a frame or 1 % is not worth a word.
        if number and count and not stop.is_set() and count - number > max(1, count / 100):
            say(f'{name} ends after {number} of {count} frames: it was cut off, or is damaged there')
    finally:
        video.release()


def still(path, seconds, most):
    """The frame of a video at a time, or the last one before it -> the picture, how long the video is (None: nobody
    knows), frames a second. most: pixels that are read."""
    cv2, video = opencv(), connect(os.path.abspath(path))
    try:
        count, fps = known(video)
        width, height = video.get(cv2.CAP_PROP_FRAME_WIDTH), video.get(cv2.CAP_PROP_FRAME_HEIGHT)
        bounded((width, height), most)
        place = min(round(seconds * fps), count - 1 if count else 10**9)
        for earlier in (0, 1, 10, 100, place):  # how many frames there are is an estimate
            video.set(cv2.CAP_PROP_POS_FRAMES, max(0, place - earlier))
            found, picture = video.read()
            if found:
                return rgb(picture), count and count / fps, fps
        raise Problem(f'{path} is not a video that can be read, or one that was cut off before its index was written')
    finally:
        video.release()


def streamed(video, again, name, every, patience, stop, say):
    """Frames of a camera or a stream, which may fall silent: then again() is tried, less and less often. Time goes on
    meanwhile."""
    number, began, lost, pause = 0, None, None, PAUSE
    while not stop.is_set():
        try:
            while not stop.is_set():
                found, picture = video.read()
                if not found:
                    break
                now = time.monotonic()
                began = now if began is None else began
                if lost is not None:
                    say(f'{name} is back after {now - lost:.0f} s')
                    lost, pause = None, PAUSE
                if number % every == 0:
                    yield Frame(number, now - began, rgb(picture), time.time())
                number += 1
        finally:
            video.release()
        if began is None:
            raise Problem(f"{name} sends no frame: is it there, switched on, and in nobody else's use?")
        if lost is None:
            lost = time.monotonic()
            say(f'{name} has fallen silent: it is tried again for {patience} s')
        if time.monotonic() - lost >= patience:
            raise Problem(f'{name} has been silent for {patience} s: it is given up')
        stop.wait(pause)
        pause = min(2 * pause, LONGEST)
        video = again()


# ---------------------------------------------------------------------------------------------------------------------
# 3. to a size, and to a file


def fit(picture, size, fill=0, centre=True):
    """A picture scaled into size (width, height), the rest filled up -> that picture, and the box (left, top, right,
    bottom) that the old one takes in it. Not centred, it is in the upper left corner."""
    height, width = picture.shape[:2]
    scale = min(size[0] / width, size[1] / height)
    inner = max(1, round(width * scale)), max(1, round(height * scale))
    left, top = ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2) if centre else (0, 0)
    box = left, top, left + inner[0], top + inner[1]
    if inner != (width, height):  # torch is here, without OpenCV too, and six times as fast as Pillow
        x = torch.from_numpy(np.require(picture, None, 'CW')).permute(2, 0, 1)[None]  # (1, 3, H, W)
        picture = F.interpolate(x, inner[::-1], mode='bilinear', antialias=True)[0].permute(1, 2, 0).numpy()
    if inner == tuple(size):
        return picture, box
    whole = np.full((size[1], size[0], 3), fill, np.uint8)
    whole[top : box[3], left : box[2]] = picture
    return whole, box


# By preference: browsers play avc1, which few OpenCVs can write, and VP8, which takes ten times as long as mp4v. OpenCV
# says that its tag is not supported, and writes it all the same.
CODECS = {'.mp4': ('avc1', 'mp4v'), '.avi': ('MJPG',), '.webm': ('VP80',)}
WRITTEN = ', '.join(CODECS)
PACE, AREA = 10, 640 * 480  # of a film for a browser, at most: frames a second; pixels
STILL = 60  # seconds that it stands still at most


@contextmanager
def writer(path, fps, size):
    """`with writer('out.mp4', 25, (640, 480)) as write: write(picture)`, uint8 (H, W, 3), RGB. Pictures of another size
    are scaled into this one. OpenCV does not tell if a disk is full: what was written is read again before it gets its
    name."""
    path = Path(path)
    if path.suffix.lower() not in CODECS:
        raise Problem(f'{path}: videos are written as {WRITTEN}')
    if not path.parent.is_dir():
        raise Problem(f'{path}: there is no folder {path.parent}')
    temporary = path.with_name(f'{path.stem}.part{path.suffix}')
    try:
        video, count = begun(temporary, fps, size), 0
        if video is None:
            raise Problem(f'{path} cannot be written: may this folder be written to, and does OpenCV have FFmpeg?')

        def write(picture):
            nonlocal count
            video.write(rgb(np.ascontiguousarray(fit(picture, size)[0])))  # to BGR: it swaps the two
            count += 1

        try:
            yield write
        finally:
            video.release()
        if not count:
            raise Problem(f'{path}: there was no frame to write')
        if not complete(temporary, count):
            raise Problem(f'{path} could not be written to its end: is the disk full? Or try another of {WRITTEN}')
        os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def browsable(path, fps, size):
    """`with browsable('out.webm', 25, (1920, 1080)) as write: write(picture, time)`: a video that browsers play, small
    enough to be made on the way. Each picture is shown at its time, in seconds from 0."""
    pace, scale = min(PACE, fps), min(1, (AREA / (size[0] * size[1])) ** 0.5)
    with writer(path, pace, [max(2, round(side * scale / 2) * 2) for side in size]) as write_frame:
        count = 0

        def write(picture, time):
            nonlocal count
            for _ in range(min(round(time * pace) + 1 - count, round(STILL * pace))):
                write_frame(picture)
                count += 1

        yield write


def able(path):
    """Can videos of this name be written here? Not every OpenCV has every codec."""
    video = begun(path, 10, (64, 64))
    if video is not None:
        video.release()
        path.unlink(missing_ok=True)
    return video is not None


def begun(path, fps, size):
    """OpenCV's writer, or None."""
    cv2, name = opencv(), str(path.absolute())
    for codec in CODECS[path.suffix.lower()]:
        video = cv2.VideoWriter(name, cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), fps, tuple(map(int, size)))
        if video.isOpened():
            return video
    return None


def complete(path, count):
    """Whether a video has so many frames, and the last of them can be seen."""
    cv2 = opencv()
    video = connect(str(path.absolute()))
    try:
        video.set(cv2.CAP_PROP_POS_FRAMES, count - 1)
        return known(video)[0] == count and video.read()[0]
    finally:
        video.release()
