"""Pictures to vectors, whether two show the same person, who of a gallery is in a picture, and who is in a video.

Reads:   model/<name>/, or a file that export.py has made of it (--model); pictures of any kind; an index; videos
Writes:  what --out names; an index, which is a folder
Run:     python search.py embed mine.jpg folder/ --name ft_ResNet50 --out features.npz
         python search.py same one.jpg other.jpg --name ft_ResNet50
         python search.py index create people --name ft_ResNet50
         python search.py index add people ../Market/pytorch/gallery
         python search.py query mine.jpg --index people --top 5
         python search.py query --text "a woman with a red bag" --index people
         python search.py video street.mp4 --find mine.jpg --name ft_ResNet50
"""

import datetime
import functools
import json
import os
import signal
import sys
import time
from contextlib import ExitStack, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

import utils
from reid import cli, detecting, embedding, index, rerank, settings, thresholds, tracking, vectors, watching
from reid.datasets import ABOUT, UNKNOWN, cameras, is_picture
from reid.files import holds
from reid.problem import Problem
from reid.video import EVERY, RENEW, Follower


def options():
    parser = cli.parser(__doc__)
    jobs = parser.add_subparsers(dest='job', required=True, metavar='JOB')

    own = job(
        jobs,
        'embed',
        embed,
        'one vector of unit length for each picture: their products are scores, -1 to 1',
        'python search.py embed mine.jpg folder/ --name ft_ResNet50 --out features.npz',
        'python search.py embed mine.jpg --model model/ft_ResNet50/ft_ResNet50.onnx',
    )
    own.add_argument('pictures', nargs='+', type=Path, help='files, or folders of them at any depth')
    own.add_argument('--out', type=Path, help='.npz, .csv or .jsonl (default: to the screen)')
    utils.embedder_options(own)

    own = job(
        jobs,
        'same',
        same,
        'do two pictures show the same person? By the thresholds that threshold.py has chosen',
        'python search.py same one.jpg other.jpg --name ft_ResNet50',
    )
    own.add_argument('pictures', nargs=2, type=Path, metavar='PICTURE', help='two files')
    utils.embedder_options(own)

    own = job(jobs, 'index', None, 'keep a gallery that changes', 'python search.py index stats people')
    kept = own.add_subparsers(dest='work', required=True, metavar='WORK')

    own = job(
        kept,
        'create',
        create,
        'an empty one, for the vectors of one network',
        'python search.py index create people --name ft_ResNet50',
        'python search.py index create people.db --engine milvus --name ft_ResNet50',
    )
    where(own)
    own.add_argument(
        '--engine',
        choices=index.ENGINES,
        help='what searches it: exact (default), faiss for hundreds of thousands, milvus (default of a server, or of a '
        'name that ends in .db)',
    )
    utils.embedder_options(own)

    own = job(
        kept,
        'add',
        add,
        'pictures. One that is there already, by its path, is described anew',
        'python search.py index add people ../Market/pytorch/gallery',
        'python search.py index add people new/1.jpg new/2.jpg --as Ann --camera 7 --time 2026-11-21T14:30',
    )
    where(own)
    own.add_argument('pictures', nargs='+', type=Path, help='files, or folders of them at any depth')
    own.add_argument('--as', dest='person', metavar='NAME', help='who it is (default: the folder that a picture is in)')
    own.add_argument('--camera', type=camera_number, help='its number (default: what a prepared tree says of it)')
    own.add_argument('--time', type=moment, help='when it was taken: 2026-11-21 or 2026-11-21T14:30 (default: now)')
    utils.embedder_options(own, 'that of the index')

    own = job(
        kept,
        'remove',
        remove,
        'entries, by anything that is known of them: all of it has to be true',
        'python search.py index remove people --as Ann --until 2026-01-01',
    )
    where(own)
    chosen(own)

    own = job(kept, 'list', list_entries, 'what is there', 'python search.py index list people --camera 2 --json')
    where(own)
    chosen(own)
    own.add_argument('--json', action='store_true', help='a line of JSON for each entry')

    own = job(kept, 'stats', stats, 'how much is there', 'python search.py index stats people')
    where(own)

    own = job(
        jobs,
        'query',
        query,
        'who is it? The entries of an index that are most alike',
        'python search.py query mine.jpg --index people --top 5',
        'python search.py query mine.jpg --index people --camera 2 --since 2026-11-21 --json',
        'python search.py query --text "a woman with a red bag" --index people',
    )
    own.add_argument('pictures', nargs='*', type=Path, help='files, or folders of them at any depth')
    own.add_argument(
        '--text',
        nargs='+',
        metavar='WORDS',
        help='or what somebody looks like, of a run with --head clip (docs/clip.md)',
    )
    own.add_argument('--index', dest='where', required=True, help='its folder, or the address of a server')
    own.add_argument('--top', default=10, type=settings.positive, help='how many (default 10)')
    own.add_argument('--camera', type=camera_number, help='entries of this camera only')
    own.add_argument('--since', type=moment, help='entries from this day or minute on only, such as 2026-11-21T14:30')
    own.add_argument('--until', type=moment, help='entries before it only')
    own.add_argument('--threshold', type=score, help='below it, it is unknown (default: where threshold.py says so)')
    own.add_argument('--rerank', action='store_true', help='the nearest 1000 in the order of their own neighbours')
    own.add_argument('--json', action='store_true', help='a line of JSON for each picture, or text')
    utils.embedder_options(own, 'that of the index')

    own = job(
        jobs,
        'video',
        video,
        'who is in a video, and when? The exit code is 1 if nobody is found',
        'python search.py video street.mp4 --find mine.jpg --name ft_ResNet50',
        'python search.py video gate.mp4 yard.mp4 --find mine.jpg --start 2026-11-21T14:30 --out found',
    )
    video_options(own)
    return parser


