"""One thread for every test and every process it starts: two of two threads slow each other down many times."""

import os

os.environ['OMP_NUM_THREADS'] = os.environ['OPENBLAS_NUM_THREADS'] = os.environ['MKL_NUM_THREADS'] = '1'
os.environ['MPLBACKEND'] = 'agg'

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
torch.set_num_threads(1)


@pytest.fixture(scope='session')
def card():
    """Run a script as a user does: card('test.py', '--name', 'x', cwd=folder) -> CompletedProcess, output as text."""

    def run(script, *words, cwd):
        command = [sys.executable, str(ROOT / script), *map(str, words)]
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)
        assert 'Traceback' not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def recipe(tmp_path):
    """Write a recipe: recipe('lr: 0.02') -> its path."""

    def write(text):
        path = tmp_path / 'recipe.yaml'
        path.write_text(text, encoding='utf-8')
        return path

    return write
