"""The six cards as a user runs them, on a toy data set of a few pictures: python -m pytest tests/test_pipeline.py"""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from PIL import Image
from scipy.io import loadmat, savemat

SMALL = '--backbone resnet18 --height 64 --width 32 --linear_num 32 --weights none --batchsize 8'
SMALL = [*SMALL.split(), *'--num_workers 0 --seed 3 --gpu_ids -1'.split()]
KEYS = {'rank1', 'rank5', 'rank10', 'map_trapezoid', 'map_standard', 'minp', 'queries', 'queries_without_good'}


@pytest.fixture(scope='module')
def place(tmp_path_factory, card):
    """A working folder with a toy data set and a run of two epochs, tested with multi-query."""
    cwd = tmp_path_factory.mktemp('place')
    done = card('prepare.py', '--dataset', 'toy', '--ids', 12, '--images', 6, cwd=cwd)
    assert done.returncode == 0, done.stderr
    done = card('train.py', '--name', 'a', '--data_dir', 'data/toy', '--train_all', '--total_epoch', 2, *SMALL, cwd=cwd)
    assert done.returncode == 0, done.stderr
    done = card('test.py', '--name', 'a', '--multi', '--num_workers', 0, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return cwd


def state(path):
    return torch.load(path, weights_only=True)


def log(folder):
    with (folder / 'log.csv').open() as file:
        return list(csv.DictReader(file))


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_training_leaves_a_run(place):
    run = place / 'model' / 'a'
    opts = yaml.safe_load((run / 'opts.yaml').read_text())
    assert opts['backbone'] == 'resnet18'
    assert opts['run']['nclasses'] == 6
    rows = log(run)
    assert [row['epoch'] for row in rows] == ['1', '2']
    assert all(0 <= float(row['val_top1err']) <= 1 and float(row['train_loss']) > 0 for row in rows)
    with Image.open(run / 'train.jpg') as picture:
        assert picture.size[0] > 600
    assert not list(run.glob('*.part'))


def test_the_result_has_the_documented_form(place):
    content = loadmat(place / 'model' / 'a' / 'pytorch_result.mat')
    gallery = sorted((place / 'data/toy/pytorch/gallery').glob('*/*'), key=lambda p: (p.parent.name, p.name))
    assert content['gallery_f'].shape == (len(gallery), 32)
    np.testing.assert_allclose(np.linalg.norm(content['gallery_f'], axis=1), 1, atol=1e-5)
    assert content['gallery_label'].ravel().tolist() == [int(path.parent.name) for path in gallery]
    assert content['gallery_cam'].ravel().tolist() == [int(path.name.split('_c')[1][0]) for path in gallery]
    assert [p.item() for p in content['gallery_path'].ravel()] == [f'gallery/{p.parent.name}/{p.name}' for p in gallery]
    assert {'mquery_f', 'mquery_label', 'mquery_cam'} <= set(loadmat(place / 'model' / 'a' / 'multi_query.mat'))


def test_evaluation_says_the_same_again(place, card):
    """test.py and evaluate_gpu.py print the same figures; without a name the run last tested is taken, and named."""
    metrics = json.loads((place / 'model' / 'a' / 'metrics.json').read_text())
    assert KEYS | {'multi'} == set(metrics)
    assert set(metrics['multi']) == {*KEYS, 'by'}
    done = card('evaluate_gpu.py', cwd=place)
    assert 'a: the run last tested\n' in done.stdout
    assert f'Rank@1:{metrics["rank1"]:.6f}' in done.stdout
    assert f'multi (mean) Rank@1:{metrics["multi"]["rank1"]:.6f}' in done.stdout
    assert json.loads((place / 'model' / 'a' / 'metrics.json').read_text()) == metrics
    done = card('evaluate_rerank.py', '--k1', 6, '--k2', 3, '--lamb', 0.5, cwd=place)
    assert 're-ranked Rank@1:' in done.stdout
    again = json.loads((place / 'model' / 'a' / 'metrics.json').read_text())
    assert set(again) == set(metrics) | {'rerank'}
    assert (again['rerank']['k1'], again['rerank']['lambda_value']) == (6, 0.5)


def test_a_result_of_the_baseline_is_evaluated_and_shown(place, card, tmp_path):
    content = loadmat(place / 'model' / 'a' / 'pytorch_result.mat')
    names = ('gallery_f', 'gallery_label', 'gallery_cam', 'query_f', 'query_label', 'query_cam')
    savemat(tmp_path / 'theirs.mat', {name: content[name] for name in names})
    done = card('evaluate_gpu.py', tmp_path / 'theirs.mat', cwd=tmp_path)
    metrics = json.loads((place / 'model' / 'a' / 'metrics.json').read_text())
    assert f'Rank@1:{metrics["rank1"]:.6f}' in done.stdout
    assert json.loads((tmp_path / 'theirs.metrics.json').read_text())['rank1'] == metrics['rank1']
    done = card('demo.py', tmp_path / 'theirs.mat', '--test_dir', place / 'data/toy', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / 'show.png').is_file()
    done = card('demo.py', tmp_path / 'theirs.mat', cwd=tmp_path)
    assert (done.returncode, '--test_dir' in done.stderr) == (2, True)


def test_an_epoch_can_be_tested_and_leaves_nothing_stale(place, card):
    run = place / 'model' / 'b'
    words = ['--name', 'b', '--data_dir', 'data/toy/pytorch', '--total_epoch', 11, '--wa', *SMALL]
    done = card('train.py', *words, '--holdout', 3, '--eval_every', 5, cwd=place)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in run.glob('net_*.pth')) == [
        'net_010.pth',
        'net_average.pth',
        'net_average_bn.pth',
        'net_last.pth',
    ]
    assert [row['epoch'] for row in log(run) if row['rank1']] == ['5', '10', '11']
    assert yaml.safe_load((run / 'opts.yaml').read_text())['run']['nclasses'] == 3
    done = card('test.py', '--name', 'b', '--which_epoch', 10, '--multi', cwd=place)
    assert done.returncode == 0, done.stderr
    ten = loadmat(run / 'pytorch_result.mat')['query_f']
    done = card('test.py', '--name', 'b', '--which_epoch', 'average', '--ms', '1,1.1', '--no_flip', cwd=place)
    assert done.returncode == 0, done.stderr
    assert not (run / 'multi_query.mat').exists()
    assert 'multi' not in json.loads((run / 'metrics.json').read_text())
    assert not np.allclose(loadmat(run / 'pytorch_result.mat')['query_f'], ten, atol=1e-3)