def video_options(own):
    own.add_argument('sources', nargs='+', metavar='SOURCE', help='videos, folders of frames, a camera (0), an address')
    own.add_argument(
        '--find', nargs='+', type=Path, metavar='PICTURE', help='of one person, cut out: when was that person there?'
    )
    own.add_argument(
        '--threshold',
        type=score,
        help='from this score on it is that person, and two tracks are one (default: where threshold.py says so)',
    )
    own.add_argument('--index', dest='where', help='put everybody into this index, for search.py query')
    own.add_argument(
        '--as', dest='person', metavar='NAME', help='in the index, of everybody (default: track 3 of street.mp4)'
    )
    own.add_argument('--camera', nargs='+', type=camera_number, help='the number of each source (default 1, 2, ...)')
    own.add_argument(
        '--start', nargs='+', type=moment, help='when each of them begins, such as 2026-11-21T14:30, or all of them do'
    )
    own.add_argument('--out', type=Path, default=Path('found'), help='a folder for what is found (default found)')
    own.add_argument('--no_video', action='store_true', help='without a copy of the video that shows who is where')
    own.add_argument('--top', default=20, type=settings.positive, help='tracks to list and to show (default 20)')
    group = own.add_argument_group('following')
    group.add_argument(
        '--detector',
        default='yolox_nano',
        metavar='NAME',
        help='yolox_nano (default), hog, a detector of torchvision, or a file .onnx of YOLOX or YOLOv8 and later',
    )
    group.add_argument('--weights', type=Path, metavar='FILE', help='of the detector, in place of a download')
    group.add_argument(
        '--every', default=EVERY, type=settings.positive, help=f'detect in every k-th frame only (default {EVERY})'
    )
    group.add_argument(
        '--renew', default=RENEW, type=seconds, help=f'seconds until a track gets another vector (default {RENEW:g})'
    )
    group.add_argument(
        '--realtime', action='store_true', help='at its own pace: drop frames rather than fall behind, as of a camera'
    )
    utils.embedder_options(own, 'that of the index, else ft_ResNet50')


def job(jobs, name, f, about, *commands):
    how = {'formatter_class': cli.Page, 'epilog': cli.examples(*commands), 'allow_abbrev': False}
    own = jobs.add_parser(name, help=about, description=f'{about[0].upper()}{about[1:]}.', **how)
    own.set_defaults(run=f)
    return own


