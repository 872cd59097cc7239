"""Put the lines of code and of output that the tutorial shows into it, from the files where they are.

Reads:   the documents of tutorial/, and the files that their marks name
Writes:  the same documents, between the marks
Run:     python tutorial/pull.py
         python tutorial/pull.py --check

A mark names a file, or a function, a class or a method in it, or lines from one that holds a text to one that holds
another; what stands below it, down to the next `<!-- end -->`, is written anew:

    <!-- code: reid/features.py describe -->
    <!-- code: model.py ClassBlock.forward -->
    <!-- code: train.py "scaler.scale" ... "scaler.update" -->
    <!-- code: tutorial/output/train.txt -->

So what is shown is what is run. --check changes nothing, and ends with 1 if a document is out of step.
"""

import argparse
import ast
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MARK = re.compile(r'(?P<mark>^<!-- code: (?P<what>.+?) -->\n)(?P<old>.*?)(?=^<!-- end -->$)', re.M | re.S)
RANGE = re.compile(r'"(.+)" \.\.\. "(.+)"')
LANGUAGES = {'.py': 'python', '.yaml': 'yaml', '.json': 'json'}


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='say which documents are out of step; change nothing')
    return parser


def main(opts):
    stale = 0
    for path in documents():
        text = path.read_text(encoding='utf-8')
        new = renewed(text, path.name)
        if new != text:
            stale += 1
            print(f'{path.relative_to(ROOT)}: ' + ('out of step' if opts.check else 'written anew'))
            if not opts.check:
                path.write_text(new, encoding='utf-8')
    if opts.check and stale:
        sys.exit('python tutorial/pull.py brings them in step')


def documents():
    return sorted((ROOT / 'tutorial').glob('*.md'))


def renewed(text, name):
    """The document with everything between its marks as it is now."""
    if text.count('\n<!-- code: ') != text.count('\n<!-- end -->') or len(MARK.findall(text)) != text.count(
        '\n<!-- code: '
    ):
        sys.exit(f'{name}: every <!-- code: ... --> needs an <!-- end --> of its own')
    return MARK.sub(lambda match: match['mark'] + fenced(match['what'], name), text)


def fenced(what, name):
    """The block for one mark."""
    file, _, part = what.partition(' ')
    path = ROOT / file
    if not path.is_file():
        sys.exit(f'{name}: <!-- code: {what} -->: there is no {file}')
    source = path.read_text(encoding='utf-8')
    if between := RANGE.fullmatch(part):
        lines = lines_between(source, *between.groups())
    elif part:
        lines = named(source, part)
    else:
        lines = source.splitlines()
    if lines is None:
        sys.exit(f'{name}: <!-- code: {what} -->: that is not to be found in {file}')
    code = textwrap.dedent('\n'.join(lines)).strip('\n')
    return f'```{LANGUAGES.get(path.suffix, "text")}\n{code}\n```\n'


def lines_between(source, first, last):
    """From the only line that holds `first` to the next one that holds `last`, or None."""
    lines = source.splitlines()
    starts = [i for i, line in enumerate(lines) if first in line]
    if len(starts) != 1:
        return None
    ends = [i for i in range(starts[0], len(lines)) if last in lines[i]]
    return lines[starts[0] : ends[0] + 1] if ends else None


def named(source, name):
    """The lines of a function, a class, or something in them: 'go_through', 'ClassBlock.forward'; or None."""
    within = [ast.parse(source)]
    for word in name.split('.'):
        kinds = (ast.FunctionDef, ast.ClassDef)
        within = [node for outer in within for node in ast.walk(outer) if isinstance(node, kinds) and node.name == word]
    if len(within) != 1:
        return None
    node = within[0]
    start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return source.splitlines()[start - 1 : node.end_lineno]


if __name__ == '__main__':
    main(options().parse_args())