def test_a_seed_gives_the_same_run_and_a_stopped_run_goes_on_exactly(place, card):
    """a again under another name; and c, stopped by Ctrl-C after an epoch or a few, then resumed."""
    words = ['--data_dir', 'data/toy', '--train_all', *SMALL]
    assert card('train.py', '--name', 'again', '--total_epoch', 2, *words, cwd=place).returncode == 0
    assert same(state(place / 'model/a/net_last.pth'), state(place / 'model/again/net_last.pth'))
    words += ['--total_epoch', 8]  # so that it is not over before it is stopped
    assert card('train.py', '--name', 'whole', *words, cwd=place).returncode == 0
    expected = state(place / 'model/whole/net_last.pth')

    run = place / 'model' / 'c'
    command = [sys.executable, '-u', ROOT / 'train.py', '--name', 'c', *map(str, words)]
    # Where these tests are a shell's job in the background, SIGINT is ignored, and would be in the process as well.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    while not (run / 'log.csv').exists() and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert 'Traceback' not in err
    assert '--resume' in out
    assert (run / 'net_last.pth').is_file()
    assert 1 <= len(log(run)) < 8

    done = card('train.py', '--name', 'c', '--resume', '--lr', 0.1, cwd=place)
    assert (done.returncode, '--lr 0.1 contradicts' in done.stderr) == (2, True)
    done = card('train.py', '--name', 'c', '--resume', cwd=place)
    assert done.returncode == 0, done.stderr
    assert same(expected, state(run / 'net_last.pth'))
    timeless = [[{**row, 'seconds': 0} for row in log(place / 'model' / name)] for name in ('whole', 'c')]
    assert timeless[0] == timeless[1]