def where(parser):
    parser.add_argument('where', metavar='INDEX', help='its folder, or the address of a server')


def chosen(parser):
    """What tells an entry from others. All that is given has to be true of it."""
    parser.add_argument('--ids', nargs='+', type=entry_number, help='numbers of entries')
    parser.add_argument('--as', dest='person', metavar='NAME', help='of the person')
    parser.add_argument('--camera', type=camera_number, help='its number')
    parser.add_argument('--since', type=moment, help='from this day or minute on, such as 2026-11-21T14:30')
    parser.add_argument('--until', type=moment, help='before it')
    parser.add_argument('--path', help='of the picture')


def main(opts):
    opts.run(opts)


# ---------------------------------------------------------------------------------------------------------------------
# 1. embed, same


def embed(opts):
    paths, embedder = files(opts.pictures), embedder_of(opts)
    with vectors.writer(opts.out, embedder) as write, Skipped(len(paths), opts.out is not None) as skipped:
        for path, f in embedding.described(embedder, paths, opts.batchsize, skipped):
            write(str(path), f)
            skipped.bar.update()
    if opts.out:
        print(f'{opts.out}: {len(paths) - skipped.count} pictures -> {embedder.dim} numbers each')
    skipped.leave()


def same(opts):
    embedder = embedder_of(opts)
    (_, one), (_, other) = embedding.described(embedder, opts.pictures)
    score = float(one.astype(np.float64) @ other)
    print(f'score {score:.4f}, distance {max(0, 2 - 2 * score) ** 0.5:.4f}')
    if isinstance(embedder.bounds, Problem):
        raise embedder.bounds
    bounds = embedder.bounds
    verdict = thresholds.judge(score, {'bounds': bounds})
    print(f'{verdict} (the same from {bounds["same"]:.4f}, not the same below {bounds["not_same"]:.4f})')


def embedder_of(opts, kept=None):
    """See utils.embedder. What it says goes to stderr: on stdout are the results, which other programs may read."""
    with redirect_stdout(sys.stderr):
        return utils.embedder(opts, kept, getattr(opts, 'where', None))


def files(given):
    """Files as they are, folders by the pictures in them, each once."""
    found = {}
    for path in given:
        path = path.expanduser()
        if path.is_dir():
            inside = sorted(p for p in path.rglob('*') if is_picture(str(p)) and p.is_file())
            if not inside:
                raise Problem(f'{path}: pictures are expected at any depth, found {holds(path)}')
            found |= dict.fromkeys(inside)
        else:
            found[path] = None
    return list(found)


class Skipped:
    """Files that cannot be read are named, and others go on; at the end the exit code is 1. With a progress bar."""

    def __init__(self, total, shown=True):
        self.count, self.total = 0, total
        self.bar = tqdm(total=total, unit='img', disable=None if shown else True)

    def __call__(self, path, problem):
        self.count += 1
        tqdm.write(f'skipped: {problem}', file=sys.stderr)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def leave(self):
        if self.count:
            print(f'{self.count} of {self.total} files could not be read', file=sys.stderr)
            sys.exit(1)


# ---------------------------------------------------------------------------------------------------------------------
# 2. index


def create(opts):
    embedder = embedder_of(opts)
    with index.create(opts.where, embedder.dim, embedder.about, opts.engine):
        print(
            f'{opts.where}: an empty index for vectors of {embedder.dim} numbers, as {embedder.about["run"]} gives them'
        )


def add(opts):
    paths = files(opts.pictures)
    with index.open(opts.where) as kept, Skipped(len(paths)) as skipped:
        embedder = embedder_of(opts, kept)
        camera = camera_of if opts.camera is None else lambda _: opts.camera
        batch, now = [], time.time() if opts.time is None else opts.time

        def flush():
            kept.add([entry for entry, _ in batch], np.stack([f for _, f in batch]))
            skipped.bar.update(len(batch))
            batch.clear()

        for path, f in embedding.described(embedder, paths, opts.batchsize, skipped):
            try:
                who = {'name': person_of(path, opts.person), 'camera': camera(path)}
            except Problem as problem:  # a name that does not tell
                skipped(path, problem)
                continue
            batch.append((who | {'time': now, 'path': str(path.resolve())}, f))
            if len(batch) >= WRITTEN:
                flush()
        if batch:
            flush()
        print(f'{opts.where}: {len(paths) - skipped.count} added, {kept.stats()["entries"]} in all')
    skipped.leave()


