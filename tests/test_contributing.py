"""The additions that CONTRIBUTING shows are applied to a copy and used: python -m pytest tests/test_contributing.py"""

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

DIFFS = re.findall(r'```diff\n(.*?)```', (ROOT / '.github/CONTRIBUTING.md').read_text(encoding='utf-8'), re.S)


@pytest.fixture(scope='module')
def copy(tmp_path_factory):
    if not shutil.which('git'):
        pytest.skip('git applies them')
    folder = tmp_path_factory.mktemp('copy')
    for path in ROOT.glob('*.py'):
        shutil.copy(path, folder)
    shutil.copytree(ROOT / 'reid', folder / 'reid', ignore=shutil.ignore_patterns('__pycache__'))
    subprocess.run(['git', 'init', '-q'], cwd=folder, check=True)  # or git looks for a repository above it
    for diff in DIFFS:
        done = subprocess.run(['git', 'apply', '-'], cwd=folder, input=diff, capture_output=True, text=True)
        assert done.returncode == 0, f'{done.stderr}{diff}'
    return folder


def python(folder, *words):
    done = subprocess.run([sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_is_short():
    assert len(DIFFS) == 3
    for diff in DIFFS:
        assert sum(line.startswith(('+', '-')) for line in diff.splitlines()) - 2 < 20


def test_the_data_set_is_prepared_and_the_loss_trains_the_backbone(copy):
    draw = np.random.default_rng(0)
    parts = {'rgb/train': ['A_cropped_rgb1.jpg', 'B_cropped_rgb1.jpg', 'C_cropped_rgb1.jpg']}
    tests = {'rgb/test/A': ['cropped_rgb1.jpg', 'cropped_rgb2.jpg'], 'rgb/test/C': ['cropped_rgb3.jpg']}
    for person in range(8):
        colour = draw.integers(0, 255, 3)
        for part, names in (parts if person < 4 else tests).items():
            for name in names:
                path = copy / 'raw' / part / f'{person:03d}' / name
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray((colour + draw.normal(0, 9, (64, 32, 3))).clip(0, 255).astype(np.uint8)).save(path)
    said = python(copy, 'prepare.py', '--data_dir', 'raw', '--dataset', 'prcc')
    assert re.search(r'PRCC.*\ntrain_all +4 +12\n.*\n.*\nquery +4 +4\ngallery +4 +8\n', said)
    small = '--pk 2 2 --height 64 --width 32 --total_epoch 1 --gpu_ids -1 --name x --weights none'.split()
    new = '--backbone plain --loss multi_similarity:0.5:beta=40'.split()
    python(copy, 'train.py', '--data_dir', 'raw/pytorch', *small, *new)
    python(copy, 'test.py', '--name', 'x', '--gpu_ids', '-1')
    figures = json.loads((copy / 'model/x/metrics.json').read_text(encoding='utf-8'))
    assert (figures['queries'], figures['queries_without_good']) == (4, 0)


def test_the_loss_is_what_its_paper_says(copy):
    pytest.importorskip('pytorch_metric_learning')
    code = """
import torch
from pytorch_metric_learning.losses import MultiSimilarityLoss
from reid.losses import LOSSES
f, y = torch.randn(12, 8), torch.arange(4).repeat(3)
torch.testing.assert_close(LOSSES['multi_similarity'][0](4, 8)(f, y), MultiSimilarityLoss(2, 50, 0.5)(f, y))
"""
    python(copy, '-c', code)
