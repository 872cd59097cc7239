"""The architecture, read from the imports and from the documents: python -m pytest tests/test_law.py"""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
from conftest import ROOT

from reid import cli

CARDS = [
    'prepare',
    'train',
    'test',
    'evaluate_gpu',
    'evaluate_rerank',
    'demo',
    'threshold',
    'export',
    'search',
    'serve',
]
REID = sorted(path.stem for path in (ROOT / 'reid').glob('*.py'))
OURS = {*CARDS, 'make', 'utils', 'model', 'reid'}


def imports(path):
    """All names that a file imports from this project, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f'{node.module}.{alias.name}' for alias in node.names} if node.module == 'reid' else {node.module}
    return {name for name in found if name.split('.')[0] in OURS}


@pytest.mark.parametrize('card', CARDS)
def test_a_script_never_imports_a_script(card):
    assert {name.split('.')[0] for name in imports(ROOT / f'{card}.py')} <= {'utils', 'model', 'reid'}


def test_arrows_never_run_back_up():
    assert {name.split('.')[0] for name in imports(ROOT / 'utils.py')} <= {'model', 'reid'}
    assert {name.split('.')[0] for name in imports(ROOT / 'model.py')} <= {'reid'}
    for name in REID:
        assert {name.split('.')[0] for name in imports(ROOT / 'reid' / f'{name}.py')} <= {'reid'}, name


def test_reid_is_flat_and_has_no_circles():
    assert not list((ROOT / 'reid').glob('*/*.py'))
    assert not (ROOT / 'reid' / '__init__.py').read_text()
    left = {name: {i.split('.')[1] for i in imports(ROOT / 'reid' / f'{name}.py')} for name in REID}
    while free := [name for name, needed in left.items() if not needed & set(left)]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize('card', CARDS)
def test_a_script_opens_with_what_it_reads_and_a_command_that_parses(card):
    doc = ast.get_docstring(ast.parse((ROOT / f'{card}.py').read_text(encoding='utf-8')))
    assert all(re.search(rf'^{word}: +\S', doc, re.M) for word in ('Reads', 'Writes', 'Run')), doc
    found = commands(doc)
    assert any(script == card for script, _ in found)
    for script, words in found:
        cli.parse(importlib.import_module(script).options(), words)


def commands(text):
    """[(card, words)] of all lines in a text that run a card."""
    lines = re.sub(r'\\\n\s*', '', text).splitlines()
    found = []
    for line in lines:
        for match in re.finditer(r'(?:python|torchrun --nproc_per_node \d+) (\w+)\.py((?: +[^\s`()]+)*)', line):
            if match[1] in CARDS and '--help' not in match[2]:
                found.append((match[1], shlex.split(re.split(r'  ', match[2])[0])))
    return found


FOLDERS = ('requirements', 'docs', 'tutorial', 'benchmarks')


def test_the_trees_name_files_that_are_there_and_all_that_are_there():
    names = set()
    for document in ('README.md', 'docs/files.md'):
        blocks = (ROOT / document).read_text(encoding='utf-8').split('```')[1::2]  # the annotated trees are among them
        begun = [re.split(r' {2,}', line)[0] for block in blocks for line in block.splitlines()]
        names |= {name for start in begun for name in re.findall(r'([\w./-]+\.(?:py|txt|md|toml))', start)}
    for name in names:
        places = [ROOT / folder / name for folder in ('', 'reid', *FOLDERS)]
        assert any(place.exists() for place in places), name
    files = [path for folder in ('', 'reid', *FOLDERS) for path in (ROOT / folder).glob('*.py')]
    assert {path.name for path in files} - {'__init__.py'} <= {Path(name).name for name in names}


def test_every_optional_import_is_inside_a_function():
    """The core packages are all that a script may need to start."""
    core = {'torch', 'torchvision', 'numpy', 'scipy', 'matplotlib', 'yaml', 'tqdm', 'PIL'}
    standard = set(__import__('sys').stdlib_module_names)
    for path in [*ROOT.glob('*.py'), *(ROOT / 'reid').glob('*.py')]:
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert name.split('.')[0] in core | standard | OURS, f'{path.name} imports {name}'