WRITTEN = 256  # entries at a time: each time the disk is waited for


def person_of(path, given):
    name = given or Path(os.path.abspath(path)).parent.name  # a link is named by where it lies
    if not name:
        raise Problem(f'{path} lies in no folder that says who it is: --as NAME does')
    return name


def camera_of(path):
    """What a prepared tree, <tree>/<part>/<id>/<picture>, says of it."""
    path = Path(os.path.abspath(path))
    root = next((folder for folder in path.parents[:4] if (folder / ABOUT).is_file()), None)
    return camera_rule(root)(path.name) if root else UNKNOWN


camera_rule = functools.cache(cameras)  # of a tree: reading its dataset.yaml takes longer than a name


def remove(opts):
    if not filters(opts):
        raise Problem('which? --ids, --as, --camera, --since, --until or --path says it')
    with index.open(opts.where) as kept:
        removed = kept.remove([entry.id for entry in entries(kept, opts)])
        print(f'{opts.where}: {removed} removed, {kept.stats()["entries"]} left')


def list_entries(opts):
    with index.open(opts.where) as kept:
        for entry in entries(kept, opts):
            print(json.dumps(entry._asdict()) if opts.json else line(entry))


def stats(opts):
    with index.open(opts.where) as kept:
        for name, value in kept.stats().items():
            print(f'{name}: {json.dumps(value) if isinstance(value, dict) else value}')


def entries(kept, opts):
    """Those that were asked for. A picture may go by another path than the whole one that it is kept under."""
    asked = filters(opts)
    return kept.find(**asked) or kept.find(**asked | ({'path': str(Path(opts.path).resolve())} if opts.path else {}))


def filters(opts):
    """What was asked for of find, by its names."""
    asked = {
        'name': getattr(opts, 'person', None),
        'ids': getattr(opts, 'ids', None),
        'path': getattr(opts, 'path', None),
    }
    asked |= {name: getattr(opts, name) for name in ('camera', 'since', 'until')}
    return {name: value for name, value in asked.items() if value is not None}


def line(entry):
    seen = datetime.datetime.fromtimestamp(entry.time).isoformat(' ', 'seconds') if entry.time is not None else '-'
    camera = f'camera {entry.camera}' if entry.camera != UNKNOWN else 'camera -'
    return f'{entry.id:6d}  {entry.name}  {camera}  {seen}  {entry.path or "-"}'


# ---------------------------------------------------------------------------------------------------------------------
# 3. query


def query(opts):
    if bool(opts.pictures) == bool(opts.text):
        raise Problem('pictures are expected, or --text with what somebody looks like: one of the two')
    if opts.text:
        query_by_words(opts)
        return
    paths = files(opts.pictures)
    with index.open(opts.where) as kept, Skipped(len(paths), shown=False) as skipped:
        embedder = embedder_of(opts, kept)
        least = thresholds.least(opts.threshold, embedder.bounds)
        for path, f in embedding.described(embedder, paths, opts.batchsize, skipped):
            hits = nearest(kept, f, opts)
            who = thresholds.who(hits, least)
            if opts.json:
                found = [{'score': score, **entry._asdict()} for score, entry in hits]
                print(json.dumps({'picture': str(path), 'who': who, 'threshold': least, 'hits': found}))
                continue
            print(f'{path}: {"unknown" if who is None else who}')
            for score, entry in hits:
                print(f'  {score:7.4f}  {line(entry)}')
        if least is None:
            print(f'without a threshold, whoever is nearest is named: {embedder.bounds}', file=sys.stderr)
    skipped.leave()


