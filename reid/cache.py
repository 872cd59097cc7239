"""Training pictures as bytes of the training size, decoded once and kept, or decoded anew in every epoch.

    python -m reid.cache ../Market/pytorch     removes what was kept on disk

`batches` is what training asks for: (x uint8 (B, 3, H, W), y int64 (B,)) on its device. The same seed gives the same
ones wherever the pictures are kept (but a policy draws anew where other processes apply it).

On disk that is <folder>/cache/<H>x<W>-<hash of their paths>.npy, with two arrays one after the other, as np.save writes
them: size and time of change of each file (N, 2), and the pictures (N, H, W, 3). One file is replaced as a whole.
"""

import hashlib
import io
import os
import shutil
import tempfile
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import compress
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler
from tqdm import tqdm

from reid import cli, data, processes
from reid.augment import POLICIES, each
from reid.machine import cores, free_memory
from reid.problem import Problem

PLACES = ('auto', 'ram', 'disk', 'gpu', 'off')  # of --cache
GUESS = 4 * 10**9  # bytes of memory that are free where the system does not say
PIECE = 512  # pictures decoded ahead, at most: what reads them may be slower

# ---------------------------------------------------------------------------------------------------------------------
# 1. batches


def batches(
    paths,
    labels,
    height,
    width,
    batchsize,
    folder,
    device,
    train=False,
    sampler=None,
    where='auto',
    workers=0,
    policy='none',
    cams=None,
):
    """Batches in order, or for training shuffled and without an incomplete last one (BatchNorm wants more than one), or
    those that a sampler makes up (reid.samplers). `folder` is the tree that the pictures are in. With `cams`, a camera
    for each picture, batches are (x, y, cams (B,))."""
    if not train:  # each process looks at some of them
        mine = processes.share(len(paths))
        paths, labels, cams = paths[mine], labels[mine], None if cams is None else cams[mine]
    kept = decoded(paths, height, width, where, folder, device)
    order = own_turns(len(paths), batchsize, train, sampler)
    if kept is not None:
        return Batches(kept, labels, device, order, policy, cams)
    return loading(paths, labels, height, width, order, device, workers, policy, cams)


def loading(paths, labels, height, width, order, device, workers, policy='none', cams=None):
    """Batches that are decoded when they are asked for, by `workers` processes (0: by this one)."""
    loader = DataLoader(
        Decoding(paths, labels, height, width, policy, cams),
        batch_sampler=order,
        num_workers=min(workers, len(paths)),
        pin_memory=device.type == 'cuda',
    )
    return Moving(loader, device)


def own_turns(n, batchsize, train, sampler):
    """The positions of each batch that this process looks at: in training, some of a batch of all."""
    order = turns(n, batchsize, train) if sampler is None else sampler
    return processes.own(order) if train else order


def turns(n, batchsize, train=False):
    """Lists of positions, in the order of one epoch."""
    order = RandomSampler(range(n)) if train else SequentialSampler(range(n))
    return BatchSampler(order, batchsize, drop_last=train and n >= batchsize)


class Rows:
    """Of features (N, D), in place of the pictures that they are of. The order of an epoch is that of batches()."""

    def __init__(self, features, labels, batchsize, device, train=False, sampler=None, policy='none'):
        if not train:
            mine = processes.share(len(features))
            features, labels = features[mine], labels[mine]
        self.features, self.labels = features.to(device), torch.as_tensor(labels, dtype=torch.int64, device=device)
        self.turns = own_turns(len(features), batchsize, train, sampler)

    def __len__(self):
        return len(self.turns)

    def __iter__(self):
        for positions in self.turns:
            positions = torch.tensor(positions, device=self.features.device)
            yield self.features[positions], self.labels[positions]


class Batches:
    """From decoded pictures uint8 (N, H, W, 3), wherever they are."""

    def __init__(self, pictures, labels, device, order, policy='none', cams=None):
        self.pictures, self.device = pictures, device
        numbers = [labels] if cams is None else [labels, cams]
        self.numbers = [torch.as_tensor(some, dtype=torch.int64) for some in numbers]
        self.turns, self.policy = order, POLICIES[policy]()

    def __len__(self):
        return len(self.turns)

    def __iter__(self):
        torch.empty((), dtype=torch.int64).random_()  # as DataLoader does: the draws after it are the same with both
        for positions in self.turns:
            positions = torch.tensor(positions)
            x = self.pictures.index_select(0, positions.to(self.pictures.device))  # (B, H, W, 3)
            x = each(self.policy, x.permute(0, 3, 1, 2))
            if x.device.type == 'cpu' and self.device.type == 'cuda':
                x = x.pin_memory()
            yield tuple(t.to(self.device, non_blocking=True) for t in (x, *(some[positions] for some in self.numbers)))


