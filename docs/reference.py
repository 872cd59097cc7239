"""All options of all scripts in one page, from their parsers: what --help says, to search and to link to.

Writes:  docs/reference.md
Run:     python docs/reference.py
"""

import argparse
import importlib
import importlib.util
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from reid import cli  # noqa: E402
from reid.files import replacing  # noqa: E402

PAGE = ROOT / 'docs/reference.md'
SCRIPTS = 'prepare train test evaluate_gpu evaluate_rerank demo threshold export search serve'.split()
HEAD = """# Reference

All options of all scripts, as `--help` tells them: written by `python docs/reference.py` from the scripts themselves.
N is a whole number, X any number, and in brackets is what it may be. A switch such as `--bf16` that a recipe has set is
undone by `--no-bf16`.
"""


def options():
    return cli.parser(__doc__)


def main(opts):
    with replacing(PAGE) as temporary:
        temporary.write_text(page(), encoding='utf-8', newline='\n')
    print(PAGE.relative_to(ROOT))


def page():
    text = '\n'.join(line for name, parser in parsers().items() for line in chapter(name, parser, 2))
    return HEAD + '\n' + re.sub(r'\n{3,}', '\n\n', text)


def parsers():
    """What a script is called -> its parser."""
    found = {f'{name}.py': importlib.import_module(name).options() for name in SCRIPTS}
    found['python -m reid.cache'] = importlib.import_module('reid.cache').options()
    for path in sorted((ROOT / 'benchmarks').glob('*.py')):
        spec = importlib.util.spec_from_file_location(f'benchmark_{path.stem}', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found[f'benchmarks/{path.name}'] = module.options()
    return found


def chapter(name, parser, level):
    """The lines about one parser, and the chapters of those below it."""
    jobs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield f'{"#" * level} {name}\n'
    about, *rest = re.split(r'\n(?=Reads:|Writes:)', parser.description, maxsplit=1)
    facts, _, more = '\n'.join(rest).partition('\n\n')
    yield f'{escaped(about)}\n'
    if facts:
        yield f'```\n{facts.strip()}\n```\n'
    if more:
        yield f'{escaped(more.strip())}\n'
    if not jobs:
        for group in parser._action_groups:
            yield from table(group)
    before, _, commands = parser.epilog.rpartition('examples:')
    if before.strip():
        yield f'{escaped(before.strip())}\n'
    yield '\n'.join(f'    {line.strip()}' for line in commands.strip().splitlines()) + '\n'
    for action in jobs:
        for job, below in action.choices.items():
            yield from chapter(f'{name} {job}', below, level + 1)


def table(group):
    actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS and action.dest != 'help']
    if not actions:
        return
    if group.title not in ('options', 'positional arguments'):
        yield f'**{group.title.capitalize()}.** {escaped(group.description or "")}'.strip() + '\n'
    yield f'| | |\n| --- | --- |\n{"".join(row(action) for action in actions)}'


def row(action):
    told = f' [{action.type.expected}]' if hasattr(action.type, 'expected') else ''
    choices = [str(choice) for choice in action.choices or ()]
    named = set(choices) <= set(re.findall(r'[\w-]+', action.help))  # the help speaks of each of them
    choices = '' if named else f'. One of {", ".join(choices)}'
    text = re.sub(r'(?<![\w`-])(--\w[\w-]*)', r'`\1`', escaped(action.help % vars(action)))
    return f'| `{call(action)}` | {text}{choices}{told} |\n'


def call(action):
    """--name VALUE, as it is typed."""
    values = action.metavar or ('' if action.choices else cli.value_of(action)) or action.dest.upper()
    if isinstance(values, tuple):
        words = list(values)
    else:
        many = {'+': [f'{values} ...'], '*': [f'[{values} ...]'], '?': [f'[{values}]'], None: [values]}
        words = many[action.nargs] if action.nargs in many else [values] * action.nargs
    names = [name for name in action.option_strings if not name.startswith('--no-')]
    return ' '.join([*(['/'.join(names)] if names else []), *words])


def escaped(text):
    return text.replace('<', '&lt;').replace('|', r'\|')


if __name__ == '__main__':
    cli.start(main, options)