def test_a_run_killed_while_it_saves_an_epoch_does_that_epoch_again(place, monkeypatch):
    import train
    from reid import cli, runs

    monkeypatch.chdir(place)
    save, saved = runs.save, []

    def killed(obj, path):
        saved.append(path.name)
        if saved.count('resume.pth') == 3:  # of epoch 2; the first is of the untrained network
            raise SystemExit('killed')
        save(obj, path)

    words = ['--name', 'k', '--data_dir', 'data/toy', '--train_all', '--total_epoch', '2', *SMALL]
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match='killed'):
        patch.setattr(runs, 'save', killed)
        cli.start(train.main, train.options, words)
    cli.start(train.main, train.options, ['--name', 'k', '--resume'])
    assert same(state(place / 'model/a/net_last.pth'), state(place / 'model/k/net_last.pth'))
    assert len(log(place / 'model/k')) == 2


def stopped_after_an_epoch(monkeypatch, words):
    """train.py with these words, stopped as by Ctrl-C when it has kept its first epoch."""
    import train
    from reid import cli, runs

    keep = runs.keep

    def keep_and_stop(folder, epoch, *more):
        keep(folder, epoch, *more)
        if epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(runs, 'keep', keep_and_stop)
        cli.start(train.main, train.options, words)


LOSSES = '--loss triplet:0.5 center:0.1 arcface --ce 0.5 --pk 3 2 --pk_cameras'.split()


def test_losses_and_their_batches_and_a_resumed_run_of_them(place, monkeypatch, capsys):
    """Weights of losses learn, and are gone on with: stopped after an epoch and resumed, a run ends with the same."""
    import train
    from reid import cli

    monkeypatch.chdir(place)
    small = [word for word in SMALL if word not in ('--batchsize', '8')]
    words = ['--data_dir', 'data/toy', '--train_all', '--total_epoch', '2', *small, *LOSSES]
    cli.start(train.main, train.options, ['--name', 'm', *words])
    assert yaml.safe_load((place / 'model/m/opts.yaml').read_text())['batchsize'] == 6
    assert not same(state(place / 'model/m/net_last.pth'), state(place / 'model/a/net_last.pth'))

    stopped_after_an_epoch(monkeypatch, ['--name', 'n', *words])
    middle = state(place / 'model/n/resume.pth')['losses']
    cli.start(train.main, train.options, ['--name', 'n', '--resume'])
    assert same(state(place / 'model/m/net_last.pth'), state(place / 'model/n/net_last.pth'))
    end = [state(place / f'model/{name}/resume.pth')['losses'] for name in 'mn']
    assert set(end[0]) == {'losses.center.compute.centers', 'losses.arcface.compute.W'}
    assert same(*end)
    assert not any(torch.equal(middle[name], end[0][name]) for name in middle)


MANY = '--head bnneck --pool gem --stride 1 --loss triplet center --pk 3 2 --optimizer adamw --lr 1e-3 --backbone_lr 1'
MANY += ' --layer_decay 0.7 --clip 1 --accumulate 2 --average ema --average_from 0 --erasing_p 0.5 --erasing noise'
MANY += ' --gray_patch_p 0.4 --policy randaugment --grow 0.5 --adv 0.1 --aiter 2 --DG data/toy/pytorch/gallery'


def test_everything_at_once_and_stopped_and_resumed(place, monkeypatch, capsys):
    """Two data sets learnt together, with each option that has a state or draws: a resumed run ends with the same."""
    import train
    from reid import cli

    monkeypatch.chdir(place)
    shutil.copytree(place / 'data/toy', place / 'data/twin')
    plain = ' '.join(SMALL).replace(' --linear_num 32', '').replace(' --batchsize 8', '').split()
    words = ['--data_dir', 'data/toy', 'data/twin', '--train_all', '--total_epoch', '2', *plain, *MANY.split()]
    cli.start(train.main, train.options, ['--name', 'o', *words, '--holdout', '2', '--eval_every', '1'])
    assert 'the average: held out Rank@1' in capsys.readouterr().out
    assert yaml.safe_load((place / 'model/o/opts.yaml').read_text())['run']['nclasses'] == 8

    stopped_after_an_epoch(monkeypatch, ['--name', 'p', *words, '--holdout', '2'])
    cli.start(train.main, train.options, ['--name', 'p', '--resume'])
    for name in ('net_last', 'net_average', 'net_average_bn'):
        assert same(state(place / f'model/o/{name}.pth'), state(place / f'model/p/{name}.pth')), name
    assert not same(state(place / 'model/o/net_average.pth'), state(place / 'model/o/net_average_bn.pth'))
    with pytest.raises(SystemExit):
        cli.start(__import__('test').main, __import__('test').options, ['--name', 'o'])
    assert 'names 2 of them' in capsys.readouterr().err


