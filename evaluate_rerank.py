"""Print the same figures after k-reciprocal re-ranking, arXiv 1701.08398: no training, usually 10 points more mAP.

Reads:   model/<name>/pytorch_result.mat, or any .mat of that form
Writes:  result.txt and metrics.json beside it
Run:     python evaluate_rerank.py --name ft_ResNet50
"""

import time

import utils
from reid import cli, processes, ranking, rerank, results, settings


def options():
    parser = cli.parser(__doc__)
    utils.result_options(parser)
    group = parser.add_argument_group(
        're-ranking', 'The defaults suit Market-1501; smaller k for a gallery with few pictures of each.'
    )
    group.add_argument(
        '--k1', default=20, type=settings.positive, help='neighbours that must name each other (default 20)'
    )
    group.add_argument(
        '--k2', default=6, type=settings.positive, help='neighbours to average over (default 6; 1: none)'
    )
    group.add_argument(
        '--lambda_value',
        default=0.3,
        type=settings.fraction,
        help="the original distance's share in the final one (default 0.3; 1: no re-ranking)",
    )
    group.add_argument(
        '--distance',
        default='squared',
        choices=rerank.DISTANCES,
        help='squared (default): from (2-2cos)^2, as the PyTorch baseline; plain: from 2-2cos, as the strong baseline',
    )
    return parser


def main(opts):
    # 1. features
    processes.alone()
    path, device = utils.result_of(opts), utils.device(opts.gpu_ids)
    (query, gallery), _ = results.load(path, 'query', 'gallery')

    # 2. re-ranked scores, block by block, into the protocol
    began = time.time()
    chosen = {name: getattr(opts, name) for name in ('k1', 'k2', 'lambda_value', 'distance')}
    blocks = rerank.rerank(query.f, gallery.f, **chosen, device=device)
    figures = ranking.figures(ranking.ranks_in(blocks, query, gallery))

    # 3. figures
    text = f're-ranked {results.line(figures)}'
    print(f'{text}\n{figures["queries"]} queries, {len(gallery.f)} gallery images, {time.time() - began:.1f} s')
    results.record(path, text, rerank=figures | chosen)


if __name__ == '__main__':
    cli.start(main, options)
