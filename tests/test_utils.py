"""Run folders, options, aliases, devices: python -m pytest tests/test_utils.py"""

import argparse

import pytest
import torch
import yaml

import utils
from reid import cli
from reid import runs as snapshots
from reid.problem import Problem


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, 'RUNS', tmp_path)
    return tmp_path


def network_parser():
    parser = cli.parser('x')
    utils.network_options(parser)
    return parser


def saved_run(runs, name='small'):
    words = '--backbone resnet18 --linear_num 16 --height 64 --width 32'
    opts = cli.parse(network_parser(), words.split())
    opts.nclasses = 5
    utils.networks.complete(opts)
    (runs / name).mkdir()
    utils.save_opts(opts, runs / name, torch.device('cpu'))
    net = utils.networks.build(opts)
    snapshots.save(net.state_dict(), runs / name / 'net_last.pth')
    return net, opts


def test_given_are_the_options_that_were_typed():
    opts = cli.parse(network_parser(), ['--droprate', '0.5', '--stride=1'])
    assert opts.given == {'droprate', 'stride'}


def test_flags_of_the_older_baselines_are_aliases():
    parser = network_parser()
    parser.add_argument('--batchsize', type=int)
    opts = cli.parse(parser, ['--PCB', '--use_dense', '--batch=8'])
    assert (opts.head, opts.backbone, opts.batchsize) == ('pcb', 'densenet121', 8)
    assert not any(alias in parser.format_help() for alias in ('--PCB', '--use_dense', '--batch '))


def test_a_run_comes_back(runs):
    net, opts = saved_run(runs)
    loaded, found = utils.load_run('small')
    assert not loaded.training
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), loaded.parameters(), strict=True))
    assert all(getattr(found, name) == getattr(opts, name) for name in utils.NETWORK)
    saved = yaml.safe_load((runs / 'small' / 'opts.yaml').read_text())
    assert saved['run']['nclasses'] == 5
    assert saved['run']['torch'] == torch.__version__
    assert not {'given', 'nclasses'} & set(saved)


def test_a_typed_option_that_contradicts_the_run_is_an_error(runs):
    saved_run(runs)
    fine = cli.parse(network_parser(), ['--linear_num', '16'])
    utils.load_run('small', typed=fine)
    wrong = cli.parse(network_parser(), ['--linear_num', '512'])
    with pytest.raises(Problem, match=r'--linear_num 512 contradicts .* linear_num: 16'):
        utils.load_run('small', typed=wrong)


def test_a_wrong_name_lists_what_is_there(runs):
    with pytest.raises(Problem, match='none yet; python train.py --name nobody'):
        utils.find_run('nobody')
    with pytest.raises(Problem, match='^--from nobody: there is no '):
        utils.find_run('nobody', '--from')
    saved_run(runs)
    with pytest.raises(Problem, match='there: small'):
        utils.find_run('smal')


@pytest.mark.parametrize('name', ['../small', '/tmp', 'a/b', '', '.hidden', 'a\\b'])
def test_a_name_is_no_path(name):
    with pytest.raises(Problem, match='--name'):
        utils.run_folder(name)


@pytest.mark.parametrize('typed', ['60', '060', 'net_060', 'net_060.pth', 60])
def test_epochs_are_found_as_people_type_them(typed, runs):
    (runs / 'net_060.pth').touch()
    assert utils.snapshot(runs, typed) == runs / 'net_060.pth'


def test_snapshots_of_older_baselines_are_found(runs):
    (runs / 'net_59.pth').touch()
    assert utils.snapshot(runs, '59') == runs / 'net_59.pth'


@pytest.mark.parametrize('typed', ['59', 'best', '../net_060', '*'])
def test_a_missing_epoch_lists_what_is_there(typed, runs):
    (runs / 'net_060.pth').touch()
    with pytest.raises(Problem, match='There are: 060'):
        utils.snapshot(runs, typed)


UPSTREAM = {'gpu_ids': [0], 'name': 'x', 'nclasses': 751, 'data_dir': '../Market/pytorch', 'droprate': 0.5}
UPSTREAM |= {'stride': 1, 'linear_num': 256, 'PCB': False, 'use_dense': False, 'use_swin': False, 'ibn': False}