class Decoding(Dataset):
    """Paths and labels -> (uint8 (3, H, W), label), for processes that decode. Without labels they are -1."""

    def __init__(self, paths, labels, height, width, policy='none', cams=None):
        self.paths, self.labels, self.cams, self.height, self.width = paths, labels, cams, height, width
        self.policy = POLICIES[policy]()

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        picture = torch.from_numpy(decode(self.paths[i], self.height, self.width)).permute(2, 0, 1)
        label = int(self.labels[i]) if self.labels is not None else -1
        return self.policy(picture), label, *([] if self.cams is None else [int(self.cams[i])])


class Moving:
    """The batches of a DataLoader, on a device."""

    def __init__(self, loader, device):
        self.loader, self.device = loader, device

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        try:
            for batch in self.loader:
                yield tuple(t.to(self.device, non_blocking=True) for t in batch)
        except RuntimeError as error:
            if 'DataLoader worker' not in str(error):
                raise
            raise Problem(
                'a process that loads pictures has died, most likely since the memory is full: take fewer --num_workers'
            ) from error


# ---------------------------------------------------------------------------------------------------------------------
# 2. decoding


def decode(path, height, width):
    """A picture as bytes (H, W, 3), resized as data.test_transform does it."""
    return data.sized(data.read(path), (height, width))


def all_decoded(paths, height, width, title):
    """The pictures in order, by as many threads as there are cores: Pillow works without Python's lock."""
    one = partial(decode, height=height, width=width)
    with (
        ThreadPoolExecutor(cores()) as pool,
        tqdm(total=len(paths), desc=title, unit=' pictures', leave=False, disable=processes.hidden()) as bar,
    ):
        for start in range(0, len(paths), PIECE):
            for picture in pool.map(one, paths[start : start + PIECE]):
                bar.update()
                yield picture


def decoded(paths, height, width, where, folder, device, title='decoding'):
    """All pictures as uint8 (N, H, W, 3), in the place that is asked for or has room, or None where there is none."""
    if not paths:
        return torch.empty((0, height, width, 3), dtype=torch.uint8)
    if where == 'gpu' and device.type == 'cpu':
        raise Problem('--cache gpu: a GPU is expected, but the CPU computes. Take --cache ram, or leave it to auto')
    size, file = len(paths) * height * width * 3, file_of(paths, height, width, folder)
    where, why = choose(size, file, device) if where == 'auto' else (where, '')
    if where == 'off':
        print(f'cache: off{why}; every epoch decodes its pictures anew')
        return None
    place = {'gpu': 'on the GPU', 'ram': 'in memory', 'disk': f'in {file}'}[where]
    print(f'cache: {len(paths):,} pictures at {height}x{width} {place}, {megabytes(size)}{why}')
    if where == 'disk':
        return on_disk(paths, height, width, file, title)
    try:
        kept = torch.empty(
            (len(paths), height, width, 3), dtype=torch.uint8, device=device if where == 'gpu' else 'cpu'
        )
    except RuntimeError:  # of which torch's own error, out of memory, is one
        raise Problem(f'--cache {where}: {megabytes(size)} are not free there. Leave it to --cache auto') from None
    for i, picture in enumerate(all_decoded(paths, height, width, title)):
        kept[i] = torch.from_numpy(picture)
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# 3. room


def choose(size, file, device):
    """A place with room for so many bytes, and why it is that one."""
    if device.type == 'cuda' and size < (free := torch.cuda.mem_get_info(device)[0]) / 4:
        return 'gpu', f' of {megabytes(free)} that are free'
    memory, folder = free_memory(), file.parent.parent
    said = f'a guessed {megabytes(GUESS)}' if memory is None else megabytes(memory)
    memory = GUESS if memory is None else memory
    if size * processes.here() < memory / 2:  # each of them keeps its own
        return 'ram', f' of {said} that are free'
    disk = shutil.disk_usage(folder).free if os.access(folder, os.W_OK) else 0
    if file.is_file() or size + 2**20 < disk:
        return 'disk', f', since {said} of memory are free'
    what = f'{said} of memory and {megabytes(disk)} for files in {folder} are free'
    return 'off', f', since {megabytes(size)} are needed and {what}'


def megabytes(size):
    return f'{size / 1e6:,.0f} MB'


# ---------------------------------------------------------------------------------------------------------------------
# 4. on disk


def file_of(paths, height, width, folder):
    """The file for these pictures, in this order. Paths below the folder count from there: a tree may move."""
    folder, names = Path(folder), []
    for path in map(Path, paths):
        names.append((path.relative_to(folder) if path.is_relative_to(folder) else path.absolute()).as_posix())
    digest = hashlib.sha256('\n'.join(names).encode('utf-8', 'surrogateescape')).hexdigest()
    return folder / 'cache' / f'{height}x{width}-{digest[:16]}.npy'


