"""Show whom the network found: a query and its nearest gallery pictures, green where right and red where wrong.

Reads:   model/<name>/pytorch_result.mat and the pictures that it was made of
Writes:  model/<name>/show.png
Run:     python demo.py --query_index 777 --heatmap
         python demo.py --name ft_ResNet50 --image mine.jpg

Junk (the query's own person by the query's own camera, which the protocol leaves out) is shown apart.
"""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import utils
from reid import cli, data, features, heatmap, plots, ranking, results, settings
from reid.problem import Problem


def options():
    parser = cli.parser(__doc__)
    group = parser.add_argument_group('query', 'One of these.')
    group.add_argument('--query_index', type=int, help='which query, from 0 (default 0)')
    group.add_argument('--all', action='store_true', help='all queries, to rankings/<index>.png in the run folder')
    group.add_argument('--image', help='a picture of your own as the query')
    group = parser.add_argument_group('picture')
    group.add_argument('--heatmap', action='store_true', help='a row of heat maps: what made each picture look alike')
    group.add_argument('--topk', default=10, type=settings.positive, help='how many hits to show (default 10)')
    group.add_argument('--test_dir', '--data_dir', help='the prepared tree, if it has moved since the test')
    group.add_argument('--no_show', action='store_true', help='do not open the picture')
    utils.result_options(parser)
    return parser


def main(opts):
    if sum(given is not None for given in (opts.query_index, opts.image, opts.all or None)) > 1:
        raise Problem('one of --query_index, --image and --all, please')

    # 1. the result, and the pictures it speaks of
    path = utils.result_of(opts)
    (query, gallery), about = results.load(path, 'query', 'gallery')
    root, query, gallery = with_pictures(query, gallery, opts.test_dir or about.get('data_dir'), path)

    # 2. a network, where pictures have to go through it
    network = None
    if opts.image or opts.heatmap:
        if path.resolve().parent != (utils.RUNS / path.parent.name).resolve():
            raise Problem(f'{path} lies in no run folder: --image and --heatmap need the network that made it')
        device = utils.device(opts.gpu_ids)
        which, feature = about.get('which_epoch', 'last'), about.get('test_feature')
        model, trained = utils.load_run(path.parent.name, which, device, test_feature=feature)
        flip = about.get('no_flip') != 'True'
        transform = data.test_transform(trained.height, trained.width)
        network = model, transform, device, flip

    # 3. rank and draw
    if opts.image:
        picture = data.read(opts.image)
        scales = features.areas(about.get('ms', '1'))
        x = transform(picture)[None].to(device)
        with torch.inference_mode():
            f = features.describe(model, x, flip, scales)[0].cpu().numpy()
        asked = picture, f, None, f'{Path(opts.image).name}: a picture of your own'
        out = draw(asked, gallery, root, network, opts, path.parent / 'show.png')
    elif opts.all:
        (path.parent / 'rankings').mkdir(exist_ok=True)
        for old in (path.parent / 'rankings').glob('*.png'):
            old.unlink()
        for index in tqdm(range(len(query.f)), desc='rankings', unit='img', disable=None):
            asked = from_query(query, index, root)
            out = draw(asked, gallery, root, network, opts, path.parent / 'rankings' / f'{index:05d}.png', quiet=True)
        out = out.parent
    else:
        index = opts.query_index or 0
        if not 0 <= index < len(query.f):
            raise Problem(f'--query_index {index}: 0 to {len(query.f) - 1} are there')
        out = draw(from_query(query, index, root), gallery, root, network, opts, path.parent / 'show.png')

    # 4. show
    print(out)
    screen = sys.platform in ('win32', 'darwin') or os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')
    if screen and sys.stdout and sys.stdout.isatty() and not opts.no_show and not opts.all:
        Image.open(out).show()


def with_pictures(query, gallery, test_dir, path):
    """Make sure that both know their pictures. Other projects store no paths: theirs are in ImageFolder order."""
    if test_dir is None:
        raise Problem(f'{path} does not say where its pictures are: --test_dir ../Market/pytorch')
    root = data.tree(test_dir, ['query', 'gallery'])
    parts = []
    for name, features_ in (('query', query), ('gallery', gallery)):
        paths = features_.paths
        if paths is None:
            paths = [data.relative(p, root) for p in data.people(root, name).paths]
        if len(paths) != len(features_.f):
            raise Problem(f'{path} holds {len(features_.f)} {name} features, {root / name} {len(paths)} pictures')
        parts.append(features_._replace(paths=paths))
    return root, *parts


def from_query(query, index, root):
    """(picture, feature, (identity, camera), title) of one query."""
    path = query.paths[index]
    who, cam = query.ids[index], query.cams[index]
    camera = f', camera {cam}' if cam != -1 else ''
    title = f'{Path(path).name} (identity {Path(path).parent.name}{camera})'
    return data.read(root / path), query.f[index], (who, cam), title


def draw(asked, gallery, root, network, opts, out, quiet=False):
    """Rank the gallery for one picture, print its hits and save the picture of them."""
    picture, f, who, title = asked
    scores = gallery.f @ f
    if who is None:  # nothing is known of a picture from outside, but false detections are never an answer
        good, junk = np.zeros(len(scores), bool), gallery.ids == -1
    else:
        good, junk = ranking.judge(*who, gallery.ids, gallery.cams)
    order = np.argsort(-scores, kind='stable')
    hits = order[~junk[order]][: opts.topk]
    if not len(hits):
        raise Problem('the gallery holds nothing but junk for this query')
    left_out = [i for i in order if junk[i] and scores[i] >= scores[hits[-1]] and gallery.ids[i] != -1]

    if not quiet:
        for rank, i in enumerate(hits, 1):
            verdict = '' if who is None else 'right' if good[i] else 'wrong'
            print(f'{rank:3d}  {scores[i]:.4f}  {verdict:5s}  {root / gallery.paths[i]}')
    if who is not None:
        title += f': {good[hits].sum()} of its {good.sum()} good images among the first {len(hits)}'
    pictures = [data.read(root / gallery.paths[i]) for i in hits]
    heat = None
    if opts.heatmap:
        model, transform, device, flip = network
        x = torch.stack([transform(p) for p in (picture, *pictures)]).to(device)
        heat = heatmap.heat(model, x, flip).cpu().numpy()
    plots.ranking(
        picture,
        [(p, f'{scores[i]:.3f}', None if who is None else bool(good[i])) for p, i in zip(pictures, hits, strict=True)],
        [(data.read(root / gallery.paths[i]), f'{scores[i]:.3f}') for i in left_out[: len(hits)]],
        title,
        f'left out:\n{len(left_out)} of the same\nperson by the\nsame camera',
        out,
        heat,
    )
    return out


if __name__ == '__main__':
    cli.start(main, options)