def test_the_plain_mean_of_epochs(place, monkeypatch):
    import train
    from reid import cli, runs

    monkeypatch.chdir(place)
    seen, keep = [], runs.keep

    def look(folder, epoch, parts, *more):
        seen.append(parts['model'].classifier.classifier[0].weight.detach().clone())
        keep(folder, epoch, parts, *more)

    monkeypatch.setattr(runs, 'keep', look)
    words = '--name swa --data_dir data/toy --train_all --total_epoch 4 --average swa --average_from 0.5'.split()
    cli.start(train.main, train.options, [*words, *SMALL])
    average = state(place / 'model/swa/net_average.pth')['module.classifier.classifier.0.weight']
    torch.testing.assert_close(average, (seen[3] + seen[4]) / 2)


def test_accumulated_batches_learn_as_one(place, monkeypatch):
    """Without what depends on the batch (BatchNorm in eval mode, no dropout, no draws), 3 times 2 pictures are 6."""
    import train
    from reid import augment, cli

    monkeypatch.chdir(place)
    monkeypatch.setattr(torch.nn.BatchNorm2d, 'train', lambda self, mode=True: torch.nn.Module.train(self, False))
    monkeypatch.setattr(augment.Augment, '__call__', lambda self, x, scale=1.0: augment.normalise(x))
    small = ' '.join(SMALL).replace('--batchsize 8', '--head linear').replace('--linear_num 32', '').split()
    words = ['--data_dir', 'data/toy', '--train_all', '--total_epoch', '1', '--cache', 'off', *small]
    for name, more in (('six', '--batchsize 6'), ('twos', '--batchsize 2 --accumulate 3')):
        cli.start(train.main, train.options, ['--name', name, *words, *more.split()])
    six, twos = (state(place / f'model/{name}/net_last.pth') for name in ('six', 'twos'))
    torch.testing.assert_close(six, twos, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_epoch(place, monkeypatch, capsys):
    import train
    from reid import cli, losses

    monkeypatch.chdir(place)
    count = iter(range(100))

    def soon_broken(f, y):
        return f.sum() * (float('nan') if next(count) == 4 else 0.0)  # in the second epoch of 3 batches

    monkeypatch.setitem(losses.LOSSES, 'circle', (lambda nclasses, dim: losses.Float32(soon_broken), set()))
    words = ['--name', 'nan', '--data_dir', 'data/toy', '--train_all', '--total_epoch', '3', *SMALL]
    with pytest.raises(SystemExit) as end:
        cli.start(train.main, train.options, [*words, '--loss', 'circle'])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert 'the loss became nan in epoch 2/3, by batch' in said
    assert 'model/nan/net_last.pth holds epoch 1' in said
    assert len(log(place / 'model/nan')) == 1
    assert all(torch.isfinite(value).all() for value in state(place / 'model/nan/net_last.pth').values())


def test_a_last_step_that_breaks_the_weights_stops_the_run_before_they_are_kept(place, monkeypatch, capsys):
    """No loss sees them: without cross entropy there is no pass over val."""
    import train
    from reid import cli, losses

    monkeypatch.chdir(place)
    count = iter(range(100))

    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):  # in the last of the second epoch's 3 batches
            return gradient * (float('nan') if next(count) == 5 else 1.0)

    monkeypatch.setitem(
        losses.LOSSES, 'circle', (lambda nclasses, dim: losses.Float32(lambda f, y: Broken.apply(f).mean()), set())
    )
    words = ['--name', 'inf', '--data_dir', 'data/toy', '--train_all', '--total_epoch', '3', *SMALL]
    with pytest.raises(SystemExit) as end:
        cli.start(train.main, train.options, [*words, '--loss', 'circle', '--ce', '0'])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert 'the weights became inf or nan in epoch 2/3, with its last step' in said
    assert 'model/inf/net_last.pth holds epoch 1' in said
    kept = state(place / 'model/inf/resume.pth')
    assert len(kept['log']) == len(log(place / 'model/inf')) == 1
    assert all(torch.isfinite(value).all() for value in kept['model'].values())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_extreme_logits_in_half_precision_have_a_finite_loss(dtype):
    import train

    z = torch.tensor([[6e4, -6e4, 0.0], [-6e4, 6e4, 1.0]]).to(dtype).requires_grad_()
    y = torch.tensor([1, 1])  # the first is as wrong as can be

    class Net(torch.nn.Module):
        def forward(self, x):
            return [z], z

    def judge(x, y, logits, feature):
        return torch.nn.functional.cross_entropy(logits[0], y)

    found = train.go_through(
        [(None, y)], lambda x: x, Net(), judge, nullcontext(), 'x', lambda loss, last: loss.backward()
    )
    assert found == (pytest.approx((z[0, 0].item() - z[0, 1].item()) / 2), 0.5)
    assert z.grad.isfinite().all()


