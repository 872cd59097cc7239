"""Files that are either whole or not there: python -m pytest tests/test_files.py"""

import os

import pytest

from reid import files


def in_use(monkeypatch, times, name=''):
    """os.replace as on Windows, where another program has the file of that name open for so many tries."""
    replace, tried = os.replace, []

    def refused(source, target):
        if str(target).endswith(name):
            tried.append(target)
            if len(tried) <= times:
                raise PermissionError(13, 'Permission denied', str(target))
        return replace(source, target)

    monkeypatch.setattr(os, 'replace', refused)
    monkeypatch.setattr(files, 'WAITS', (0, 0))
    return tried


def test_a_file_that_is_open_for_a_moment_is_replaced_after_it(tmp_path, monkeypatch):
    path = tmp_path / 'x'
    path.write_text('old')
    tried = in_use(monkeypatch, times=2)
    with files.replacing(path) as temporary:
        temporary.write_text('new')
    assert path.read_text() == 'new'
    assert len(tried) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_stays_open_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / 'x'
    path.write_text('old')
    in_use(monkeypatch, times=100)
    with pytest.raises(PermissionError), files.replacing(path) as temporary:
        temporary.write_text('new')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_of_the_writer_is_not_tried_again(tmp_path, monkeypatch):
    tried = in_use(monkeypatch, times=0)
    with pytest.raises(PermissionError, match='mine'), files.replacing(tmp_path / 'x'):
        raise PermissionError('mine')
    assert not tried


def test_two_who_write_at_a_time_do_not_mix(tmp_path):
    path = tmp_path / 'x'
    with files.replacing(path) as one, files.replacing(path) as other:
        one.write_text('one')
        other.write_text('other')
    assert path.read_text() == 'one'  # which ended last
    assert list(tmp_path.iterdir()) == [path]
