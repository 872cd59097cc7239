"""What serve.py does in a second, and how long its clients wait: alone, eight and sixty-four at a time.

Reads:   a run (--name) and files that export.py has made of it (--model); else an untrained network that is made here
Writes:  results/serving.csv
Run:     python benchmarks/serving.py
         python benchmarks/serving.py --name ft_ResNet50 --model model/ft_ResNet50/ft_ResNet50.onnx int8.onnx

The service is a process, and so are its clients: threads, each with a connection of its own that it keeps, which send
the bytes of requests that were made before and read no more of an answer than its length. What that way reaches where
there is nothing to do, on /health, stands below: as long as it is many times more than the rest, it is not the clients
that are measured. They share the processor with the service, as on one machine they have to. Close other programs.
"""

import argparse
import contextlib
import importlib.metadata
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import utils  # noqa: E402
from reid import backbones, cli, index, machine, settings  # noqa: E402
from reid.files import read_rows, write_rows  # noqa: E402
from reid.problem import Problem  # noqa: E402

TABLE = ROOT / 'results' / 'serving.csv'
PACKAGES = 'torch onnxruntime fastapi uvicorn'.split()
ABOUT = f'machine threads {" ".join(PACKAGES)} commit network size entries'.split()
JOB = 'served batchsize path clients minute'.split()  # of which there is one row each
COLUMNS = [*ABOUT, *JOB, *'requests_s ratio p50_ms p99_ms batch memory_mb'.split()]
PATHS = {'/health': 'GET /health', '/embed': 'POST /embed', '/search': 'POST /search?top=10'}
MIXED = ['POST /embed', 'POST /search?top=10', 'POST /gallery?name=somebody&path=a-picture']  # the last replaces itself


def options():
    parser = cli.parser(__doc__)
    parser.add_argument('--name', help='a run (default: an untrained network)')
    parser.add_argument('--model', nargs='+', type=Path, help='files to compare with it (default: made by export.py)')
    parser.add_argument('--backbone', default='resnet50', type=backbones.check, help='untrained (default resnet50)')
    parser.add_argument('--height', default=256, type=settings.side, help='untrained (default 256)')
    parser.add_argument('--width', default=128, type=settings.side, help='untrained (default 128)')
    parser.add_argument('--entries', default=10_000, type=settings.whole, help='of the index, drawn (default 10,000)')
    parser.add_argument('--clients', nargs='+', default=[1, 8, 64], type=settings.positive, help='default 1 8 64')
    parser.add_argument('--batchsize', default=32, type=settings.positive, help='compared with 1 (default 32)')
    parser.add_argument('--seconds', default=10.0, type=settings.minutes, help='for each figure (default 10)')
    parser.add_argument(
        '--minutes', default=10.0, type=settings.minutes, help='to watch its memory (default 10; 0: not)'
    )
    parser.add_argument('--threads', type=settings.positive, help='of the service (default: all)')
    utils.gpu_option(parser)
    parser.add_argument('--load', action='store_true', help=argparse.SUPPRESS)  # the process of the clients
    return parser


def main(opts):
    if opts.load:
        load()
        return
    with tempfile.TemporaryDirectory() as folder, clients() as ask:
        folder = Path(folder)
        bodies = pictures(folder)
        place, name, files = (Path(), opts.name, opts.model or []) if opts.name else untrained(folder, opts)
        about = describe(opts, place / 'model' / name)
        people = gallery(folder, place, name, opts)
        print(*(f'{key}: {value}' for key, value in about.items()), sep='\n')
        served = {'torch': ['--name', name]} | {path.stem: ['--model', path.resolve()] for path in files}
        also, rows = ['--index', people, '--gpu_ids', opts.gpu_ids], []
        if opts.threads:
            also += ['--threads', opts.threads]
        for label, words in served.items():
            for batchsize in dict.fromkeys([1, opts.batchsize]):
                with service(place, *words, *also, '--batchsize', batchsize) as (address, _):
                    rows += figures(ask, address, bodies, opts, about | {'served': label, 'batchsize': batchsize}, rows)
        if opts.minutes:
            how = {'served': 'torch', 'batchsize': opts.batchsize, 'path': 'mixed', 'clients': 8}
            with service(place, '--name', name, *also, '--batchsize', opts.batchsize) as (address, process):
                rows += memory(ask, address, bodies, opts.minutes, process.pid, about | how)
    keep(rows)
    print('\n' + markdown(rows, opts))


# ---------------------------------------------------------------------------------------------------------------------
# 1. what is served