def test_each_loss_has_a_column_of_its_own(place, monkeypatch):
    """Without its weight; and cross entropy with them, weighted, is what is trained on."""
    import train
    from reid import cli

    monkeypatch.chdir(place)
    words = ['--data_dir', 'data/toy', '--train_all', *SMALL, '--pk', '4', '2', '--loss', 'triplet:0.5', 'circle:2']
    cli.start(train.main, train.options, ['--name', 'both', '--total_epoch', '2', '--ce', '0', *words])
    stop = ['--total_epoch', '2', '--ce', '0', '--max_minutes', '0']
    cli.start(train.main, train.options, ['--name', 'parts', *stop, *words])
    cli.start(train.main, train.options, ['--name', 'parts', '--resume', '--max_minutes', '60'])
    whole, parts = (log(place / f'model/{name}') for name in ('both', 'parts'))
    assert list(whole[0])[2:6] == ['train_loss', 'train_top1err', 'train_triplet', 'train_circle']
    for row in whole:
        triplet, circle, both = (float(row[f'train_{name}']) for name in ('triplet', 'circle', 'loss'))
        assert both == pytest.approx(0.5 * triplet + 2 * circle, rel=1e-5)
        assert triplet > 0
    for one, other in zip(whole, parts, strict=True):
        assert {**one, 'seconds': ''} == {**other, 'seconds': ''}


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        ('--loss tripet', 'Did you mean triplet?'),
        ('--loss circle circle:2', 'is there already'),
        ('--loss circle:-1', 'expected a weight'),
        ('--ce 0', 'leaves nothing to learn'),
        ('--backbone resnet51', 'resnet50'),
        ('--DG nowhere', 'no such folder'),
        ('--head bnneck', '--linear_num 32'),
        ('--backbone swin_t --stride 1', '--stride 1 is not for swin_t'),
        ('--pk 4 4', '--batchsize 8 contradicts --pk 4 4'),
        ('--pk 7 2 --batchsize 14', 'found 6 in all'),
        ('--pk 2 9 --batchsize 18', 'K is larger than any identity has'),
    ],
)
def test_wrong_losses_and_batches_are_one_sentence(place, words, sentence, monkeypatch, capsys):
    import train
    from reid import cli

    monkeypatch.chdir(place)
    with pytest.raises(SystemExit) as end:
        cli.start(
            train.main,
            train.options,
            ['--name', 'w', '--data_dir', 'data/toy', '--train_all', *SMALL, *words.split()],
        )
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err
    assert not (place / 'model/w').exists()


def test_pair_losses_without_pairs_are_pointed_out(place, monkeypatch, capsys):
    import train
    from reid import cli

    monkeypatch.chdir(place)
    words = ['--name', 'circle', '--data_dir', 'data/toy', '--train_all', '--total_epoch', '1', *SMALL, '--circle']
    cli.start(train.main, train.options, words)
    assert 'take --pk 4 2 in place of --batchsize 8' in capsys.readouterr().out


