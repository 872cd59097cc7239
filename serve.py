"""The network and an index as a page for a browser and an HTTP service: pictures in, descriptors, verdicts, names out.

Reads:   model/<name>/, or a file that export.py has made of it (--model); an index
Writes:  the index, for those who add and remove; small pictures for the page (<index>/page, or --page_dir)
Run:     python search.py index create people --name ft_ResNet50
         python serve.py --index people
         curl -F picture=@mine.jpg 'http://127.0.0.1:8000/gallery?name=Ann'
         curl -F picture=@other.jpg 'http://127.0.0.1:8000/search?top=5'

Whoever is to use it from elsewhere (--host 0.0.0.0) should have to know a token, in the environment: REID_TOKEN. They
send it as "Authorization: Bearer TOKEN", or log in with it on the page. It goes over the line as it is: HTTPS is what a
server such as nginx adds.
SIGTERM and Ctrl-C end it after all that was let in has been answered.
"""

import ipaddress
import logging
import os
import re
import signal
import socket
import sys
from argparse import Namespace
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

import utils
from reid import cli, detecting, index, machine, page, runtime, service, settings
from reid.page_start import Start
from reid.problem import Problem


def options():
    parser = cli.parser(__doc__)
    group = parser.add_argument_group('who and where')
    group.add_argument('--index', help='its folder, or the address of a server (default: /embed and /same alone)')
    group.add_argument(
        '--host', default='127.0.0.1', help='whom to listen to: 127.0.0.1 (default), this machine alone; 0.0.0.0, all'
    )
    group.add_argument(
        '--port', default=8000, type=settings.number(int, 0, 65535), help='default 8000; 0: any that is free'
    )
    group = parser.add_argument_group('limits')
    group.add_argument(
        '--wait_ms',
        default=3.0,
        type=settings.rate,
        help='milliseconds that a picture waits for others, to be described with them (default 3; 0: alone)',
    )
    group.add_argument(
        '--queue', default=256, type=settings.positive, help='requests at a time (default 256): the next are told 429'
    )
    group.add_argument(
        '--max_mb',
        default=10,
        type=settings.positive,
        help='megabytes of a request (default 10): larger ones are told 413',
    )
    group.add_argument(
        '--max_mpixels',
        default=25,
        type=settings.positive,
        help='millions of pixels of a picture (default 25): larger ones are told 413',
    )
    group.add_argument(
        '--max_video_mb', default=500, type=settings.positive, help='megabytes of a video for the page (default 500)'
    )
    group.add_argument('--threads', type=settings.positive, help='of the CPU (default: as many as there are cores)')
    group = parser.add_argument_group('page')
    group.add_argument(
        '--detector',
        default='yolox_nano',
        metavar='NAME',
        help='finds people for the page: yolox_nano (default, downloaded once), hog, a detector of torchvision, or a '
        'file .onnx of YOLOX or YOLOv8',
    )
    group.add_argument(
        '--page_dir', type=Path, help='a folder for pictures of the page (default: page, in the folder --index)'
    )
    utils.embedder_options(parser, 'that of the index, or ft_ResNet50')
    return parser


def main(opts):
    token = token_of(os.environ)
    with bound(opts.host, opts.port) as listening, opened(opts) as kept:
        start = starting(opts, kept)
        embedder, opts = network(opts, kept, start)
        limits = service.LIMITS._replace(
            batchsize=opts.batchsize,
            wait=opts.wait_ms / 1000,
            queue=opts.queue,
            bytes=opts.max_mb * 10**6,
            pixels=opts.max_mpixels * 10**6,
        )
        pages, why = pages_of(opts, kept, start, token)
        api = service.app(embedder, kept, limits, token, local=is_local(opts.host), page=pages)
        server = uvicorn_server(api)
        with told(opts.host, opts.port):
            listening.listen()  # who comes from now on is answered
        tell(opts, embedder, kept, token, listening, why)
        server.run([listening])


# ---------------------------------------------------------------------------------------------------------------------
# 1. what is served


def opened(opts):
    if opts.index is None:
        return nullcontext()
    if not index.is_milvus(opts.index) and not Path(opts.index).exists():
        of = f'--model {cli.quote(opts.model)}' if opts.model else f'--name {opts.name or "ft_ResNet50"}'
        raise Problem(f'there is no {opts.index}: python search.py index create {cli.quote(opts.index)} {of} makes one')
    return index.open(opts.index)


def network(opts, kept, start=None):
    """The network that was asked for, else that of the index; as was chosen on the page where nothing was typed. -> it
    and the options that hold."""
    if opts.threads:
        torch.set_num_threads(opts.threads)
    chosen = start.chosen() if start else {}
    try:
        found = with_choice(opts, kept, chosen)
    except Problem as problem:
        if not chosen:
            raise
        print(f'what was chosen on the page cannot be: {problem}', file=sys.stderr)
        found, chosen = with_choice(opts, kept, {}), {}
    if start:
        start.now |= chosen
    torch.backends.cudnn.benchmark = False  # batches are of any size, and it would try out each of them
    return found


def with_choice(opts, kept, chosen):
    opts = Namespace(**vars(opts))
    opts.gpu_ids = devices(opts).get(chosen.get('device'), opts.gpu_ids)
    if engine := engines(opts, kept).get(chosen.get('engine')):
        opts.model, opts.runtime = engine
    return utils.embedder(opts, kept, opts.index, torch.get_num_threads()), opts


