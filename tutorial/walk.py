"""Type the commands of the tutorial one after the other, and keep what they print for its pages.

Reads:   nothing; later steps read what earlier ones wrote
Writes:  tutorial/output/STEP.txt, of steps that print something; tutorial/figures/found.jpg, which the video gives;
         data/ and model/, as the commands do
Run:     python tutorial/walk.py
         python tutorial/walk.py prepare train

`python tutorial/pull.py` then puts the new output into the documents.
"""

import argparse
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = {
    'prepare': 'python prepare.py --dataset toy',
    'untrained': 'python train.py --name toy_untrained --config configs/toy.yaml --overwrite --total_epoch 0',
    'test_untrained': 'python test.py --name toy_untrained',
    'train': 'python train.py --name toy --config configs/toy.yaml --overwrite',
    'test': 'python test.py --name toy',
    'by_hand': 'python tutorial/by_hand.py --name toy',
    'evaluate': 'python evaluate_gpu.py --name toy',
    'demo': 'python demo.py --name toy --query_index 73 --heatmap',
    'rerank': 'python evaluate_rerank.py --name toy',
    'export': 'python export.py --name toy --compare 200',
    'index_create': 'python search.py index create data/people --name toy',
    'index_add': 'python search.py index add data/people data/toy/pytorch/gallery',
    'query': 'python search.py query data/toy/pytorch/query/0002 --index data/people --top 3',
    'other': 'python prepare.py --dataset toy --data_dir data/other --seed 1 --ids 40',
    'threshold': 'python threshold.py --name toy --data_dir data/other',
    'film': 'python -c "from reid.walks import write; write(\'data/walk.avi\', seconds=12)"',
    'video': 'python search.py video data/walk.avi --name toy --out data/found '
    '--find data/toy/pytorch/query/0002/0002_c2s3_086538_00.jpg',
}


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('steps', nargs='*', metavar='STEP', help=f'default all: {", ".join(STEPS)}')
    return parser


def main(opts):
    for name in opts.steps or STEPS:
        if name not in STEPS:
            sys.exit(f'{name}: there are {", ".join(STEPS)}')
        print(f'$ {STEPS[name]}', flush=True)
        if name == 'index_create':
            shutil.rmtree(ROOT / 'data/people', ignore_errors=True)  # of an earlier walk
        words = shlex.split(STEPS[name])
        done = subprocess.run([sys.executable, *words[1:]], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        print(done.stdout)
        if done.returncode > (name == 'video'):  # which ends with 1 where nobody is found
            sys.exit(done.returncode)
        if done.stdout:
            keep(name, done.stdout)
        if name == 'video':
            shutil.copy(ROOT / 'data/found/contact.jpg', ROOT / 'tutorial/figures/found.jpg')


def keep(name, text):
    """What was printed, without the place where this copy of the project lies."""
    text = re.sub(re.escape(f'{ROOT}/'), '', text)
    folder = ROOT / 'tutorial/output'
    folder.mkdir(exist_ok=True)
    (folder / f'{name}.txt').write_text(text, encoding='utf-8')


if __name__ == '__main__':
    main(options().parse_args())