def test_a_set_without_val_is_trained_without_it(place, card, tmp_path):
    """As prepare.py makes it where every identity has a single picture."""
    shutil.copytree(place / 'data/toy/pytorch', tmp_path / 'pytorch')
    shutil.rmtree(tmp_path / 'pytorch/val')
    (tmp_path / 'pytorch/val').mkdir()
    words = ['--name', 'v', '--data_dir', tmp_path, '--total_epoch', 1, *SMALL]
    done = card('train.py', *words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert ' val loss' not in done.stdout
    assert list(log(place / 'model/v')[0]) == ['epoch', 'lr', 'train_loss', 'train_top1err', 'seconds']


def test_a_run_is_not_overwritten_by_accident(place, card):
    words = ['--data_dir', 'data/toy', '--total_epoch', 0, '--cosine', *SMALL]
    done = card('train.py', '--name', 'a', *words, cwd=place)
    assert done.returncode == 2
    assert '--resume' in done.stderr
    assert '--overwrite' in done.stderr
    assert card('train.py', '--name', 'zero', *words, cwd=place).returncode == 0
    assert card('train.py', '--name', 'zero', *words, '--overwrite', cwd=place).returncode == 0
    assert (place / 'model/zero/net_last.pth').is_file()
    assert card('test.py', '--name', 'zero', cwd=place).returncode == 0


def test_pcb_in_bfloat16_by_its_old_flag(place, card):
    words = [*SMALL, '--PCB', '--height', 96, '--width', 48, '--total_epoch', 1, '--bf16', '--cosine', '--warm', 1]
    done = card('train.py', '--name', 'pcb', '--data_dir', 'data/toy', *words, '--linear_num', 16, cwd=place)
    assert done.returncode == 0, done.stderr
    done = card('test.py', '--name', 'pcb', '--PCB', '--test_dir', 'data/toy', cwd=place)
    assert done.returncode == 0, done.stderr
    content = loadmat(place / 'model/pcb/pytorch_result.mat')
    assert content['query_f'].shape[1] == 512 * 6
    parts = content['query_f'].reshape(-1, 512, 6)
    np.testing.assert_allclose((parts**2).sum(1), 1 / 6, atol=1e-5)


def test_worker_processes_and_all_augmentation(place, card):
    words = [*SMALL, '--num_workers', 2, '--color_jitter', '--erasing_p', 0.5, '--label_smooth', 0.1]
    for name in ('two', 'two-again'):
        done = card('train.py', '--name', name, '--data_dir', 'data/toy', '--total_epoch', 1, *words, cwd=place)
        assert done.returncode == 0, done.stderr
    assert same(*(state(place / 'model' / name / 'net_last.pth') for name in ('two', 'two-again')))


@pytest.mark.parametrize('more', [[], ['--heatmap'], ['--query_index', 2, '--topk', 4]])
def test_demo_draws_a_ranking(place, card, more):
    run = place / 'model' / 'a'
    done = card('demo.py', '--name', 'a', *more, cwd=place)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    hits = [line.split() for line in lines if line.split()[0].isdigit()]
    assert len(hits) == (4 if '--topk' in more else 10)
    content = loadmat(run / 'pytorch_result.mat')
    index = 2 if '--query_index' in more else 0
    person, cam = content['query_label'][0, index], content['query_cam'][0, index]
    for rank, (place_, score, verdict, path) in enumerate(hits, 1):
        name = path.split('/')[-1]
        assert int(place_) == rank
        assert (verdict == 'right') == (int(path.split('/')[-2]) == person)
        assert not (verdict == 'right' and f'_c{cam}' in name)
        assert -1 <= float(score) <= 1
    with Image.open(run / 'show.png') as picture:
        assert picture.info['dpi'][0] == pytest.approx(150, abs=1)
        colours = {colour for _, colour in picture.convert('RGB').getcolors(2**24)}
        assert (0x1A, 0x98, 0x50) in colours or (0xD7, 0x30, 0x27) in colours


def test_demo_takes_a_picture_of_ones_own_and_all_queries(place, card):
    own = next((place / 'data/toy/query').glob('*.jpg'))
    done = card('demo.py', '--name', 'a', '--image', own, cwd=place)
    assert done.returncode == 0, done.stderr
    content = loadmat(place / 'model/a/pytorch_result.mat')
    paths = [p.item().split('/')[-1] for p in content['query_path'].ravel()]
    scores = content['gallery_f'][content['gallery_label'][0] != -1] @ content['query_f'][paths.index(own.name)]
    assert float(done.stdout.split()[done.stdout.split().index('1') + 1]) == pytest.approx(scores.max(), abs=2e-4)
    done = card('demo.py', '--name', 'a', '--all', cwd=place)
    assert done.returncode == 0, done.stderr
    assert len(list((place / 'model/a/rankings').glob('*.png'))) == len(paths)


def test_demo_takes_the_feature_that_was_tested(place, card):
    (place / 'model/before').mkdir()
    for name in ('opts.yaml', 'net_last.pth'):
        shutil.copyfile(place / 'model/a' / name, place / 'model/before' / name)
    done = card('test.py', '--name', 'before', '--test_feature', 'before', '--num_workers', 0, cwd=place)
    assert done.returncode == 0, done.stderr
    content = loadmat(place / 'model/before/pytorch_result.mat')
    assert content['query_f'].shape[1] == 512 and content['test_feature'] == 'before'
    own = place / 'data/toy/pytorch' / content['query_path'].ravel()[0].item()
    done = card('demo.py', '--name', 'before', '--image', own, '--heatmap', cwd=place)
    assert done.returncode == 0, done.stderr
    scores = content['gallery_f'][content['gallery_label'][0] != -1] @ content['query_f'][0]
    assert float(done.stdout.split()[done.stdout.split().index('1') + 1]) == pytest.approx(scores.max(), abs=2e-4)
    shutil.rmtree(place / 'model/before')


@pytest.mark.parametrize(
    ('script', 'words', 'expected'),
    [
        ('train.py', ['--data_dir', 'nowhere'], 'no such folder'),
        ('train.py', ['--data_dir', 'data'], 'are expected'),
        ('train.py', ['--data_dir', 'data/toy', '--holdout', '99', '--weights', 'none'], '--holdout 99'),
        ('train.py', ['--data_dir', 'data/toy', '--weights', 'gone.pth'], 'gone.pth'),
        ('train.py', ['--data_dir', 'data/toy', '--weights', 'none', '--batchsize', '1'], 'two pictures at a time'),
        ('train.py', ['--name', 'a', '--resume', '--overwrite'], 'one of them'),
        ('train.py', ['--name', 'none', '--resume'], 'Runs that are there: a'),
        ('train.py', ['--name', '../x', '--data_dir', 'data/toy'], '--name'),
        ('test.py', ['--name', 'ft_ResNet5'], 'Runs that are there: a'),
        ('test.py', ['--name', 'a', '--test_dir', 'data/toy/query'], 'gallery, query are expected'),
        ('test.py', ['--name', 'a', '--which_epoch', '59'], 'There are: last'),
        ('test.py', ['--name', 'a', '--stride', '1'], 'contradicts'),
        ('test.py', ['--name', 'a', '--ms', 'x'], '--ms'),
        ('evaluate_gpu.py', ['gone.mat'], 'gone.mat'),
        ('evaluate_gpu.py', ['data/toy/toy.yaml'], 'cannot be read'),
        ('evaluate_rerank.py', ['--name', 'nobody'], 'Runs that are there: a'),
        ('demo.py', ['--name', 'a', '--query_index', '9999'], '0 to'),
        ('demo.py', ['--name', 'a', '--image', 'data/toy/toy.yaml'], 'not a picture'),
        ('demo.py', ['--name', 'a', '--test_dir', 'nowhere'], 'no such folder'),
    ],
)
def test_mistakes_get_a_sentence(place, script, words, expected, capsys, monkeypatch):
    """As start() runs it, without a process for each."""
    import importlib

    from reid import cli

    monkeypatch.chdir(place)
    module = importlib.import_module(script.removesuffix('.py'))
    with pytest.raises(SystemExit) as end:
        cli.start(module.main, module.options, words)
    assert end.value.code == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize('workers', [0, 2])
def test_a_broken_picture_is_named_wherever_it_is_loaded(place, card, workers, tmp_path):
    shutil.copytree(place / 'data/toy/pytorch', tmp_path / 'pytorch')
    broken = next((tmp_path / 'pytorch/query').glob('*/*.jpg'))
    broken.write_bytes(broken.read_bytes()[:300])
    done = card('test.py', '--name', 'a', '--test_dir', tmp_path, '--num_workers', workers, cwd=place)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f'test.py: {broken} is not a picture')


