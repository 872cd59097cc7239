"""Several processes give what one gives: python -m pytest tests/test_processes.py"""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from scipy.io import loadmat

import utils
from reid import processes, results
from reid.files import read_rows
from reid.problem import Problem
from reid.results import Features

TWO = [sys.executable, '-m', 'torch.distributed.run', '--nproc_per_node', '2', '--standalone']


def two(script, *words, cwd):
    """A script in two processes -> CompletedProcess, output as text."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    command = [*TWO, *map(str, (ROOT / script, *words))]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)


def test_alone_every_function_is_the_identity():
    assert processes.first()
    assert processes.share(7) == slice(0, 7)
    assert processes.most(3.5) == 3.5
    assert processes.totals(torch.tensor(2.5), 3) == [2.5, 3]
    array, x, turns = np.arange(3), torch.zeros(3), [[1, 2], [3]]
    assert processes.total(array) is processes.joined(array, 3) is array
    assert processes.gathered(x) is x
    assert processes.own(turns) is turns
    net = torch.nn.Linear(3, 3)
    assert processes.parallel(net, torch.device('cpu')) is net
    processes.wait()
    processes.same(net)
    processes.blend(net)


# ---------------------------------------------------------------------------------------------------------------------
# 1. evaluation


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

    done = two('evaluate_gpu.py', *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / 'metrics.json').read_text()) == expected
    said = [[line for line in run.stdout.splitlines() if not line.endswith(' s')] for run in (alone, done)]
    assert said[0] == said[1]
    assert len((tmp_path / 'result.txt').read_text().splitlines()) == 6


# ---------------------------------------------------------------------------------------------------------------------
# 2. one step of training

STEP = """
import argparse, sys
import torch
from torch.nn import functional as F
import model as networks, utils
from reid import losses, optim, processes

def main(out, *words):
    device = utils.device(-1, together=True)
    torch.manual_seed(0)
    opts = argparse.Namespace(backbone='resnet18', head='bnneck', pool='avg', droprate=0.0, nclasses=7, sync_bn=False)
    vars(opts).update(dict.fromkeys(('stride', 'linear_num', 'loss_feature', 'test_feature')), height=64, width=32)
    vars(opts).update(optimizer='sgd', lr=1e-3, backbone_lr=1.0, layer_decay=1.0, weight_decay=0.0, compile=False)
    model = networks.build(networks.complete(opts)).to(memory_format=torch.channels_last)
    also = losses.Sum(losses.parse(words), 7, model.pieces)
    if processes.rank():  # until they are told to be the same
        for p in model.parameters():
            p.data += 1
    learner = utils.learner(model, opts, device)
    optimizers = optim.optimizers(model, also, opts)
    x, y = torch.randn(12, 3, 64, 32), torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3])
    (mine,) = processes.own([list(range(12))])
    learner.eval()  # BatchNorm looks at what each process has: a statistic of its own would be another thing
    seen = []
    for step in range(2):
        logits, feature = learner(x[mine])
        added, _ = also(feature, y[mine])
        loss = F.cross_entropy(logits[0], y[mine]) + added
        again, _ = model(x[mine].flip(3))  # as --adv and --DG go through the network once more, by themselves
        loss = loss + 0.3 * F.cross_entropy(again[0], y[mine])
        loss.backward()
        seen.append({'loss': processes.totals(loss)[0] / processes.count(), 'added': added.item()})
        seen[-1].update({f'{k}.{n}': p.grad.clone() for k, m in (('m', model), ('a', also))
                         for n, p in m.named_parameters() if p.grad is not None})
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    processes.same(model, also)
    seen.append(model.state_dict())
    if processes.first():
        torch.save(seen, out)

