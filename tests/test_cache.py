"""Decoded once or anew, the pictures of training are the same: python -m pytest tests/test_cache.py"""

import errno
import io
import os
import pickle
import struct
import subprocess
import sys
import threading
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from reid import cache, cli, data, machine
from reid.cache import Batches, Decoding, batches, decoded, loading, turns
from reid.problem import Problem
from reid.samplers import PK

CPU = torch.device('cpu')
H, W = 16, 8


@pytest.fixture
def tree(tmp_path):
    """Seven noisy pictures of several kinds and sizes, each with a share of red of its own."""
    rng = np.random.default_rng(0)
    for i, name in enumerate(['1/a.jpg', '1/b.png', '1/c.jpg', '2/a.jpg', '2/b.bmp', '3/ä ö.jpg', '3/d.png']):
        path = tmp_path / 'train' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40 + 5 * i, 20, 3), dtype=np.uint8)
        pixels[..., 0] = 30 * i
        Image.fromarray(pixels).convert('L' if name == '2/a.jpg' else 'RGB').save(path)
    return tmp_path


def paths_of(tree):
    return sorted(map(str, tree.glob('train/*/*')))


def plain(paths, height=H, width=W):
    """The pictures as test.py sees them, before normalisation."""
    resize = data.test_transform(height, width).transforms[0]
    return torch.from_numpy(np.stack([np.array(resize(data.read(path))) for path in paths]))


def on_disk(tree, **how):
    return decoded(paths_of(tree), H, W, 'disk', tree, CPU, **how)


def file_in(tree):
    (file,) = (tree / 'cache').iterdir()
    return file


@pytest.fixture
def decodings(monkeypatch):
    """The paths that were decoded."""
    seen, real = [], cache.decode
    monkeypatch.setattr(cache, 'decode', lambda path, height, width: seen.append(path) or real(path, height, width))
    return seen


# ---------------------------------------------------------------------------------------------------------------------
# 1. the pictures


@pytest.mark.parametrize('where', ['auto', 'ram', 'disk'])
@pytest.mark.parametrize('size', [(16, 8), (45, 20), (100, 60)])
def test_decoded_pictures_are_byte_for_byte_those_of_test_py(where, size, tree):
    found = decoded(paths_of(tree), *size, where, tree, CPU)
    assert found.dtype == torch.uint8
    assert torch.equal(found, plain(paths_of(tree), *size))


def test_more_pictures_than_are_decoded_ahead_stay_in_order(tree, monkeypatch):
    monkeypatch.setattr(cache, 'PIECE', 3)
    many = paths_of(tree) * 3
    assert torch.equal(decoded(many, H, W, 'ram', tree, CPU), plain(many))
    assert torch.equal(decoded(many, H, W, 'disk', tree, CPU), plain(many))


def test_off_decodes_nothing_and_nothing_is_nothing(tree, decodings, capsys):
    assert decoded(paths_of(tree), H, W, 'off', tree, CPU) is None
    assert not decodings
    assert capsys.readouterr().out == 'cache: off; every epoch decodes its pictures anew\n'
    assert decoded([], H, W, 'disk', tree, CPU).shape == (0, H, W, 3)
    assert list(batches([], [], H, W, 4, tree, CPU)) == []


@pytest.mark.parametrize('where', ['ram', 'disk'])
def test_a_picture_that_cannot_be_read_is_named_and_nothing_is_left_behind(where, tree):
    bad = tree / 'train/2/b.bmp'
    bad.write_bytes(b'no picture')
    with pytest.raises(Problem, match=r'b\.bmp is not a picture'):
        decoded(paths_of(tree), H, W, where, tree, CPU)
    assert not list(tree.glob('cache/*'))
    paths = paths_of(tree)
    bad.unlink()
    with pytest.raises(Problem, match=r'b\.bmp: there is no such file'):
        decoded(paths, H, W, where, tree, CPU)


def test_a_gpu_is_expected_where_it_is_asked_for(tree):
    with pytest.raises(Problem, match='a GPU is expected'):
        decoded(paths_of(tree), H, W, 'gpu', tree, CPU)