def test_broken_pictures_are_skipped_where_that_is_asked_for(place, card, tmp_path):
    shutil.copytree(place / 'data/toy/pytorch', tmp_path / 'pytorch')
    shutil.copytree(place / 'model/a', tmp_path / 'model/a')
    broken = [next((tmp_path / 'pytorch' / part).glob('*/*.jpg')) for part in ('train_all', 'query')]
    for path in broken:
        path.write_bytes(path.read_bytes()[:300])
    done = card('test.py', '--name', 'a', '--test_dir', '.', '--on_bad', 'skip', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'skipped: {broken[1].relative_to(tmp_path)} is not a picture' in done.stdout
    there = len(list((tmp_path / 'pytorch/query').glob('*/*.jpg')))
    assert loadmat(tmp_path / 'model/a/pytorch_result.mat')['query_f'].shape == (there - 1, 32)
    words = ['--name', 'b', '--data_dir', '.', '--train_all', '--total_epoch', 1, *SMALL]
    done = card('train.py', *words, cwd=tmp_path)
    assert (done.returncode, f'{broken[0].relative_to(tmp_path)} is not a picture' in done.stderr) == (2, True)
    done = card('train.py', *words, '--on_bad', 'skip', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'skipped: {broken[0].relative_to(tmp_path)} is not a picture' in done.stdout


def test_time_that_ends_leaves_a_run_to_go_on_with(place, monkeypatch, capsys):
    import train
    from reid import cli

    monkeypatch.chdir(place)
    words = ['--name', 'short', '--data_dir', 'data/toy', '--train_all', '--total_epoch', '3', *SMALL]
    cli.start(train.main, train.options, [*words, '--max_minutes', '0'])
    assert 'another epoch would end after 0 minutes: stopped' in capsys.readouterr().out
    assert len(log(place / 'model/short')) == 1
    cli.start(train.main, train.options, ['--name', 'short', '--resume', '--max_minutes', '60'])
    assert len(log(place / 'model/short')) == 3


def test_a_batch_that_is_too_large_for_a_gpu_is_a_sentence_with_one_that_fits(place, monkeypatch, capsys):
    import model
    import train
    from reid import cli

    monkeypatch.chdir(place)
    forward = model.Net.forward

    def small(self, x):
        if len(x) > 3:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return forward(self, x)

    monkeypatch.setattr(model.Net, 'forward', small)
    words = ['--name', 'large', '--data_dir', 'data/toy', '--train_all', '--total_epoch', '1', *SMALL]
    with pytest.raises(SystemExit):
        cli.start(train.main, train.options, words)
    assert '--batchsize 8 needs; 2 fits' in capsys.readouterr().err


def test_a_full_disk_is_a_sentence_and_no_broken_file(place, monkeypatch, capsys):
    import errno

    import train
    from reid import cli

    monkeypatch.chdir(place)
    save, count = torch.save, iter(range(100))

    def full(state, path):
        if next(count) == 3:  # of the first epoch; the run's beginning went well
            path.write_bytes(b'half a file')
            raise OSError(errno.ENOSPC, 'No space left on device')
        save(state, path)

    monkeypatch.setattr(torch, 'save', full)
    words = ['--name', 'full', '--data_dir', 'data/toy', '--train_all', '--total_epoch', '2', *SMALL]
    with pytest.raises(SystemExit):
        cli.start(train.main, train.options, words)
    assert 'is the disk full, or the file open in another program? What was saved' in capsys.readouterr().err
    assert not list((place / 'model/full').glob('*.part'))
    cli.start(train.main, train.options, ['--name', 'full', '--resume'])
    assert len(log(place / 'model/full')) == 2


@pytest.mark.parametrize('works', [True, False])
def test_compiled_where_that_is_possible(works, place, monkeypatch, capsys):
    import train
    from reid import cli

    monkeypatch.chdir(place)
    called = []

    def stand_in(call):  # a compiler takes a minute, and not every machine has one
        if not works:
            raise RuntimeError('no compiler is here\nand much more')
        called.append(call)
        return call

    monkeypatch.setattr(torch, 'compile', stand_in)
    words = ['--name', 'c', '--data_dir', 'data/toy', '--train_all', '--total_epoch', '1', '--overwrite', *SMALL]
    cli.start(train.main, train.options, [*words, '--compile'])
    assert len(called) == (2 if works else 0)
    said = '--compile: going on without, since this machine cannot (no compiler is here)'
    assert (said in capsys.readouterr().out) != works


@pytest.mark.parametrize('script', ['prepare', 'train', 'test', 'evaluate_gpu', 'evaluate_rerank', 'demo', 'threshold'])
def test_help_needs_no_gpu_and_no_data(script, card, tmp_path):
    done = card(f'{script}.py', '--help', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f'python {script}.py' in done.stdout
    assert not list(tmp_path.iterdir())
