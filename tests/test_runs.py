"""What a run in training keeps: python -m pytest tests/test_runs.py"""

import pytest
import torch
from test_files import in_use

from reid import files, runs
from reid.problem import Problem

LOG = [{'epoch': 1, 'train_loss': 2.0, 'train_top1err': 0.5, 'seconds': 3.0}]
KEPT = ['net_last.pth', 'log.csv', 'train.jpg', 'resume.pth']


def keep(folder):
    model = torch.nn.Linear(2, 3)
    model.frozen = False
    runs.keep(folder, 1, {'model': model}, LOG, ['0002'])


def test_all_of_it_is_kept(tmp_path, capsys):
    keep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(KEPT)
    assert files.read_rows(tmp_path / 'log.csv') == [{name: str(value) for name, value in LOG[0].items()}]
    assert not capsys.readouterr().out


@pytest.mark.parametrize('name', ['log.csv', 'train.jpg'])
def test_what_is_only_looked_at_may_be_open_elsewhere(name, tmp_path, monkeypatch, capsys):
    in_use(monkeypatch, times=100, name=name)
    keep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(set(KEPT) - {name})
    said = capsys.readouterr().out
    assert said.startswith(f'{tmp_path / name} is not written (Permission denied): close it')
    assert said.count('\n') == 1


@pytest.mark.parametrize('name', ['net_last.pth', 'resume.pth'])
def test_what_is_needed_and_open_elsewhere_is_a_sentence(name, tmp_path, monkeypatch):
    in_use(monkeypatch, times=100, name=name)
    with pytest.raises(Problem, match=rf'{name} cannot be written .*Permission denied.* open in another program'):
        keep(tmp_path)