def test_more_than_there_is_memory_is_a_sentence(tree, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError('out of memory')

    monkeypatch.setattr(torch, 'empty', full)
    with pytest.raises(Problem, match='--cache ram: 0 MB are not free there'):
        decoded(paths_of(tree), H, W, 'ram', tree, CPU)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
def test_on_a_gpu_the_batches_are_the_same(tree):
    paths, labels, gpu = paths_of(tree), range(7), torch.device('cuda', 0)
    for where in ('auto', 'ram', 'disk', 'off'):
        found = list(batches(paths, labels, H, W, 3, tree, gpu, where=where))
        assert all(x.device == y.device == gpu for x, y in found)
        assert torch.equal(torch.cat([x for x, _ in found]).cpu(), plain(paths).permute(0, 3, 1, 2))


# ---------------------------------------------------------------------------------------------------------------------
# 2. where there is room


@pytest.mark.parametrize(
    ('gpu', 'memory', 'disk', 'writable', 'expected'),
    [
        (401, 0, 0, True, 'gpu'),
        (400, 201, 0, True, 'ram'),
        (None, 201, 0, True, 'ram'),
        (None, 200, 102, True, 'disk'),
        (400, 200, 102, True, 'disk'),
        (None, 200, 102, False, 'off'),
        (None, 200, 101, True, 'off'),
    ],
)
def test_auto_takes_the_fastest_place_with_room(gpu, memory, disk, writable, expected, tree, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (gpu * 10**6, 10**12))
    monkeypatch.setattr(cache, 'free_memory', lambda: memory * 10**6)
    monkeypatch.setattr(cache.shutil, 'disk_usage', lambda folder: SimpleNamespace(free=disk * 10**6))
    monkeypatch.setattr(os, 'access', lambda folder, mode: writable)
    file = tree / 'cache' / 'x.npy'
    where, why = cache.choose(100 * 10**6, file, torch.device('cuda' if gpu else 'cpu'))
    assert where == expected
    assert f'{gpu if expected == "gpu" else memory} MB' in why
    if expected == 'off' and writable:
        assert f'{disk} MB' in why
        file.parent.mkdir()
        file.touch()
        assert cache.choose(100 * 10**6, file, CPU)[0] == 'disk'  # it takes its room already


def test_what_was_chosen_is_said(tree, monkeypatch, capsys):
    monkeypatch.setattr(cache, 'free_memory', lambda: 5 * 10**9)
    decoded(paths_of(tree), 256, 128, 'auto', tree, CPU)
    assert capsys.readouterr().out == 'cache: 7 pictures at 256x128 in memory, 1 MB of 5,000 MB that are free\n'
    monkeypatch.setattr(cache, 'free_memory', lambda: 10**6)
    decoded(paths_of(tree), 256, 128, 'auto', tree, CPU)
    file = file_in(tree)
    said = f'cache: 7 pictures at 256x128 in {file}, 1 MB, since 1 MB of memory are free\n'
    assert capsys.readouterr().out == said
    assert file.name.startswith('256x128-')


def test_a_guess_is_said_to_be_one(tree, monkeypatch):
    monkeypatch.setattr(cache, 'free_memory', lambda: None)
    file = tree / 'cache' / 'x.npy'
    assert cache.choose(10**9, file, CPU) == ('ram', ' of a guessed 4,000 MB that are free')
    for disk in (10**15, 0):
        monkeypatch.setattr(cache.shutil, 'disk_usage', lambda folder, free=disk: SimpleNamespace(free=free))
        assert 'a guessed 4,000 MB of memory' in cache.choose(10**10, file, CPU)[1]


def test_free_memory_is_what_the_system_says(monkeypatch):
    said = io.StringIO('MemTotal:  9 kB\nMemAvailable:   2000 kB\n')
    monkeypatch.setattr(machine.Path, 'read_text', lambda self, encoding: said.read())
    assert machine.free_memory() == 2000 * 1024
    sizes = {'SC_AVPHYS_PAGES': 30, 'SC_PAGE_SIZE': 4096}
    monkeypatch.setattr(os, 'sysconf', lambda name: sizes[name], raising=False)
    assert machine.free_memory() == 30 * 4096  # as there is nothing more to read
    monkeypatch.delattr(os, 'sysconf')
    monkeypatch.setattr(machine.ctypes, 'windll', windows(7 * 10**9), raising=False)
    assert machine.free_memory() == 7 * 10**9
    monkeypatch.delattr(machine.ctypes, 'windll')
    assert machine.free_memory() is None


def windows(free):
    """Its call that fills in MEMORYSTATUSEX, of 64 bytes, of which the first four say so."""

    def fill_in(status):
        length, load, total = struct.unpack_from('<IIQ', status)
        assert (length, len(bytes(status)), load, total) == (64, 64, 0, 0)
        struct.pack_into('<IIQQ', status, 0, 64, 50, 2 * free, free)
        return 1

    return SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=fill_in))


# ---------------------------------------------------------------------------------------------------------------------
# 3. on disk


