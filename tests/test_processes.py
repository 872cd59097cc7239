"""Several processes give what one gives: python -m pytest tests/test_processes.py"""

import json
import os
import subprocess
import sys

import numpy as np
from conftest import ROOT

from reid import processes, results
from reid.results import Features


def test_alone_every_function_is_the_identity():
    assert processes.first()
    assert processes.share(7) == slice(0, 7)
    assert processes.most(3.5) == 3.5
    array = np.arange(3)
    assert processes.total(array) is array


def people(rng, n, ids):
    f = rng.standard_normal((40, 24))[rng.integers(0, 40, n)]  # many are equal, in both shares
    f = (f / np.linalg.norm(f, axis=1, keepdims=True)).astype(np.float32)
    return Features(f, rng.choice(ids, n), rng.integers(1, 4, n), [f'{i}.jpg' for i in range(n)])


def test_two_processes_give_the_digits_of_one(tmp_path, card):
    rng = np.random.default_rng(0)
    parts = {'query': people(rng, 30, range(1, 9)), 'gallery': people(rng, 301, range(-1, 9))}
    parts['gallery'].cams[:1] = 9  # a camera with less to look at than there are processes
    results.save(tmp_path, 'pytorch_result', {}, **parts)
    results.save(tmp_path, 'multi_query', {}, mquery=people(rng, 90, range(1, 9)))
    words = ['pytorch_result.mat', '--report', '--aqe', '3', '--dba', '2', '--multi_by', 'max']
    alone = card('evaluate_gpu.py', *words, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    expected = json.loads((tmp_path / 'metrics.json').read_text())
    (tmp_path / 'metrics.json').unlink()

    command = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--standalone']
    done = subprocess.run(
        [*command, str(ROOT / 'evaluate_gpu.py'), *words],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, 'OMP_NUM_THREADS': '1'},
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / 'metrics.json').read_text()) == expected
    said = [[line for line in run.stdout.splitlines() if not line.endswith(' s')] for run in (alone, done)]
    assert said[0] == said[1]
    assert len((tmp_path / 'result.txt').read_text().splitlines()) == 6
