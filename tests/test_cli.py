"""Options: aliases, recipes, what was typed: python -m pytest tests/test_cli.py"""

import importlib
import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import model as networks
import train
from reid import cli, clip_texts, losses, optim
from reid.problem import Problem


def parse(*words):
    return cli.parse(train.options(), [str(word) for word in words])


def test_defaults_give_way_to_the_recipe_and_the_recipe_to_what_is_typed(recipe):
    path = recipe('lr: 0.02\nbatchsize: 8\ncosine: true\nwa: false\nheight:\nweight_decay: 1e-3\nrun: {torch: 1}\n')
    opts = parse('--config', path, '--batchsize', '16')
    assert (opts.lr, opts.batchsize, opts.cosine, opts.average, opts.height) == (0.02, 16, True, 'none', None)
    assert opts.weight_decay == 0.001  # YAML reads 1e-3 as text
    assert opts.total_epoch == 60
    assert opts.given == {'config', 'batchsize'}


def test_the_options_of_a_run_are_a_recipe(tmp_path):
    import utils

    (tmp_path / 'x.yaml').write_text('wa: true\nloss: [triplet, circle:0.5]\npk: [4, 2]\n')
    words = '--lr 0.3 --name a --train_all --head pcb --linear_num 0'.split()
    before = parse('--config', tmp_path / 'x.yaml', *words)
    before.nclasses = 7
    utils.save_opts(before, tmp_path, torch.device('cpu'))
    after = parse('--config', tmp_path / 'opts.yaml', '--name', 'b')
    assert (after.average, after.loss, after.pk) == ('ema', ['triplet', 'circle:0.5'], [4, 2])
    ignored = ('given', 'command', 'nclasses', 'config', 'name')
    assert {k: v for k, v in vars(after).items() if k not in ignored} == {
        k: v for k, v in vars(before).items() if k not in ignored
    }


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('learning_rate: 1', 'there is no option learning_rate'),
        ('batch_size: 1', 'did you mean batchsize?'),
        ('cosine: 3', 'true or false is expected'),
        ('circle: 0.5', 'true or false is expected'),
        ('lr: 1\nhead: pcb\nlr: 2', 'lr is there twice'),
        ('use_dense: true\nibn: true', '--use_dense --ibn are networks of their own'),
        ('- lr', 'lines such as'),
        ('a: [', 'cannot be read'),
        ('!!python/object/apply:os.getcwd []', 'cannot be read'),
    ],
)
def test_what_a_recipe_gets_wrong_is_a_sentence(recipe, text, words):
    with pytest.raises(Problem) as error:
        parse('--config', recipe(text))
    assert words in str(error.value)


def test_a_recipe_that_is_not_there_is_a_sentence():
    with pytest.raises(Problem, match='there is no such file'):
        parse('--config', 'nowhere.yaml')


@pytest.mark.parametrize('text', ['lr: fast', 'head: tail', 'batchsize: 0', 'stride: [1, 2]'])
def test_a_bad_value_is_an_error_as_on_the_command_line(recipe, text, capsys):
    with pytest.raises(SystemExit) as end:
        parse('--config', recipe(text))
    assert end.value.code == 2
    assert f'--{text.split(":")[0]}' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'text', 'found'),
    [
        ('', '', []),
        ('--triplet --lr 1 --circle', '', ['triplet', 'circle']),
        ('--loss triplet --loss circle center', '', ['triplet', 'circle', 'center']),
        ('--triplet --loss circle', '', ['triplet', 'circle']),
        ('--loss circle --triplet', '', ['circle', 'triplet']),
        ('', 'triplet: true\nlr: 1\ncircle: true\nsphere: false\n', ['triplet', 'circle']),
        ('', 'loss: triplet\ncircle: true\n', ['triplet', 'circle']),
        ('', 'ins_gamma: 64\ninstance: true\n', ['instance:1:gamma=64']),
        ('--loss center', 'loss: triplet\ncircle: true\n', ['center']),
        ('--sphere', 'loss: [triplet, circle]\n', ['sphere']),
    ],
)
def test_no_loss_is_lost(words, text, found, recipe):
    """Each that is named counts, however it is named; those that are typed take the place of the recipe's."""
    assert parse(*(['--config', recipe(text)] if text else []), *words.split()).loss == found


def test_a_loss_that_is_named_twice_is_a_sentence():
    with pytest.raises(Problem, match='circle is there already'):
        train.what_to_learn(parse('--circle', '--loss', 'circle:0.5'))