def test_a_second_run_decodes_nothing(tree, decodings, capsys):
    expected = on_disk(tree).clone()
    assert len(decodings) == 7
    assert torch.equal(on_disk(tree), expected)
    assert len(decodings) == 7
    assert 'changed' not in capsys.readouterr().out


def test_only_what_changed_is_decoded_again(tree, decodings, capsys):
    before = on_disk(tree)
    kept = before.clone()
    changed = [tree / 'train/1/b.png', tree / 'train/3/d.png']
    Image.new('RGB', (9, 9), (1, 2, 3)).save(changed[0])  # another size
    os.utime(changed[1], ns=(1, os.stat(changed[1]).st_mtime_ns + 1))  # another time
    decodings.clear()
    found = on_disk(tree)
    assert sorted(decodings) == sorted(map(str, changed))
    assert 'cache: 2 pictures changed\n' in capsys.readouterr().out
    assert torch.equal(found, plain(paths_of(tree)))
    assert (found[1] == torch.tensor([1, 2, 3])).all()
    assert torch.equal(before, kept)  # another run, which began earlier, goes on with what it had
    on_disk(tree)
    assert len(decodings) == 2


def test_the_old_file_is_let_go_of_before_it_is_replaced(tree, monkeypatch):
    """Windows does not replace what is mapped, in this process or another."""
    on_disk(tree)
    os.utime(paths_of(tree)[0], ns=(1, 1))
    maps, opened, replace = [], cache.opened, os.replace

    def watched(*args):
        found = opened(*args)
        maps.append(weakref.ref(found[1]._mmap))
        return found

    def as_on_windows(source, target):
        assert [held() for held in maps] == [None]
        replace(source, target)

    monkeypatch.setattr(cache, 'opened', watched)
    monkeypatch.setattr(os, 'replace', as_on_windows)
    assert torch.equal(on_disk(tree), plain(paths_of(tree)))
    assert len(maps) == 2


def test_other_pictures_other_orders_and_other_sizes_get_other_files(tree):
    paths = paths_of(tree)
    for some, size in ((paths, (16, 8)), (paths[:3], (16, 8)), (paths[::-1], (16, 8)), (paths, (8, 16))):
        assert torch.equal(decoded(some, *size, 'disk', tree, CPU), plain(some, *size))
    assert len(list((tree / 'cache').iterdir())) == 4


def test_a_tree_may_move_and_pictures_may_lie_elsewhere(tree, tmp_path_factory, decodings):
    on_disk(tree)
    moved = tree.rename(tmp_path_factory.mktemp('new') / 'place')
    assert len(decodings) == 7
    on_disk(moved)
    assert len(decodings) == 7
    there = tmp_path_factory.mktemp('there')
    assert torch.equal(decoded(paths_of(moved), H, W, 'disk', there, CPU), plain(paths_of(moved)))


@pytest.mark.parametrize(
    'spoil',
    [
        lambda content: content[:-1],
        lambda content: content[:130],
        lambda content: b'',
        lambda content: content + b'x',
        lambda content: bytes(len(content)),
        lambda content: content.replace(b'(7, 2)', b'(2, 7)'),
        lambda content: content.replace(b"'|u1'", b"'|i1'"),
        lambda content: pickle.dumps('something else'),
    ],
)
def test_a_file_that_is_not_whole_or_not_ours_is_built_anew(spoil, tree, decodings, capsys):
    on_disk(tree)
    file = file_in(tree)
    content = file.read_bytes()
    file.write_bytes(spoil(content))
    assert file.read_bytes() != content
    assert torch.equal(on_disk(tree), plain(paths_of(tree)))
    assert len(decodings) == 14
    assert f'{file} is not whole' in capsys.readouterr().out
    assert file_in(tree).read_bytes() == content


def test_the_file_is_one_that_numpy_reads(tree):
    on_disk(tree)
    with file_in(tree).open('rb') as content:
        keys, pictures = np.load(content), np.load(content)
        assert not content.read()
    assert keys.tolist() == [[os.stat(p).st_size, os.stat(p).st_mtime_ns] for p in paths_of(tree)]
    assert np.array_equal(pictures, plain(paths_of(tree)))


BUILD = """
import sys, time
from pathlib import Path
import torch
from reid import cache
torch.set_num_threads(1)
tree, me, other = Path(sys.argv[1]), *sys.argv[2:]
real = cache.decode

def decode(path, height, width):
    (tree / me).touch()
    while not (tree / other).exists():  # both are building
        time.sleep(0.01)
    return real(path, height, width)

cache.decode = decode
found = cache.decoded(sorted(map(str, tree.glob('train/*/*'))), 16, 8, 'disk', tree, torch.device('cpu'))
torch.save(found.clone(), tree / f'{me}.pt')
"""