main(*sys.argv[1:])
"""


@pytest.mark.parametrize('loss', ['triplet circle', 'center arcface:2 verification', 'ranked_list supcon:0.5'])
def test_two_with_half_a_batch_each_learn_as_one(loss, tmp_path):
    """The hardest triplets are found in the whole batch, and gradients and losses are those of one process."""
    script = tmp_path / 'step.py'
    script.write_text(STEP)
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    subprocess.run([sys.executable, script, tmp_path / 'one', *loss.split()], env=environment, check=True, timeout=300)
    done = two(script, tmp_path / 'two', *loss.split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one, both = (torch.load(tmp_path / name, weights_only=True) for name in ('one', 'two'))
    for a, b, much in zip(one, both, (1e-4, 1e-2, 1e-2), strict=True):  # a step later rounding has been at work as well
        assert a.keys() == b.keys()
        for name in a:
            x, y = torch.as_tensor(a[name]).double(), torch.as_tensor(b[name]).double()
            assert (x - y).norm() <= much * x.norm() + 1e-7, name
    assert any(name.startswith('a.') for name in one[0]) == ('center' in loss)


# ---------------------------------------------------------------------------------------------------------------------
# 3. the cards

SMALL = (
    '--backbone resnet18 --height 64 --width 32 --linear_num 32 --weights none --backbone_lr 1 --seed 3 --gpu_ids -1'
)
SMALL = [*SMALL.split(), *'--data_dir data/toy --train_all --num_workers 0'.split()]


@pytest.fixture(scope='module')
def place(tmp_path_factory, card):
    cwd = tmp_path_factory.mktemp('place')
    assert card('prepare.py', '--dataset', 'toy', '--ids', 12, '--images', 6, cwd=cwd).returncode == 0
    return cwd


def test_a_run_of_two_is_one_run_and_goes_on_exactly(place, card):
    words = [*SMALL, *'--pk 4 2 --loss triplet --holdout 2 --eval_every 1 --average swa --average_from 0.5'.split()]
    whole = two('train.py', '--name', 'whole', '--total_epoch', 3, *words, cwd=place)
    assert whole.returncode == 0, whole.stderr
    assert whole.stdout.count('held out Rank@1') == 4  # three epochs and the average, each said once
    stopped = two('train.py', '--name', 'parts', '--total_epoch', 3, '--max_minutes', 0, *words, cwd=place)
    assert stopped.returncode == 0, stopped.stderr
    assert 'go on after epoch 1 with: python train.py --name parts --resume' in stopped.stdout
    assert not (place / 'model/parts/net_average.pth').exists()
    done = two('train.py', '--name', 'parts', '--resume', '--max_minutes', 60, cwd=place)
    assert done.returncode == 0, done.stderr
    for name in ('net_last', 'net_average', 'net_average_bn'):
        a, b = (torch.load(place / f'model/{run}/{name}.pth', weights_only=True) for run in ('whole', 'parts'))
        assert all(torch.equal(a[key], b[key]) for key in a), name
    assert yaml.safe_load((place / 'model/whole/opts.yaml').read_text())['run']['processes'] == 2
    log = read_rows(place / 'model/whole/log.csv')
    assert [row['epoch'] for row in log] == ['1', '2', '3']
    assert all(0 < float(row['train_triplet']) < float(row['train_loss']) for row in log)
    assert not list((place / 'model/whole').glob('*.part'))

    alone = card('test.py', '--name', 'whole', cwd=place)
    assert alone.returncode == 0, alone.stderr
    one = loadmat(place / 'model/whole/pytorch_result.mat')
    both = two('test.py', '--name', 'whole', '--multi', cwd=place)
    assert both.returncode == 0, both.stderr
    two_of_them = loadmat(place / 'model/whole/pytorch_result.mat')
    for name in ('query_f', 'gallery_f'):
        np.testing.assert_allclose(one[name], two_of_them[name], atol=1e-5)
    assert (place / 'model/whole/multi_query.mat').is_file()
    assert both.stdout.count('Rank@1:') == 2


def test_batches_are_shuffled_and_shared(place):
    """Without --pk: what is logged is of all pictures, and an uneven share is a sentence."""
    done = two('train.py', '--name', 'plain', '--total_epoch', 2, '--batchsize', 6, '--cache', 'off', *SMALL, cwd=place)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(place / 'model/plain/log.csv')) == 2
    done = two('train.py', '--name', 'odd', '--total_epoch', 1, '--batchsize', 5, *SMALL, cwd=place)
    assert done.returncode != 0
    assert 'a batch of 5 pictures cannot be shared by 2 processes' in done.stderr
    done = two('train.py', '--name', 'sync', '--total_epoch', 1, '--sync_bn', *SMALL, cwd=place)
    assert '--sync_bn: torch synchronises BatchNorm on GPUs only' in done.stderr


def test_what_is_done_once_is_done_by_one_process(place):
    done = two('evaluate_rerank.py', '--name', 'whole', cwd=place)
    assert 'this script runs in one process' in done.stderr


# ---------------------------------------------------------------------------------------------------------------------
# 4. GPUs, as far as that can be tested without them


def test_several_gpus_start_a_process_each(monkeypatch):
    called = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: True)
    monkeypatch.setattr(subprocess, 'call', lambda command: called.append(command) or 7)
    monkeypatch.setattr(sys, 'argv', ['train.py', '--gpu_ids', '0,1'])
    with pytest.raises(SystemExit) as end:
        utils.device('0,1', together=True)
    assert end.value.code == 7
    assert called == [[*TWO[:3], '--standalone', '--nproc_per_node', '2', 'train.py', '--gpu_ids', '0,1']]
    assert str(utils.device('0,1')) == 'cuda:0'  # of a script that does its work alone
    with pytest.raises(Problem, match='this machine has GPUs 0 to 1'):
        utils.device('2', together=True)
    monkeypatch.setenv('LOCAL_RANK', '2')
    with pytest.raises(Problem, match='this machine has GPUs 0 to 1'):  # more processes than GPUs
        utils.device('0')