@pytest.mark.parametrize(
    ('script', 'words', 'sentence'),
    [
        ('train', '--batch_size 8', 'train.py: error: there is no option --batch_size; did you mean --batchsize?'),
        ('train', '--head=pcb --totl_epoch=9', 'there is no option --totl_epoch; did you mean --total_epoch?'),
        ('train', '--qqqq', 'there is no option --qqqq\n'),
        ('search', 'query x --indx y --index z', 'query: error: there is no option --indx; did you mean --index?'),
    ],
)
def test_what_a_misspelt_option_may_have_meant(script, words, sentence, capsys, monkeypatch):
    monkeypatch.setattr('sys.argv', [f'{script}.py'])
    with pytest.raises(SystemExit) as end:
        cli.parse(importlib.import_module(script).options(), words.split())
    assert end.value.code == 2
    assert sentence in capsys.readouterr().err


def test_aliases():
    assert cli.expand(['--PCB', '--batch=8', '--lr', '1']) == ['--head', 'pcb', '--batchsize=8', '--lr', '1']
    assert parse('--wa').average == 'ema'
    assert parse('--FSGD', '--optimizer', 'adam').optimizer == 'adam'
    assert (parse('--DG').DG, parse('--DG', 'x').DG, parse().DG) == ('../DG-Market', 'x', None)


OTHERWISE = {'--use_dino', '--use_efficient', '--usam'}  # the baseline's own files of these do not fit


@pytest.mark.parametrize('flag', [flag for flag, words in cli.ALIASES.items() if '--backbone' in words])
def test_every_network_of_the_baseline_is_built_by_its_flag(flag, tmp_path):
    """Typed, or found in an opts.yaml of the baseline: the same network."""
    import utils

    opts = networks.complete(parse(flag))
    (tmp_path / 'opts.yaml').write_text(f'{flag[2:]}: true\nnclasses: 5\n')
    if flag in OTHERWISE:
        with pytest.raises(Problem, match='not built here'):
            utils.read_opts(tmp_path)
        return
    found = utils.read_opts(tmp_path)
    assert [found[name] for name in ('backbone', 'height', 'width')] == [opts.backbone, opts.height, opts.width]
    if opts.backbone.startswith('timm/'):
        pytest.importorskip('timm')
    opts.nclasses = 5
    with torch.device('meta'):
        networks.build(opts)


def test_a_switch_of_a_recipe_can_be_undone(recipe):
    path = recipe('bf16: true\ntrain_all: true\n')
    assert parse('--config', path).bf16
    undone = parse('--config', path, '--no-bf16')
    assert (undone.bf16, undone.train_all) == (False, True)


def test_more_words_of_the_baseline(recipe):
    assert parse('--instance', '--ins_gamma', '64', '--triplet').loss == ['instance:1:gamma=64', 'triplet']
    assert parse('--ins_gamma=32').loss == []
    with pytest.raises(Problem, match='--ibn --usam are networks of their own'):
        parse('--ibn', '--usam')
    opts = parse('--config', recipe('cache: off\nDG: true\ncircle: true\ntotal: 0\nwa: false\n'))
    assert (opts.cache, opts.DG, opts.loss, opts.total_epoch) == ('off', '../DG-Market', ['circle'], 0)
    assert parse('--config', recipe('DG: false\n')).DG is None


RECIPES = sorted((ROOT / 'configs').glob('*.yaml'))


@pytest.mark.parametrize('path', RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_parsed_and_built(path):
    """Its header says how to run it, where it comes from and what it should reach; its network is built, without
    memory for the weights, and its losses with their optimiser."""
    text = path.read_text(encoding='utf-8')
    header = ''.join(line for line in text.splitlines(keepends=True) if line.startswith('#'))
    commands = re.findall(r'^#   python (\w+)\.py (.*)$', header, re.M)
    assert ('train', path.stem) in [(script, Path(words.split()[1]).stem) for script, words in commands]
    for script, words in commands:
        cli.parse(importlib.import_module(script).options(), words.split())
    assert re.search(r'Rank@1 [\d.]+,\s(?:# )?mAP [\d.]+|No figure', header)
    assert 'Source' in header or path.stem == 'toy'
    opts = networks.complete(parse('--config', path))
    opts.nclasses = 5
    for beginning, package in (('timm/', 'timm'), ('clip/', 'open_clip')):
        if opts.backbone.startswith(beginning):
            pytest.importorskip(package)
    chosen = train.what_to_learn(opts)
    with torch.device('meta'):
        model = networks.build(opts)
        of_clip = opts.head in clip_texts.HEADS
        texts = clip_texts.Texts(clip_texts.Tower(opts.backbone), 5) if of_clip else None
        also = losses.Sum(chosen, 5, model.pieces, texts)
        optim.optimizers(model, also, opts)


def test_the_recipes_that_are_promised():
    promised = 'upstream_baseline upstream_tricks upstream_tricks_circle upstream_densenet pcb strong_baseline '
    promised += (
        'strong_triplet strong_center ranked_list ranked_list_clustered osnet_scratch swin convnext two_cores toy'
    )
    promised += ' clip_reid_stage1 clip_reid_stage2'
    assert set(promised.split()) <= {path.stem for path in RECIPES}