def card(place, script, *words):
    """Another script of the house, in a folder of ours."""
    command = [sys.executable, str(ROOT / script), *map(str, words)]
    done = subprocess.run(command, cwd=place, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise Problem(f'{script} ended with code {done.returncode}: {done.stdout[-300:]}')


def pictures(folder):
    """Bytes of JPEGs of 128x64, drawn by the toy data set."""
    card(folder, 'prepare.py', '--dataset', 'toy', '--ids', 12, '--images', 6)
    return [path.read_bytes() for path in sorted(folder.glob('data/toy/pytorch/*/*/*.jpg'))[:64]]


def untrained(folder, opts):
    """-> the folder to work in, the name of the run, and what export.py makes of it."""
    words = ['--name', 'untrained', '--data_dir', 'data/toy', '--total_epoch', 0, '--weights', 'none', '--gpu_ids', -1]
    words += ['--backbone', opts.backbone, '--height', opts.height, '--width', opts.width, '--num_workers', 0]
    card(folder, 'train.py', *words)
    if opts.model is None:
        card(folder, 'export.py', '--name', 'untrained', '--compare', 10)
    file = folder / 'model/untrained/untrained.onnx'
    return folder, 'untrained', opts.model or [file.rename(folder / 'onnxruntime.onnx')]


def gallery(folder, place, name, opts):
    """An index of that network, with descriptors that are drawn."""
    where = folder / 'people'
    card(place, 'search.py', 'index', 'create', where, '--name', name, '--gpu_ids', opts.gpu_ids)
    with index.open(where) as kept:
        f = np.random.default_rng(0).standard_normal((opts.entries, kept.dim)).astype(np.float32)
        f /= np.linalg.norm(f, axis=1, keepdims=True)
        kept.add([{'name': f'{i // 10}', 'camera': i % 6} for i in range(opts.entries)], f)
    return where


def describe(opts, run):
    trained = utils.read_opts(run)
    about = {
        'machine': machine.describe(utils.device(opts.gpu_ids)),
        'threads': opts.threads or torch.get_num_threads(),
    }
    about |= {name: version(name) for name in PACKAGES}
    size = f'{trained["height"]}x{trained["width"]}'
    about |= {'commit': utils.versions()['commit'], 'network': trained['backbone'], 'size': size}
    return about | {'entries': opts.entries}


def version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ''


@contextlib.contextmanager
def service(place, *words):
    """serve.py as a process -> (its address, the process)."""
    command = [sys.executable, '-u', str(ROOT / 'serve.py'), '--port', '0', '--queue', '1000', *map(str, words)]
    with subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = next((line.split()[0] for line in process.stdout if line.startswith('http://')), None)
            if address is None:
                raise Problem(f'serve.py ended with code {process.wait()}')
            yield address, process
        finally:
            process.terminate()


# ---------------------------------------------------------------------------------------------------------------------
# 2. the clients, a process of their own


@contextlib.contextmanager
def clients():
    """-> ask(address, requests, clients, seconds): a dict of how often they were answered, and after how long."""
    command = [sys.executable, __file__, '--load']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def ask(*words):
            process.stdin.write(json.dumps(words) + '\n')
            process.stdin.flush()
            said = json.loads(process.stdout.readline() or '{"fault": "the process of the clients has ended"}')
            if 'fault' in said:
                raise Problem(f'a request was not answered as it should be: {said["fault"]}')
            return said

        try:
            yield ask
        finally:
            process.stdin.close()


def load():
    for line in sys.stdin:
        address, requests, count, seconds = json.loads(line)
        host, _, port = address.removeprefix('http://').rpartition(':')
        requests = [request.encode('latin-1') for request in requests]
        waits, faults, stop = [], [], threading.Event()

        def client(first, where=(host, int(port)), requests=requests, waits=waits, faults=faults, stop=stop):
            try:
                with socket.create_connection(where) as connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for i in range(first, sys.maxsize):
                        if stop.is_set():
                            return
                        began = time.perf_counter()
                        connection.sendall(requests[i % len(requests)])
                        said = answer(connection)
                        if not said.startswith(b'HTTP/1.1 20'):
                            raise ConnectionError(said[:200])
                        ended = time.perf_counter()
                        waits.append((ended, ended - began))
            except OSError as error:
                faults.append(str(error))

        threads = [threading.Thread(target=client, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        time.sleep(min(1, seconds))  # until all is warm
        began = time.perf_counter()
        time.sleep(seconds)
        measured = [wait for ended, wait in [*waits] if ended >= began]
        seconds = time.perf_counter() - began
        stop.set()
        for thread in threads:
            thread.join()
        if not measured:
            faults.append(f'none was answered in {seconds:.1f} seconds: take more --seconds')
        p50, p99 = np.percentile(measured or [0], [50, 99])
        figures = {'requests_s': len(measured) / seconds, 'p50_ms': 1000 * p50, 'p99_ms': 1000 * p99}
        print(json.dumps({'fault': faults[0]} if faults else figures), flush=True)


def answer(connection):
    """Of an answer: all of it is read, by the length that its head tells."""
    said = b''
    while b'\r\n\r\n' not in said:
        said += received(connection)
    head, _, body = said.partition(b'\r\n\r\n')
    left = int(head.lower().partition(b'content-length:')[2].split()[0]) - len(body)
    while left > 0:
        left -= len(received(connection))
    return said


def received(connection):
    if not (said := connection.recv(65536)):
        raise ConnectionError('the connection was closed')
    return said


def request(what, body):
    """All bytes of a request, as text that JSON carries."""
    head = f'{what} HTTP/1.1\r\nHost: 127.0.0.1\r\n'
    if what.startswith('POST'):
        head += f'Content-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n{body.decode("latin-1")}'
    return head if what.startswith('POST') else head + '\r\n'


# ---------------------------------------------------------------------------------------------------------------------
# 3. measuring


def figures(ask, address, bodies, opts, about, before):
    """Rows for each path and number of clients. Their ratio is to torch, a picture at a time."""
    rows = []
    for path, what in PATHS.items():
        requests = [request(what, body) for body in bodies]
        for count in opts.clients:
            done, items = batches(address)
            found = ask(address, requests, count, opts.seconds)
            done, items = (b - a for a, b in zip((done, items), batches(address), strict=True))
            row = about | {'path': path, 'clients': count, 'minute': '', 'memory_mb': ''}
            row |= {name: round(value, 1) for name, value in found.items()}
            row['batch'] = round(items / done, 1) if done else ''
            first = [r for r in before + [row] if (r['path'], r['clients']) == (path, count)][0]
            row['ratio'] = round(row['requests_s'] / first['requests_s'], 2) if first['requests_s'] else ''
            said = (
                '{served:>12s} {batchsize:4d} {path:8s} {clients:3d} {requests_s:8.1f}/s {p50_ms:8.1f} {p99_ms:8.1f} ms'
            )
            print(said.format(**row), flush=True)
            rows.append(row)
    return rows


def batches(address):
    """How many batches were described so far, and how many pictures."""
    text = urllib.request.urlopen(f'{address}/metrics').read().decode().splitlines()
    values = dict(line.rsplit(' ', 1) for line in text if not line.startswith('#'))
    return [float(values.get(f'reid_batch_size_{what}{{work="describe"}}', 0)) for what in ('count', 'sum')]


def memory(ask, address, bodies, minutes, pid, about):
    """What the service holds, eleven times in so many minutes of describing, searching and adding. Pages of the index
    file that it has looked at do not count: the system takes them back when it wants to."""
    requests = [request(MIXED[i % len(MIXED)], body) for i, body in enumerate(bodies)]
    ask(address, requests, 8, 1)  # it is what comes after the first ones that should not grow
    working = threading.Thread(target=ask, args=(address, requests, 8, 60 * minutes))
    working.start()
    rows = []
    for step in range(11):
        row = about | {'minute': round(step * minutes / 10, 2), 'memory_mb': held(pid)}
        rows.append(row | dict.fromkeys(('requests_s', 'ratio', 'p50_ms', 'p99_ms', 'batch'), ''))
        print(f'after {row["minute"]:5.2f} minutes {row["memory_mb"]} MB', flush=True)
        if step < 10:
            time.sleep(6 * minutes)
    working.join()
    return rows


def held(pid):
    try:
        lines = Path(f'/proc/{pid}/status').read_text().splitlines()
    except OSError:
        raise Problem('--minutes: only Linux says what a process holds. --minutes 0 leaves it out') from None
    return round(next(int(line.split()[1]) for line in lines if line.startswith('RssAnon')) / 2**10, 1)


def keep(rows):
    def key(row):
        return [str(row[name]) for name in ('machine', 'threads', 'network', 'size', 'entries', *JOB)]

    new = [key(row) for row in rows]
    write_rows(TABLE, COLUMNS, [row for row in read_rows(TABLE) if key(row) not in new] + rows)


def markdown(rows, opts):
    """Requests a second, and milliseconds until half of the answers and until 99 of 100 were there."""
    columns = [(path, count) for path in PATHS for count in opts.clients]
    lines = ['| served, batch | ' + ' | '.join(f'{path}, {count}' for path, count in columns) + ' |']
    lines.append('| --- ' * (len(columns) + 1) + '|')
    found = {(row['served'], row['batchsize'], row['path'], row['clients']): row for row in rows}
    for served, batchsize in dict.fromkeys((row['served'], row['batchsize']) for row in rows):
        cells = [found[(served, batchsize) + column] for column in columns]
        cells = [f'{row["requests_s"]:,.0f}/s, {row["p50_ms"]:.0f}, {row["p99_ms"]:.0f} ms' for row in cells]
        lines.append(f'| {served}, {batchsize} | ' + ' | '.join(cells) + ' |')
    seen = [row['memory_mb'] for row in rows if row['path'] == 'mixed']
    return '\n'.join(lines + ([f'\nmemory: {seen[0]} MB at first, {seen[-1]} MB at the end'] if seen else []))


if __name__ == '__main__':
    cli.start(main, options)