def test_two_processes_that_build_at_once_both_get_the_pictures(tree):
    both = [
        subprocess.Popen([sys.executable, '-c', BUILD, str(tree), *who], cwd=ROOT)
        for who in (('one', 'two'), ('two', 'one'))
    ]
    assert [process.wait(timeout=600) for process in both] == [0, 0]
    for who in ('one', 'two'):
        assert torch.equal(torch.load(tree / f'{who}.pt', weights_only=True), plain(paths_of(tree)))
    assert torch.equal(on_disk(tree), plain(paths_of(tree)))
    assert file_in(tree).suffix == '.npy'  # and no other file is left


def test_one_that_is_in_use_is_taken_if_it_is_the_same(tree, monkeypatch):
    """On Windows a file that a run has open cannot be replaced."""
    replace, paths = os.replace, paths_of(tree)

    def first_one_there(source, target):
        replace(source, target)
        raise PermissionError(errno.EACCES, 'in use')

    monkeypatch.setattr(os, 'replace', first_one_there)
    assert torch.equal(on_disk(tree), plain(paths))
    os.utime(paths[0], ns=(1, 1))

    def refused(source, target):
        raise PermissionError(errno.EACCES, 'in use')

    monkeypatch.setattr(os, 'replace', refused)
    with pytest.raises(Problem, match=r'cannot be written \(in use\).*end other runs'):
        on_disk(tree)


@pytest.mark.parametrize('there', [False, True])
def test_a_full_disk_is_a_sentence_and_leaves_what_was_there(there, tree, monkeypatch):
    before = None
    if there:
        on_disk(tree)
        before = file_in(tree).read_bytes()
        os.utime(paths_of(tree)[0], ns=(1, 1))

    def full(file):
        raise OSError(errno.ENOSPC, 'No space left on device')

    with monkeypatch.context() as patch, pytest.raises(Problem, match=r'No space left.*0 MB are needed.*--cache off'):
        patch.setattr(os, 'fsync', full)
        on_disk(tree)
    left = list((tree / 'cache').iterdir())
    assert [path.read_bytes() for path in left] == ([before] if there else [])
    assert torch.equal(on_disk(tree), plain(paths_of(tree)))


def test_a_folder_that_cannot_be_written_is_a_sentence(tree):
    (tree / 'cache').write_text('a file')
    with pytest.raises(Problem, match='cannot be written'):
        on_disk(tree)


def test_nothing_but_what_is_kept_is_removed(tree, capsys):
    on_disk(tree)
    decoded(paths_of(tree)[:2], 256, 128, 'disk', tree, CPU)
    half = tree / 'cache/new-abc'  # of a run that was killed
    half.mkdir()
    (half / '16x8-0123.npy').write_bytes(b'half')
    (tree / 'cache/mine.npy').write_text('kept')
    files, size = cache.remove(tree)
    assert len(files) == 3
    assert size == 7 * H * W * 3 + 2 * 256 * 128 * 3 + 9 * 16 + 4 * 128 + 4
    assert [path.name for path in (tree / 'cache').iterdir()] == ['mine.npy']
    (tree / 'cache/mine.npy').unlink()
    assert cache.remove(tree) == ([], 0)
    assert not (tree / 'cache').exists()


def test_one_command_removes_it(tree, capsys):
    root = tree / 'pytorch'
    (tree / 'train').rename(root.with_name('t'))
    root.mkdir()
    (tree / 't').rename(root / 'train')
    on_disk(root)
    file = file_in(root)
    command = [sys.executable, '-m', 'reid.cache', str(tree)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f'removed {file}', '0 MB are free again']
    assert not (root / 'cache').exists()
    with pytest.raises(SystemExit):
        cli.start(cache.main, cache.options, [str(root)])
    assert 'nothing to remove' in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------------
# 4. batches


def numbered(n):
    """Pictures that are their own position."""
    return torch.arange(n, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 2, 3).contiguous()


def order(source):
    """The positions, batch by batch, made sure that labels belong to pictures and all is as promised."""
    out = []
    for x, y in source:
        assert x.dtype == torch.uint8
        assert y.dtype == torch.int64
        assert x.shape == (len(y), 3, 4, 2)
        assert x.is_contiguous(memory_format=torch.channels_last)
        assert (x == y.view(-1, 1, 1, 1)).all()
        out.append(y.tolist())
    return out