def page_folder(opts):
    """Where the page keeps its pictures, or None."""
    if opts.page_dir or opts.index is None or index.is_milvus(opts.index):
        return opts.page_dir
    return Path(opts.index) / 'page'


def pages_of(opts, kept, start=None, token=None):
    """The page, or None and why there is none. With a token it may be for others as well, by way of nginx: they do not
    see what lies on this machine, whatever path an entry has."""
    folder = page_folder(opts)
    if kept is None:
        return None, 'none without --index'
    if folder is None:
        return None, 'none with Milvus, unless --page_dir names a folder for its pictures'
    if opts.detector not in detecting.DETECTORS and not Path(opts.detector).is_file():
        detecting.load(opts.detector)  # which says what is expected; others are loaded when they are asked for
    names = {Path(opts.detector).name: opts.detector, 'hog': 'hog'}
    detectors = {shown: partial(detector, opts, name) for shown, name in names.items()}
    reads = is_local(opts.host) and token is None
    return page.Pages(folder, detectors, reads, opts.max_video_mb * 10**6, start), None


def detector(opts, name, least):
    return detecting.load(name, None, utils.one_of(opts.gpu_ids, False), torch.get_num_threads(), least)


# ---------------------------------------------------------------------------------------------------------------------
# 2. what the page may choose, for the next start


def starting(opts, kept):
    folder = page_folder(opts)
    if kept is None or folder is None:
        return None
    by_options = {'device': {'gpu_ids'}, 'engine': {'model', 'runtime'}}
    typed = [name for name, names in by_options.items() if names & opts.given]
    return Start(folder / 'start.json', {'device': devices(opts), 'engine': engines(opts, kept)}, typed)


def devices(opts):
    """{what it is called: --gpu_ids}, that of the command line first."""
    found = {f'GPU {i}: {torch.cuda.get_device_name(i)}': str(i) for i in range(torch.cuda.device_count())}
    if torch.backends.mps.is_available():
        found['GPU'] = '0'
    found[f'CPU: {machine.describe(torch.device("cpu"))}'] = '-1'
    wanted = str(utils.gpu_numbers(opts.gpu_ids)[0])
    return dict(sorted(found.items(), key=lambda one: one[1] != wanted))


def engines(opts, kept):
    """{what it is called: (--model, --runtime)}, that of the command line first: of a run itself and what export.py has
    made of it, of a file all that can run it."""
    files, found = [opts.model] if opts.model else [], {}
    if not opts.model:
        found['PyTorch'] = None, opts.runtime
        files = sorted(utils.run_folder(opts.name or kept.about.get('run') or 'ft_ResNet50').glob('*.onnx'))
    for path in files:
        for name, (packages, suffixes, _) in runtime.RUNTIMES.items():
            if path.suffix in suffixes and find_spec(packages.split()[-1]):
                found[f'{name}: {path.name}'] = path, name
    return dict(sorted(found.items(), key=lambda one: opts.runtime is not None and one[1][1] != opts.runtime))


# ---------------------------------------------------------------------------------------------------------------------
# 3. who may use it


def token_of(environment):
    token = environment.get('REID_TOKEN')
    if token is not None and not re.fullmatch('[!-~]+', token):
        raise Problem(
            'REID_TOKEN: letters, digits and signs are expected, without a space. Unset it for no token at all'
        )
    return token


def is_local(host):
    try:
        return host == 'localhost' or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bound(host, port):
    """A socket that has the address. It does not listen yet: while the network is loaded nobody waits in vain."""
    with told(host, port):
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)  # without the protocol asyncio would not set TCP_NODELAY
        if os.name == 'posix':  # elsewhere it would mean that two may have it
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    return listening


@contextmanager
def told(host, port):
    try:
        yield
    except (OSError, UnicodeError) as error:
        reason = getattr(error, 'strerror', None) or error
        raise Problem(f'--host {host} --port {port}: {reason}. Is it used by another program?') from None


def tell(opts, embedder, kept, token, listening, why=None):
    host = f'[{opts.host}]' if ':' in opts.host else opts.host
    print(f'network: {embedder.about["run"]}, {embedder.dim} numbers a picture')
    entries = f'{opts.index}, {kept.stats()["entries"]} entries' if kept else 'none (--index): /embed and /same alone'
    print(f'index: {entries}')
    print(f'token: {"REID_TOKEN" if token else "none"}')
    if not token and not is_local(opts.host):
        print(
            f'--host {opts.host}: all who reach this machine can use the service. REID_TOKEN=... keeps them out',
            file=sys.stderr,
        )
    print(f'page: {why or "open the address in a browser"}')
    print(f'http://{host}:{listening.getsockname()[1]}  (what can be asked for: /docs)', flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# 4. the server


def uvicorn_server(api):
    try:
        import uvicorn
    except ImportError:
        raise Problem('the service needs a package that is not here: pip install uvicorn') from None
    logging.getLogger('python_multipart').setLevel(logging.ERROR)  # a form that is wrong is the client's affair
    # One way to read HTTP, that which is tested; and no list of who asked for whom.
    how = {'http': 'h11', 'ws': 'none', 'loop': 'asyncio', 'access_log': False, 'server_header': False}
    server = uvicorn.Server(uvicorn.Config(api, log_level='warning', lifespan='on', **how))
    for name in (signal.SIGINT, signal.SIGTERM):  # it raises them again when all is done: that shall not kill us
        signal.signal(name, server.handle_exit)
    return server


if __name__ == '__main__':
    cli.start(main, options)
