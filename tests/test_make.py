"""What make.py says where it cannot go on: python -m pytest tests/test_make.py"""

import ast
import shutil
import subprocess
import sys
from collections import namedtuple

import pytest
from conftest import ROOT

import make


@pytest.fixture
def bare(tmp_path, monkeypatch):
    """A machine without torch and without an environment."""
    monkeypatch.setattr(make, 'has_torch', lambda python: False)
    monkeypatch.setattr(make, 'VENV', str(tmp_path / 'venv'))
    return tmp_path


def words_of(call, capsys):
    with pytest.raises(SystemExit) as end:
        call()
    assert end.value.code == 2
    return capsys.readouterr().err


def test_it_starts_on_an_old_python():
    ast.parse((ROOT / 'make.py').read_text(), feature_version=(3, 4))


def test_an_old_python_gets_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['make.py', 'demo'])
    monkeypatch.setattr(sys, 'version_info', (3, 8, 1))
    assert 'Python 3.10 or newer is needed' in words_of(make.main, capsys)


def test_older_pythons_are_not_held_to_what_they_cannot_have():
    """A pin whose package excludes the oldest Python that is supported has a marker, or pip would stop there."""
    from importlib.metadata import PackageNotFoundError, metadata

    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    lines = (ROOT / 'requirements/constraints.txt').read_text().splitlines()
    for pin in [Requirement(line) for line in lines if line and not line.startswith('#')]:
        try:
            about = metadata(pin.name)
        except PackageNotFoundError:
            continue
        if about['Version'] in pin.specifier and '3.10.0' not in SpecifierSet(about['Requires-Python'] or ''):
            assert pin.marker is not None, pin.name
            assert not pin.marker.evaluate({'python_version': '3.10'}), pin.name


@pytest.mark.parametrize('words', [[], ['dmeo'], ['demo', 'more']])
def test_a_wrong_goal_gets_the_right_ones(words):
    done = subprocess.run([sys.executable, ROOT / 'make.py', *words], capture_output=True, text=True)
    assert done.returncode == 2
    assert 'demo | test' in done.stderr


def test_debian_without_venv_gets_a_sentence(bare, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'ensurepip', None)
    assert 'sudo apt install python3-venv' in words_of(make.setup, capsys)


def test_a_full_disk_gets_a_sentence(bare, monkeypatch, capsys):
    usage = namedtuple('usage', 'total used free')
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage(10**12, 10**12, 10**9))
    assert 'the disk is nearly full' in words_of(make.setup, capsys)


def test_a_failed_install_gets_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, 'call', lambda words: 1)
    assert 'pip could not install' in words_of(lambda: make.install('python', ()), capsys)


def test_a_torch_that_does_not_import_is_told_with_its_own_words(bare, monkeypatch, capsys):
    """Its python is the one that runs the tests, in an environment where torch is a file that cannot be imported."""
    (bare / 'torch.py').write_text('raise OSError("a library is missing")')
    monkeypatch.setenv('PYTHONPATH', str(bare))
    monkeypatch.setattr(make, 'install', lambda python, tools, constrain: None)
    place = bare / 'venv' / ('Scripts' if make.os.name == 'nt' else 'bin')
    monkeypatch.setattr('venv.create', lambda *_, **how: (place.mkdir(parents=True), made.append(how)))
    made = []
    monkeypatch.setattr(make, 'last_words', lambda python, look=make.last_words: look(sys.executable))
    said = words_of(make.setup, capsys)
    assert 'does not import:\n  OSError: a library is missing' in said
    assert made == [{'with_pip': True, 'clear': True, 'symlinks': make.os.name != 'nt'}]


def test_a_complete_environment_is_used_again_until_the_requirements_change(bare, monkeypatch):
    """The second call installs nothing; one with tools does, since they are not there yet."""
    installed = []
    monkeypatch.setattr(make, 'install', lambda python, tools, constrain=False: installed.append(tools))
    monkeypatch.setattr('venv.create', lambda place, **settings: (bare / 'venv').mkdir(exist_ok=True))
    made = str(bare / 'venv')
    monkeypatch.setattr(make, 'has_torch', lambda python: python.startswith(made) and bool(installed))
    assert make.setup().startswith(made)
    make.setup()
    assert installed == [()]
    make.setup(make.TOOLS)
    make.setup(make.TOOLS)
    assert installed == [(), make.TOOLS]


def test_the_active_environment_is_taken_where_torch_imports(monkeypatch):
    monkeypatch.setattr(make, 'install', lambda *words: pytest.fail('nothing is missing'))
    assert make.setup(('pytest',)) == sys.executable


def test_what_is_compared_with_comes_alone(monkeypatch):
    calls = []
    monkeypatch.setattr(subprocess, 'call', calls.append)
    make.install('python', make.TOOLS, constrain=True)
    together, alone = calls
    assert together[-2:] == ['-c', 'requirements/constraints.txt']
    assert 'requirements/dev.txt' in together
    assert 'requirements/alone.txt' not in together
    assert alone[-3:] == ['--no-deps', '-r', 'requirements/alone.txt']
    make.install('python', ())
    assert len(calls) == 3


def test_the_whole_suite_runs_side_by_side_and_chosen_tests_as_pytest_runs_them(monkeypatch):
    ran = []
    monkeypatch.setattr(make, 'setup', lambda tools: 'python')
    monkeypatch.setattr(make, 'run', lambda *words: ran.append(words[3:]))
    make.test()
    make.test('tests/test_toy.py', '--pdb')
    assert ran == [make.SIDE_BY_SIDE, ('tests/test_toy.py', '--pdb')]
