"""Describe every query and gallery picture by the features of a trained network, and rank them.

Reads:   model/<name>/ and <test_dir>/{query, gallery}
Writes:  model/<name>/{pytorch_result.mat, result.txt, metrics.json}
Run:     python test.py --name ft_ResNet50 --test_dir ../Market/pytorch
"""

import time

import utils
from reid import cli, data, features, identities, processes, results, settings
from reid.problem import Problem


def options():
    parser = cli.parser(__doc__)
    group = parser.add_argument_group('run')
    group.add_argument('--name', default='ft_ResNet50', help='the run to test (default ft_ResNet50)')
    utils.epoch_option(group)
    group.add_argument(
        '--test_dir', '--data_dir', help='the prepared tree; default: the one that the run was trained on'
    )
    group.add_argument('--multi', action='store_true', help='multi-query too: average all pictures of a query camera')
    settings.describing(parser)
    utils.network_options(parser, utils.OF_THE_RUN)
    utils.machine_options(parser)
    return parser


def main(opts):
    # 1. what to test: everything that can be wrong is found out before the work begins
    device = utils.device(opts.gpu_ids, together=True)
    folder = utils.find_run(opts.name)
    scales = features.areas(opts.ms)
    parts = {'gallery': 'gallery', 'query': 'query'} | ({'mquery': 'multi-query'} if opts.multi else {})
    trained_on = utils.read_opts(folder)['data_dir']
    if not opts.test_dir and len(trained_on) != 1:
        told = f'names {len(trained_on)} of them' if trained_on else 'does not say where the pictures are'
        raise Problem(f'--test_dir is needed: {folder}/opts.yaml {told}')
    root = data.tree(opts.test_dir or trained_on[0], list(parts.values()))
    people = {part: data.readable(data.people(root, name), opts.on_bad) for part, name in parts.items()}
    ids = dict(zip(people, data.numbers(*people.values()), strict=True))
    print(f'{root}: ' + ', '.join(f'{len(people[part].paths)} in {name}' for part, name in parts.items()))

    # 2. model
    model, trained = utils.load_run(opts.name, opts.which_epoch, device, typed=opts)
    cast, _ = utils.precision(opts, device)
    how = {'batchsize': utils.test_batchsize(opts, device), 'flip': not opts.no_flip, 'scales': scales}
    how |= {'cast': cast, 'workers': opts.num_workers}

    # 3. features, of unit length
    began, found = time.time(), {}
    for part, (paths, _, cams) in people.items():
        how['cams'] = identities.as_in_training(cams, root, trained_on)  # which some networks ask for
        f = features.extract(model, paths, (trained.height, trained.width), device, **how, title=parts[part])
        names = [data.relative(path, root) for path in paths]
        found[part] = results.Features(f, ids[part], cams, names)
    count = sum(len(f.ids) for f in found.values())
    print(f'{count} pictures -> {found["query"].f.shape[1]} numbers each, {time.time() - began:.0f} s')

    # 4. result: what belongs to an earlier test of this run goes, so that nothing stale is picked up
    about = {'data_dir': root.resolve(), 'which_epoch': opts.which_epoch, 'ms': opts.ms, 'no_flip': opts.no_flip}
    about = {key: str(value) for key, value in about.items()} | {'test_feature': trained.test_feature}
    if processes.first():
        for path in (folder / 'metrics.json', folder / 'report.png', *folder.glob('multi_query*')):
            results.remove(path)
        print(results.save(folder, 'pytorch_result', about, gallery=found['gallery'], query=found['query']))
        if opts.multi:
            results.save(folder, 'multi_query', about, mquery=found['mquery'])
    processes.wait()
    results.evaluate(results.find(folder), device)


if __name__ == '__main__':
    cli.start(main, options)