def nearest(kept, f, opts):
    """The hits of one vector. Re-ranking changes their order, and leaves them their scores."""
    hits = kept.query(f[None], max(opts.top, RERANKED) if opts.rerank else opts.top, **filters(opts))[0]
    if opts.rerank and len(hits) > 1:
        others, k = kept.vectors([entry.id for _, entry in hits]), min(20, len(hits))
        ((_, order),) = rerank.rerank(f[None], others, k, min(6, k))
        hits = [hits[i] for i in np.argsort(-order[0].numpy(), kind='stable')]
    return hits[: opts.top]


def query_by_words(opts):
    for name in ('threshold', 'rerank'):
        if name in opts.given:
            raise Problem(f'--{name} is for pictures: what a text is like has another scale, and no neighbours')
    with index.open(opts.where) as kept:
        with redirect_stdout(sys.stderr):
            words = utils.words(opts, kept, opts.where)
        for text, f in zip(opts.text, words.encode(opts.text).cpu().numpy(), strict=True):
            hits = alike(kept, f, opts)
            if opts.json:
                print(
                    json.dumps({'text': text, 'hits': [{'score': score, **entry._asdict()} for score, entry in hits]})
                )
                continue
            print(f'{text}:')
            for score, entry in hits:
                print(f'  {score:7.4f}  {line(entry)}')


def alike(kept, f, opts):
    """The hits of a text f (E,): their scores are cosines with the last E numbers of a descriptor, which lie in the
    space of texts. The index knows products with whole descriptors only, and so gives more of them to choose from."""
    asked = np.zeros((1, kept.dim), np.float32)
    asked[0, -len(f) :] = f / np.linalg.norm(f)
    hits = kept.query(asked, max(opts.top, RERANKED), **filters(opts))[0]
    if not hits:
        return []
    seen = kept.vectors([entry.id for _, entry in hits])[:, -len(f) :].astype(np.float64)
    scores = seen @ asked[0, -len(f) :] / np.maximum(np.linalg.norm(seen, axis=1), 1e-12)
    return [(float(scores[i]), hits[i][1]) for i in np.argsort(-scores, kind='stable')[: opts.top]]


RERANKED = 1000


# ---------------------------------------------------------------------------------------------------------------------
# 4. video


def video(opts):
    if opts.person and not opts.where:
        raise Problem(f'--as {opts.person} names everybody in an index: which one is --index?')
    with ExitStack() as stack:
        sources = watching.opened(opts.sources, opts.realtime, stack)
        kept = stack.enter_context(index.open(opts.where)) if opts.where else None
        device, threads = utils.one_of(opts.gpu_ids, together=False), torch.get_num_threads()
        opts.gpu_ids = '-1' if device.type == 'cpu' else opts.gpu_ids  # that there is no GPU is said once
        embedder = embedder_of(opts, kept)
        least = thresholds.least(opts.threshold, embedder.bounds)
        wanted = watching.wanted(opts.find, embedder, least)
        detect = detecting.load(opts.detector, opts.weights, device, threads, tracking.LOW)
        how = {'wanted': wanted, 'index': kept, 'person': opts.person, 'video': not opts.no_video}
        films = watching.films(sources, opts.sources, opts.camera, opts.start, opts.out, **how)

        def follower():
            return Follower(detect, embedder, opts.every, opts.renew, opts.batchsize)

        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a service that is stopped: as Ctrl-C
        stack.callback(signal.signal, signal.SIGTERM, before)
        stopped = watching.watch(films, follower, opts.out, embedder.about, opts.realtime, opts.top, least)
    code = watching.tell(films, opts.out, opts.top, embedder.bounds, least)
    if stopped:
        raise stopped
    sys.exit(code)


# ---------------------------------------------------------------------------------------------------------------------
# 5. values of options


def moment(text):
    """'2026-11-21', '2026-11-21T14:30', in local time if it names no other -> seconds since 1970."""
    try:
        return datetime.datetime.fromisoformat(text).timestamp()
    except (OverflowError, OSError):  # Windows knows no times before 1970
        raise ValueError(text) from None


score, seconds = settings.number(float, -1, 1), settings.number(float, 0.1)
camera_number, entry_number = settings.number(int, -1, 2**31 - 1), settings.number(int, 0, 2**63 - 1)


if __name__ == '__main__':
    cli.start(main, options)
