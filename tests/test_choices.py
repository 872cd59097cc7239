"""Which options of training go together: python -m pytest tests/test_choices.py"""

import pytest
import torch

import model as networks
import train
import utils
from reid import cli
from reid.problem import Problem


def chosen(words, path=None):
    """The options as the training loop sees them."""
    opts = networks.complete(cli.parse(train.options(), [*(['--config', str(path)] if path else []), *words.split()]))
    train.what_to_learn(opts)
    return opts


@pytest.mark.parametrize(
    ('words', 'sentence'),
    [
        ('--pk_cameras', '--pk_cameras does nothing without --pk'),
        ('--erasing noise', '--erasing does nothing without --erasing_p'),
        ('--average_decay 0.9', '--average_decay does nothing without --average ema'),
        ('--average_decay 0.9 --average swa', '--average_decay does nothing without --average ema'),
        ('--average_from 0.5', '--average_from does nothing without --average ema or --average swa'),
        ('--head bnneck --droprate 0.3', '--droprate does nothing without --head classblock or --head pcb'),
        ('--ce 0 --loss instance --label_smooth 0.1', '--label_smooth does nothing without --ce or --adv'),
        ('--milestones 40 70 --total_epoch 60', '--milestones 70: --total_epoch 60 ends before lr falls there'),
        ('--cosine --milestones 4', '--cosine and --milestones are two courses .* one of them, please'),
        ('--batchsize 8 --pk 8 4', '--batchsize 8 contradicts --pk 8 4, which makes batches of 32: one of them'),
        ('--fp16 --bf16', '--fp16 and --bf16 are two ways to compute: one of them, please'),
    ],
)
def test_what_would_do_nothing_or_contradicts_is_a_sentence(words, sentence):
    with pytest.raises(Problem, match=sentence):
        utils.precision(chosen(words), torch.device('cpu'))


@pytest.mark.parametrize(
    'words',
    [
        '--DG --average_decay 0.9',  # the average is its teacher
        '--average swa --average_from 0.5',
        '--head pcb --droprate 0.3',
        '--ce 0 --loss instance --adv 0.1 --label_smooth 0.1',  # of the answers to what --adv has changed
        '--milestones 40 --total_epoch 0',
        '--batchsize 32 --pk 8 4',
        '--fp16 --no-bf16',
    ],
)
def test_what_does_something_is_none(words, capsys):
    chosen(words)
    assert not capsys.readouterr().out


def test_an_average_begins_before_the_end(capsys):
    with pytest.raises(SystemExit):
        chosen('--average ema --average_from 1')
    assert '--average_from: 1.0: 0 to 0.99 is expected' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('text', 'words', 'found'),
    [
        ('milestones: [4]', '--cosine', {'cosine': True, 'milestones': None}),
        ('cosine: true', '--milestones 4', {'cosine': False, 'milestones': [4]}),
        ('cosine: true', '--no-cosine --milestones 4', {'cosine': False, 'milestones': [4]}),
        ('fp16: true', '--bf16', {'fp16': False, 'bf16': True}),
        ('bf16: true', '--fp16', {'fp16': True, 'bf16': False}),
        ('batchsize: 64\npk: [16, 4]', '--batchsize 8', {'batchsize': 8, 'pk': None}),
        ('batchsize: 64\npk: [16, 4]', '--batchsize 64', {'batchsize': 64, 'pk': [16, 4]}),
        ('batchsize: 64\npk: [16, 4]', '--pk 4 2', {'batchsize': 8, 'pk': [4, 2]}),
        ('batchsize: 64', '--pk 4 2', {'batchsize': 8, 'pk': [4, 2]}),
        ('lr: 1', '', {'batchsize': 32, 'pk': None}),
    ],
)
def test_what_is_typed_wins_over_the_contrary_of_a_recipe(text, words, found, recipe):
    opts = chosen(words, recipe(text))
    utils.precision(opts, torch.device('cpu'))
    assert {name: getattr(opts, name) for name in found} == found


@pytest.mark.parametrize(
    'text', ['cosine: true\nmilestones: [4]', 'pk: [4, 2]\nbatchsize: 32', 'fp16: true\nbf16: true']
)
def test_a_recipe_that_contradicts_itself_is_a_sentence(text, recipe):
    with pytest.raises(Problem, match='one of them, please'):
        utils.precision(chosen('', recipe(text)), torch.device('cpu'))


def test_a_recipe_cut_short_is_told_by_a_line(recipe, capsys):
    chosen('--total_epoch 30', recipe('milestones: [40, 70]\nwarm_epoch: 10'))
    assert capsys.readouterr().out == '--milestones 40 70: --total_epoch 30 ends before lr falls there\n'
    chosen('--total_epoch 5', recipe('warm_epoch: 10\ncosine: true\nlr: 0.02'))
    assert capsys.readouterr().out == '--warm_epoch 10: --total_epoch 5 ends before lr has risen to 0.02\n'


@pytest.mark.parametrize(
    ('size', 'pk'), [(None, '8 4'), (64, '16 4'), (16, '4 4'), (8, '4 2'), (30, '7 4'), (3, '2 2')]
)
def test_batches_for_pairs_are_advised_in_the_size_that_is_there(size, pk, capsys):
    """And the advice can be taken as it stands."""
    chosen('--circle' + (f' --batchsize {size}' if size else ''))
    advice = f'--loss circle compares pictures of one person, of which a batch has few: take --pk {pk} in place of '
    assert capsys.readouterr().out == f'{advice}--batchsize {size or 32}\n'
    chosen(f'--circle --pk {pk}')
    assert not capsys.readouterr().out


def test_batches_that_harm_a_loss_are_told_by_a_line(capsys):
    chosen('--instance --pk 4 2')
    assert '--loss instance pushes pictures of one person apart' in capsys.readouterr().out
    chosen('--instance_id --pk 4 2')
    assert not capsys.readouterr().out
