"""Pictures from the tree that prepare.py makes: pytorch/{train,val,train_all,query,gallery,multi-query}/<id>/."""

import io
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision import transforms as T
from torchvision.datasets import ImageFolder

from reid.cli import quote
from reid.datasets import PARTS, cameras, is_picture, numbered
from reid.files import holds
from reid.machine import cores
from reid.problem import Problem

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which the pretrained backbones expect

# Paths as strings, identities as folder names, cameras as an int array: three of one length, in ImageFolder's order.
People = namedtuple('People', 'paths ids cams')


# ---------------------------------------------------------------------------------------------------------------------
# 1. folders


def tree(data_dir, parts):
    """The prepared tree in data_dir (the raw folder or its pytorch/), made sure to hold `parts`."""
    data_dir = Path(data_dir).expanduser()
    for root in (data_dir, data_dir / 'pytorch'):
        if all((root / part).is_dir() for part in parts):
            return root
    if not data_dir.is_dir():
        raise Problem(
            f'{data_dir}: there is no such folder. python prepare.py makes one (--dataset toy: without a download)'
        )
    root = data_dir / 'pytorch' if (data_dir / 'pytorch').is_dir() else data_dir
    advice = ''
    if not any((root / part).is_dir() for part in PARTS if part != 'query'):  # which raw Market has as well
        advice = f'. If this is a raw data set: python prepare.py --data_dir {quote(data_dir)}'
    raise Problem(f'{root}: folders {", ".join(parts)} are expected, found {holds(root)}{advice}')


def people(root, part, least=1):
    """All pictures of one part of the tree, as People."""
    try:
        samples = ImageFolder(str(root / part), is_valid_file=is_picture, allow_empty=True).samples
    except FileNotFoundError:  # no folder inside
        samples = []
    if len(samples) < least:
        raise Problem(f'{root / part} holds no pictures: <id>/<picture> is expected, found {holds(root / part)}')
    paths = [path for path, _ in samples]
    camera = cameras(root)
    ids = [Path(path).relative_to(root / part).parts[0] for path in paths]
    return People(paths, ids, np.array([camera(Path(path).name) for path in paths], np.int64))


def choose(people, indices):
    """Some of the people, by position."""
    return People([people.paths[i] for i in indices], [people.ids[i] for i in indices], people.cams[indices])


def relative(path, root):
    """A path below root with '/', as results store it: it stays true when the tree moves."""
    return Path(path).relative_to(root).as_posix()


def readable(people, on_bad):
    """Those whose pictures can be read, if the others are to be skipped (`--on_bad skip`): each of them is named."""
    if on_bad == 'stop':
        return people

    def fault(path):
        try:
            read(path)
        except Problem as problem:
            return str(problem)

    with ThreadPoolExecutor(cores()) as pool:
        faults = list(pool.map(fault, people.paths))
    for fault in filter(None, faults):
        print(f'skipped: {fault}')
    return choose(people, [i for i, fault in enumerate(faults) if not fault])


def numbers(*parts):
    """Folder names -> identity numbers, the same name the same number in all parts: one array for each."""
    number = numbered(name for people in parts for name in people.ids)
    return [np.array([number[name] for name in people.ids], np.int64) for people in parts]


# ---------------------------------------------------------------------------------------------------------------------
# 2. pictures -> tensors

MOST = 100_000_000  # pixels: a file of a few kilobytes may claim more, to fill the memory
# What is decoded. Pillow knows more, which nobody takes pictures in: EPS, for one, is a program that it would run.
KINDS = ('AVIF', 'BMP', 'GIF', 'JPEG', 'MPO', 'PNG', 'PPM', 'TIFF', 'WEBP')


class TooLarge(Problem):
    """It may be a picture, but it is not decoded here."""


def read(source, name=None, most=MOST):
    """A path, or the bytes of a file (its name is for sentences) -> RGB, upright, without transparency."""
    name = name or source
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            if picture.width * picture.height > most:
                raise TooLarge(f'{name} has {picture.width} x {picture.height} pixels: at most {most:,} are read here')
            if picture.format not in KINDS:
                raise Problem(f'{name} is {picture.format}: one of {", ".join(KINDS)} is expected')
            return rgb(ImageOps.exif_transpose(picture))  # of an animation, the first picture
    except Problem:
        raise
    except Image.DecompressionBombError:  # Pillow's own limit
        raise TooLarge(f'{name} has more pixels than are read here: {most:,}') from None
    except FileNotFoundError:
        raise Problem(f'{name}: there is no such file') from None
    except UnidentifiedImageError:  # its sentence would name the object in memory
        raise Problem(f'{name} is not a picture that can be read') from None
    except Exception as error:  # Pillow raises a dozen types
        raise Problem(f'{name} is not a picture that can be read ({error})') from None


def rgb(picture):
    if picture.mode.startswith('I'):  # 16 bits, which Pillow would cut off at 255
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert('RGBA')
        return Image.alpha_composite(Image.new('RGBA', picture.size, 'white'), picture).convert('RGB')
    return picture.convert('RGB')


def sized(picture, size):
    """What a network of size (height, width) is shown of it: bytes (height, width, 3)."""
    return np.array(picture.resize(size[::-1], Image.Resampling.BICUBIC))


def test_transform(height, width):
    return T.Compose([T.Resize((height, width), T.InterpolationMode.BICUBIC), T.ToTensor(), T.Normalize(MEAN, STD)])


test_transform.__test__ = False  # no test, whatever its name says to pytest
