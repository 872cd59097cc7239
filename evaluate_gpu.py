"""Print Rank@1/5/10, mAP and mINP of a result, on a GPU where there is one, else on the CPU.

Reads:   model/<name>/pytorch_result.mat, or any .mat of that form
Writes:  result.txt and metrics.json beside it; with --report also report.png
Run:     python evaluate_gpu.py --name ft_ResNet50
         python evaluate_gpu.py --name ft_ResNet50 --report
"""

import time

import utils
from reid import cli, plots, processes, queries, ranking, report, results, settings
from reid.problem import Problem


def options():
    parser = cli.parser(__doc__)
    utils.result_options(parser)
    group = parser.add_argument_group(
        'ranking', 'Other ways to rank the same features; the plain figures are always told.'
    )
    group.add_argument(
        '--multi_by',
        default='mean',
        choices=results.MULTI,
        help='after test.py --multi: rank by the mean of the features of a query (default), or by the best of them',
    )
    group.add_argument(
        '--aqe',
        default=0,
        type=settings.whole,
        metavar='N',
        help='expand queries by their N nearest gallery images (default 0; try 5)',
    )
    group.add_argument(
        '--dba',
        default=0,
        type=settings.whole,
        metavar='N',
        help='expand gallery images by their N nearest others (default 0; try 5)',
    )
    group.add_argument(
        '--alpha',
        default=3.0,
        type=settings.rate,
        help='weigh what --aqe and --dba add by its score to this power (default 3; 0: all alike)',
    )
    group = parser.add_argument_group('more about them')
    group.add_argument(
        '--report', action='store_true', help='how sure the figures are, a table of cameras, thresholds, curves'
    )
    group.add_argument(
        '--versus', metavar='RUN', help='another run or result file: is the difference between the two real?'
    )
    return parser


def main(opts):
    # 1. the result
    device = utils.device(opts.gpu_ids, together=True)
    path = utils.result_of(opts)
    other = utils.result_named(opts.versus) if opts.versus is not None else None
    if 'multi_by' in opts.given and results.find(path.parent, 'multi_query') is None:
        raise Problem('--multi_by needs several pictures of each query: python test.py --multi describes them')

    # 2. figures
    began = time.time()
    query, gallery, ranks = results.evaluate(path, device, opts.multi_by)
    print(f'evaluated in {time.time() - began:.1f} s')

    # 3. with queries and gallery images that have taken in their neighbours
    if opts.aqe or opts.dba:
        f, g = query.f, gallery.f
        if opts.dba:
            g = queries.expand(g, g, opts.dba, opts.alpha, device, title='dba')
        if opts.aqe:
            f = queries.expand(f, g, opts.aqe, opts.alpha, device, title='aqe')
        figures = ranking.figures(ranking.ranks(query._replace(f=f), gallery._replace(f=g), device))
        chosen = {name: getattr(opts, name) for name in ('aqe', 'dba', 'alpha')}
        print(f'expanded {results.line(figures)}')
        results.record(path, f'expanded {results.line(figures)}', expanded=figures | chosen)

    # 4. more about them
    if opts.report:
        pairs = report.verification(query, gallery, device)
        for lines in (
            report.interval_lines(ranks),
            report.camera_lines(query, gallery, device),
            report.threshold_lines(*pairs),
        ):
            print('', *lines, sep='\n')
        out = path.parent / ('report.png' if path.stem == 'pytorch_result' else f'{path.stem}.report.png')
        if processes.first():
            plots.report(ranks, *pairs, out)
            print(out)
    if other is not None:
        (others, other_gallery), _ = results.load(other, 'query', 'gallery')
        report.same_task(query, gallery, others, other_gallery)
        there = ranking.ranks(others, other_gallery, device)
        print('', *report.compare_lines(ranks, there, opts.name or path.parent.name, opts.versus), sep='\n')


if __name__ == '__main__':
    cli.start(main, options)
