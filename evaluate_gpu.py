"""Print Rank@1/5/10, mAP and mINP of a result, on a GPU where there is one, else on the CPU.

Reads:   model/<name>/pytorch_result.mat, or any .mat of that form
Writes:  result.txt and metrics.json beside it
Run:     python evaluate_gpu.py --name ft_ResNet50
"""

import utils
from reid import cli, results


def options():
    parser = cli.parser(__doc__)
    utils.result_options(parser)
    return parser


def main(opts):
    results.evaluate(utils.result_of(opts), utils.device(opts.gpu_ids))


if __name__ == '__main__':
    cli.start(main, options)