def test_in_order_and_complete_or_shuffled_without_an_incomplete_batch():
    pictures, labels = numbered(10), np.arange(10)
    plain = Batches(pictures, labels, CPU, turns(10, 4))
    assert order(plain) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(plain) == 3
    train = Batches(pictures, labels, CPU, turns(10, 4, train=True))
    assert len(train) == 2
    found = order(train)
    assert [len(batch) for batch in found] == [4, 4]
    assert len(set(sum(found, []))) == 8
    assert order(train) != found
    few = Batches(pictures, labels, CPU, turns(10, 32, train=True))
    assert len(few) == 1
    assert sorted(order(few)[0]) == list(range(10))


@pytest.mark.parametrize('workers', [0, 2])
def test_what_is_looked_at_once_comes_in_order_and_complete(workers, tree):
    paths = paths_of(tree)
    found = list(loading(paths, None, H, W, turns(len(paths), 3), CPU, workers))
    assert [y.tolist() for _, y in found] == [[-1] * 3, [-1] * 3, [-1]]
    assert torch.equal(torch.cat([x for x, _ in found]), plain(paths).permute(0, 3, 1, 2))


def test_a_process_that_is_killed_is_a_sentence(tree, monkeypatch):
    monkeypatch.setattr(cache, 'decode', lambda *_: os.kill(os.getpid(), 9))  # as the system does where memory ends
    with pytest.raises(Problem, match='has died, most likely since the memory is full: take fewer --num_workers'):
        list(loading(paths_of(tree), None, H, W, turns(7, 3), CPU, 1))


def test_all_are_shuffled_alike():
    train, count = Batches(numbered(4), range(4), CPU, turns(4, 4, train=True)), torch.zeros(4, 4)
    torch.manual_seed(0)
    for _ in range(2000):
        count[torch.arange(4), torch.tensor(order(train)[0])] += 1
    assert (count / 2000 - 0.25).abs().max() < 0.04


def test_a_sampler_makes_up_the_batches():
    labels = [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
    sampler = PK(labels, 2, 2, seed=5)
    source = Batches(numbered(10), range(10), CPU, sampler)
    assert order(source) == list(sampler)
    assert len(source) == len(sampler)
    sampler.set_epoch(1)
    assert order(source) == list(sampler)


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('pk', [False, True])
@pytest.mark.parametrize('train', [False, True])
def test_a_seed_gives_the_same_batches_wherever_the_pictures_are(workers, pk, train, tree):
    paths, labels = paths_of(tree), [0, 0, 0, 1, 1, 2, 2]

    def epoch(where):
        sampler = PK(labels, 2, 2, seed=1) if pk else None
        how = {'train': train, 'sampler': sampler, 'where': where, 'workers': workers}
        source = batches(paths, labels, H, W, 3, tree, CPU, **how)
        torch.manual_seed(7)
        found = [(x, y.tolist()) for x, y in source]
        assert len(found) == len(source)
        return found, torch.rand(4)  # what is drawn later

    expected, later = epoch('ram')
    for where in ('disk', 'off'):
        found, then = epoch(where)
        assert [y for _, y in found] == [y for _, y in expected]
        assert all(torch.equal(x, z) for (x, _), (z, _) in zip(found, expected, strict=True))
        assert torch.equal(then, later)


@pytest.mark.parametrize('where', ['ram', 'off'])
def test_a_policy_changes_each_picture_by_itself(where, tree):
    paths, labels = [paths_of(tree)[0]] * 12, [5] * 12
    torch.manual_seed(0)
    ((x, y),) = batches(paths, labels, 64, 32, 12, tree, CPU, where=where, policy='trivialaugment')
    assert x.dtype == torch.uint8
    assert x.shape == (12, 3, 64, 32)
    assert y.tolist() == labels
    assert len({picture.numpy().tobytes() for picture in x}) > 6


@pytest.mark.parametrize('policy', ['none', 'randaugment'])
def test_what_decodes_can_be_sent_to_other_processes(policy, tree):
    paths = paths_of(tree)
    torch.manual_seed(0)
    x, y = pickle.loads(pickle.dumps(Decoding(paths, np.arange(7), H, W, policy)))[6]
    assert x.shape == (3, H, W)
    assert y == 6
    if policy == 'none':
        assert torch.equal(x, plain(paths)[6].permute(2, 0, 1))


def test_threads_that_decode_end_with_the_first_error(tree):
    before = threading.active_count()
    (tree / 'train/1/a.jpg').write_bytes(b'')
    with pytest.raises(Problem):
        decoded(paths_of(tree), H, W, 'ram', tree, CPU)
    assert threading.active_count() == before