@pytest.mark.parametrize(
    ('changed', 'expected'),
    [
        ({}, ('resnet50', 'classblock', 1, 256, 256)),
        ({'use_dense': True}, ('densenet121', 'classblock', 1, 256, 256)),
        ({'ibn': True}, ('resnet50_ibn_a', 'classblock', 1, 256, 256)),
        ({'PCB': True, 'stride': 2, 'linear_num': 512}, ('resnet50', 'pcb', 1, 256, 384)),
    ],
)
def test_options_of_the_baseline_are_translated(changed, expected, tmp_path):
    (tmp_path / 'opts.yaml').write_text(yaml.safe_dump(UPSTREAM | changed))
    opts = utils.read_opts(tmp_path)
    assert tuple(opts[name] for name in ('backbone', 'head', 'stride', 'linear_num', 'height')) == expected
    assert opts['nclasses'] == 751


@pytest.mark.parametrize(
    ('changed', 'words'), [({'use_nothing': True}, 'use_nothing'), ({'nclasses': None}, 'nclasses')]
)
def test_options_that_cannot_be_translated_are_sentences(changed, words, tmp_path):
    content = {name: value for name, value in (UPSTREAM | changed).items() if value is not None}
    (tmp_path / 'opts.yaml').write_text(yaml.safe_dump(content))
    with pytest.raises(Problem, match=words):
        utils.read_opts(tmp_path)


@pytest.mark.parametrize(
    ('key', 'value', 'sentence'),
    [
        ('height', None, 'was it edited'),
        ('run', {'torch': '2.6'}, 'was it edited'),
        ('backbone', 'resnet99', 'resnet50'),
        ('head', 'tail', 'tail'),
    ],
)
def test_an_edited_opts_yaml_is_a_sentence(key, value, sentence, runs):
    saved_run(runs)
    path = runs / 'small' / 'opts.yaml'
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    with pytest.raises(Problem, match=sentence):
        utils.load_run('small')


def test_pictures_smaller_than_a_place_of_the_maps_are_refused(capsys):
    with pytest.raises(SystemExit):
        cli.parse(network_parser(), ['--height', '16'])
    assert '32 or more' in capsys.readouterr().err


def test_yaml_is_read_safely(tmp_path):
    (tmp_path / 'opts.yaml').write_text('x: !!python/object/apply:os.getcwd []')
    with pytest.raises(Problem, match='cannot be read'):
        utils.read_opts(tmp_path)


def test_devices(capsys, monkeypatch):
    assert utils.device('-1').type == 'cpu'
    with pytest.raises(Problem, match='--gpu_ids'):
        utils.device('zero')
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: False)
    assert utils.device('0').type == 'cpu'
    assert capsys.readouterr().out == 'no GPU found: going on with the CPU\n'


def test_each_process_of_torchrun_has_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    assert [utils.device(ids).index for ids in ('0', '2', '3,1')] == [0, 2, 3]
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert [utils.device(ids).index for ids in ('0', '2', '3,1')] == [1, 3, 1]
    for ids in ('3', '5', '3,9'):
        with pytest.raises(Problem, match='GPUs 0 to 3'):
            utils.device(ids)


@pytest.mark.parametrize('torchrun', [False, True])
def test_several_gpus_without_nccl_are_a_sentence(torchrun, monkeypatch):
    """As on Windows. No process is started."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: None)
    monkeypatch.setattr(torch.distributed, 'is_nccl_available', lambda: False)
    monkeypatch.setattr('subprocess.call', lambda command: pytest.fail('a process was started'))
    if torchrun:
        monkeypatch.setenv('LOCAL_RANK', '1')
        monkeypatch.setenv('WORLD_SIZE', '2')
    with pytest.raises(Problem, match='several GPUs need NCCL, .* --gpu_ids 0, or Linux'):
        utils.device('0,1', together=True)


def test_half_precision_needs_a_gpu(capsys):
    opts = argparse.Namespace(fp16=True, bf16=False, given=set())
    _, scaling = utils.precision(opts, torch.device('cpu'))
    assert not scaling
    assert 'float32' in capsys.readouterr().out


def test_a_stopped_save_leaves_the_old_file(tmp_path):
    path = tmp_path / 'x.pth'
    snapshots.save({'a': torch.ones(1)}, path)
    with pytest.raises(RuntimeError), utils.replacing(path) as temporary:
        temporary.write_bytes(b'half')
        raise RuntimeError
    assert torch.load(path, weights_only=True)['a'] == 1
    assert list(tmp_path.iterdir()) == [path]