def on_disk(paths, height, width, file, title):
    """The pictures as they lie in the file, memory-mapped. Those that changed since are decoded again."""
    keys, shape = np.array([key(path) for path in paths], '<i8'), (len(paths), height, width, 3)
    found = opened(file, shape)
    if found is None and file.exists():
        print(f'cache: {file} is not whole, or something else; it is built anew')
    stale = np.ones(len(paths), bool) if found is None else (found[0] != keys).any(1)
    if found is not None and stale.any():
        print(f'cache: {stale.sum():,} pictures changed')
    if stale.any():
        new = all_decoded(list(compress(paths, stale)), height, width, title)
        pictures = renewed(None if found is None else found[1], stale, new)
        found = None  # the old file is now held by `pictures` alone, and no more when they end
        build(file, keys, shape, pictures)
        found = opened(file, shape)
    with warnings.catch_warnings():
        warnings.filterwarnings('ignore', 'The given NumPy array is not writable')  # nor is it written to
        return torch.from_numpy(found[1])


def renewed(old, stale, new):
    """The pictures in order, those that changed from `new`. The others are copies: what Windows is to replace may not
    be mapped."""
    for i, changed in enumerate(stale):
        yield next(new) if changed else np.array(old[i])


def key(path):
    """What tells that a file has changed."""
    try:
        about = os.stat(path)
    except FileNotFoundError:
        raise Problem(f'{path}: there is no such file') from None
    return about.st_size, about.st_mtime_ns


def headers(shape):
    """The bytes before the keys and those before the pictures."""
    for descr, dimensions in (('<i8', (shape[0], 2)), ('|u1', shape)):
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {'descr': descr, 'fortran_order': False, 'shape': dimensions})
        yield header.getvalue()


def opened(file, shape):
    """The keys (N, 2) and the pictures of `shape`, memory-mapped, in a file; None if it holds anything else."""
    first, second = headers(shape)
    begin = len(first) + 16 * shape[0] + len(second)
    try:
        with file.open('rb') as content:
            if os.fstat(content.fileno()).st_size != begin + np.prod(shape, dtype=np.int64):
                return None
            head, keys, middle = (content.read(n) for n in (len(first), 16 * shape[0], len(second)))
            if (head, middle) != (first, second):
                return None
            return np.frombuffer(keys, '<i8').reshape(-1, 2), np.memmap(content, np.uint8, 'r', begin, shape)
    except OSError:  # it is not there, for one
        return None


def build(file, keys, shape, pictures):
    """Write the file, beside and under its name when it is whole: in a folder of its own, as two runs may do it at
    once. It is written, not mapped: on a full disk that is an error, and not the end of the process."""
    first, second = headers(shape)
    try:
        file.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='new-', dir=file.parent) as place:
            new = Path(place, file.name)
            with new.open('wb') as out:
                out.write(first + keys.tobytes() + second)
                for picture in pictures:
                    out.write(picture.tobytes())
                out.flush()
                os.fsync(out.fileno())  # or there may be black pictures in it after a power failure
            try:
                os.replace(new, file)
            except PermissionError:  # on Windows, if another run has it open, which may have just built the same
                there = opened(file, shape)
                if there is None or (there[0] != keys).any():
                    raise
    except OSError as error:
        raise Problem(
            f'--cache disk: {file} cannot be written ({error.strerror}): {megabytes(np.prod(shape, dtype=np.int64))} '
            f'are needed. Make room or the right to write there, end other runs that use it, or take --cache off'
        ) from None


def remove(folder):
    """Remove what was kept on disk for a tree, and nothing else. Returns the files and how many bytes they took."""
    place = Path(folder) / 'cache'
    files = sorted(place.glob('[1-9]*x[1-9]*-*.npy')) + sorted(place.glob('new-*/[1-9]*x[1-9]*-*.npy'))
    size = sum(file.stat().st_size for file in files)
    for file in files:
        try:
            file.unlink()
        except PermissionError:  # Windows
            raise Problem(f'{file} cannot be removed: a run has it open, or it is not yours') from None
    for left in (*place.glob('new-*'), place):
        if left.is_dir() and not any(left.iterdir()):
            left.rmdir()
    return files, size


def options():
    parser = cli.parser(
        'Remove the decoded pictures that --cache disk keeps in a prepared tree.',
        cli.examples('python -m reid.cache ../Market/pytorch'),
        prog='python -m reid.cache',
    )
    parser.add_argument('folder', help='the tree, or the data set that it is in')
    return parser


def main(opts):
    for folder in (Path(opts.folder).expanduser(), Path(opts.folder).expanduser() / 'pytorch'):
        if (folder / 'cache').is_dir():
            files, size = remove(folder)
            print('\n'.join([*(f'removed {file}' for file in files), f'{megabytes(size)} are free again']))
            return
    raise Problem(f'{opts.folder} has no folder cache/, nor has {opts.folder}/pytorch: there is nothing to remove')


if __name__ == '__main__':
    cli.start(main, options)
