"""What the documents say can be typed, clicked and read in both languages: python -m pytest tests/test_docs.py

Documents are found by looking, so that one that is added is held to the same.
"""

import argparse
import contextlib
import importlib
import importlib.util
import io
import json
import re
import shlex
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from conftest import ROOT

import make
import train
from reid import cli
from reid.files import read_rows
from reid.problem import Problem

FOLDERS = ('docs', 'tutorial', '.github', 'configs', 'examples', 'benchmarks', 'requirements', 'results')
DOCUMENTS = sorted([*ROOT.glob('*.md'), *(path for folder in FOLDERS for path in (ROOT / folder).rglob('*.md'))])
NOTEBOOKS = sorted((ROOT / 'tutorial').rglob('*.ipynb'))
CHINESE = [path for path in DOCUMENTS if path.name.endswith('.zh.md')]
SHELL = {'', 'sh', 'bash', 'shell', 'console', 'bat', 'cmd', 'powershell'}  # kinds of blocks that hold commands
PYTHON = re.compile(r'(?:.*[/\\])?(?:python[\d.]*(?:\.exe)?|py)')


def name(path):
    return path.relative_to(ROOT).as_posix()


documents = pytest.mark.parametrize('path', DOCUMENTS, ids=name)


# ---------------------------------------------------------------------------------------------------------------------
# what is code in a document, and what is not


def parts(text):
    """(kind, lines) of each part of a document: 'prose', 'indented', 'fence:LANGUAGE'. A fence may stand in a list."""
    found, fence = [('prose', [])], None
    for line in text.splitlines():
        mark = re.match(r' *(`{3,}|~{3,}) *([\w+-]*)', line)
        if fence:
            if mark and mark[1].startswith(fence) and not mark[2]:
                fence = None
                found.append(('prose', []))
            else:
                found[-1][1].append(line)
        elif mark:
            fence = mark[1]
            found.append((f'fence:{mark[2].lower()}', []))
        else:
            kind = 'indented' if line.startswith('    ') else 'prose'
            if kind != found[-1][0]:
                found.append((kind, []))
            found[-1][1].append(line)
    return found


def shell_lines(path):
    """All lines of a document that may be commands: in blocks, and between backquotes."""
    if path.suffix == '.ipynb':
        cells = json.loads(path.read_text(encoding='utf-8'))['cells']
        code = '\n'.join(''.join(cell['source']) for cell in cells if cell['cell_type'] == 'code')
        return [line[1:] for line in joined(code) if line.startswith(('!', '%'))]
    found = []
    for kind, lines in parts(path.read_text(encoding='utf-8')):
        if kind == 'indented' or kind.partition(':')[2] in SHELL and kind != 'prose':
            found += joined('\n'.join(lines))
        if kind in ('prose', 'indented'):
            found += [code.replace('\n', ' ') for code in re.findall(r'`([^`]+)`', '\n'.join(lines))]
    return found


def joined(text):
    return re.sub(r'\\\n\s*', ' ', text).splitlines()


def prose(path):
    """A document without its code: what links and headings are looked for in."""
    lines = [line for kind, lines in parts(path.read_text(encoding='utf-8')) if kind[:5] != 'fence' for line in lines]
    return re.sub(r'`[^`\n]*`', lambda code: code[0] if '[' not in code[0] else '', '\n'.join(lines))


# ---------------------------------------------------------------------------------------------------------------------
# commands


def commands(path):
    """The words of each command of this project in a document: ['train.py', '--name', 'x'], ['make', 'demo'], ..."""
    found = [command for line in shell_lines(path) for command in commands_in(line)]
    return [words for words in found if words]


def commands_in(line):
    line = re.sub(r'^\s*(?:\$|>|PS[^>]*>|\(\.venv\))\s+', '', line)
    lexer = shlex.shlex(line, posix=True, punctuation_chars='|&;<>')
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # a quotation mark of prose
        return
    command = []
    for word in [*words, ';']:
        if set(word) <= set('|&;<>'):
            yield ours(command)
            command = []
        else:
            command.append(word)


def ours(words):
    """The words from the script on, if it is one of this project; the launcher is gone, and what is set before."""
    while words and re.fullmatch(r'[A-Za-z_]\w*=.*', words[0]):
        words = words[1:]
    if not words:
        return None
    if words[0] == 'make' and re.fullmatch('[a-z]+', ' '.join(words[1:2])):
        return words
    if words[0] in ('pip', 'pip3') and '-r' in words:
        return words
    if words[0] == 'torchrun' or PYTHON.fullmatch(words[0]):
        for i, word in enumerate(words[1:], 1):
            if word == '-m':
                return ours(words[i + 1 :]) if words[i + 1] == 'pip' else words[i:]
            if word.endswith('.py'):
                return words[i:]
    return None


def check(words):
    """Parse a command as its script does. Raises what the script would say."""
    script = words[0].replace('\\', '/')
    if script == 'make' or script == 'make.py':
        goals = [word for word in words[1:] if '=' not in word and not word.startswith('-')]
        known = set(re.findall('[a-z]+', re.search(r'^([a-z ]+):$', makefile(), re.M)[1]))
        assert goals[:1] and goals[0] in known, f'the goals are {sorted(known)}'
        assert hasattr(make, goals[0])
    elif script in ('pip', 'pip3'):
        for flag, file in zip(words, words[1:], strict=False):
            assert flag not in ('-r', '-c') or (ROOT / file).is_file(), file
    elif script == '-m' and words[1] == 'pytest':
        for place in (word.partition('::')[0] for word in words[2:] if word.startswith('tests')):
            assert (ROOT / place).exists(), place
    elif script == '-m' and not words[1].startswith('reid.'):
        assert words[1] in ('venv', 'ruff', 'ensurepip', 'http.server', 'webbrowser', 'jupyter', 'notebook'), words[1]
    else:
        where = words[1].replace('.', '/') + '.py' if script == '-m' else script
        rest = words[2:] if script == '-m' else words[1:]
        assert (ROOT / where).is_file(), f'there is no {where}'
        module = module_of(where)
        if '--help' not in rest and '-h' not in rest and hasattr(module, 'options'):
            opts = cli.parse(module.options(), known_recipes(rest))
            if module is train:
                train.what_to_learn(opts)


def makefile():
    return (ROOT / 'Makefile').read_text(encoding='utf-8')


def module_of(where):
    if '/' not in where:
        return importlib.import_module(where.removesuffix('.py'))
    if where.startswith('reid/'):
        return importlib.import_module(where.removesuffix('.py').replace('/', '.'))
    spec = importlib.util.spec_from_file_location(Path(where).stem, ROOT / where)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def known_recipes(words):
    """The options of a run, model/NAME/opts.yaml, are a recipe that is not there before the run is."""
    runs = r'model/[\w.-]+/opts\.yaml'
    return [str(ROOT / 'configs/toy.yaml') if re.fullmatch(runs, word) else word for word in words]


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize('path', [*DOCUMENTS, *NOTEBOOKS], ids=name)
def test_every_command_parses(path):
    wrong = []
    for words in commands(path):
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                check(words)
        except (SystemExit, Problem, AssertionError, argparse.ArgumentError) as error:
            wrong.append(f'{shlex.join(words)}\n    {said.getvalue().strip().rpartition("error:")[2] or error}')
    assert not wrong, f'{name(path)}:\n' + '\n'.join(wrong)


def test_the_readme_has_a_command_of_every_script_and_is_short():
    used = {words[0] for words in commands(ROOT / 'README.md')}
    cards = {path.name for path in ROOT.glob('*.py')} - {'model.py', 'utils.py'}
    assert cards <= used
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) < 200


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('    python train.py --name x  # why\n', [['train.py', '--name', 'x']]),
        ('```sh\n$ torchrun --nproc_per_node 2 test.py \\\n    --multi\n```', [['test.py', '--multi']]),
        ('So `python\ndemo.py --all` and `demo.py`.', [['demo.py', '--all']]),
        ('1. x\n   ```bash\n   make test && make lint\n   ```', [['make', 'test'], ['make', 'lint']]),
        ('    REID_TOKEN=x python serve.py --index p | tee log', [['serve.py', '--index', 'p']]),
        ('    .venv\\\\Scripts\\\\python -m pip install -r a.txt', [['pip', 'install', '-r', 'a.txt']]),
        ('```python\npython train.py\n```\n```diff\n+    python test.py\n```', []),
        ("It doesn't make sense.\n    it's python", []),
    ],
)
def test_commands_are_found(text, expected, tmp_path):
    (tmp_path / 'x.md').write_text(text)
    assert commands(tmp_path / 'x.md') == expected


@pytest.mark.parametrize(
    'line',
    [
        'python train.py --nmae x',
        'python train.py --pk_cameras',
        'python gone.py',
        'python -m reid.gone',
        'make dmeo',
        'python make.py dmeo',
        'pip install -r gone.txt',
        'python -m pytest tests/test_gone.py',
        'python search.py index make people',
        'python train.py --config configs/gone.yaml',
    ],
)
def test_what_is_wrong_is_noticed(line):
    (words,) = commands_in(line)
    with pytest.raises((SystemExit, Problem, AssertionError)):
        check(words)


# ---------------------------------------------------------------------------------------------------------------------
# the help of the scripts, and the page that is made of it


@pytest.fixture(scope='module')
def reference():
    return module_of('docs/reference.py')


def below(name, parser):
    """(name, parser) of a script, and of each job of it."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for job, one in action.choices.items():
                yield from below(f'{name} {job}', one)


def test_the_reference_says_what_the_help_says(reference):
    assert reference.PAGE.read_text(encoding='utf-8') == reference.page(), 'python docs/reference.py renews it'


def test_the_reference_has_every_script_and_every_option(reference):
    scripts = {path.name for path in ROOT.glob('*.py')} - {'make.py', 'model.py', 'utils.py'}
    scripts |= {name(path) for path in (ROOT / 'benchmarks').glob('*.py')}
    assert scripts <= set(reference.parsers())
    text = reference.PAGE.read_text(encoding='utf-8')
    for script, one in reference.parsers().items():
        for job, parser in below(script, one):
            assert f'# {job}\n' in text
            for action in parser._actions:
                assert action.help == argparse.SUPPRESS or f'{action.option_strings[:1] or ""}'.strip("[]'") in text


def test_help_tells_defaults_and_ends_with_commands_that_parse(reference):
    """A number that an option has by default stands in its help; a type that has bounds tells them there too."""
    for script, one in reference.parsers().items():
        for job, parser in below(script, one):
            examples = parser.epilog.rpartition('examples:')[2].strip().splitlines()
            found = [words for line in examples for words in commands_in(line) if words]
            assert found, job
            for words in found:
                check(words)
            for action in parser._actions:
                if action.help == argparse.SUPPRESS or action.dest in ('help', 'job', 'work'):
                    continue
                assert action.help, (job, action.dest)
                if action.default not in (None, False, [], argparse.SUPPRESS) and action.dest != 'jobs':
                    assert 'default' in action.help, (job, action.dest)
                if isinstance(action.default, (int, float)) and action.default and action.dest != 'num_workers':
                    told = action.help.replace(',', '') % vars(action)
                    assert f'{action.default:.10g}' in told, (job, action.dest, told)


def test_help_is_a_page(capsys):
    with pytest.raises(SystemExit):
        cli.parse(train.options(), ['--help'])
    text = capsys.readouterr().out
    assert re.match(r'usage: python \S+ \[options\]\n\nFit a network', text)
    assert re.search(r'--label_smooth X\s.*\[0 to\s+1\]\n', text, re.S)
    assert 'Run:' not in text
    assert re.search(r'\nexamples:\n(  python train\.py .*\n)+$', text)


def test_the_help_of_a_job_names_what_has_to_be_typed(capsys):
    with pytest.raises(SystemExit):
        cli.parse(module_of('search.py').options(), ['query', '--help'])
    usage = ' '.join(capsys.readouterr().out.partition('\n\n')[0].split())
    assert re.fullmatch(r'usage: .* query \[options\] --index WHERE \[pictures \.\.\.\]', usage)


def test_the_help_of_toy_data_says_what_is_drawn():
    from reid import toy

    told = ' '.join(module_of('prepare.py').options().format_help().split())
    assert f'(default {toy.IDS})' in told
    assert f'(default {toy.IMAGES})' in told


# ---------------------------------------------------------------------------------------------------------------------
# links


def links(path):
    text = prose(path)
    found = re.findall(r'\]\(\s*<?([^\s)>]+)>?(?:\s+"[^"]*")?\s*\)', text)
    found += re.findall(r'<(?:a|img|source|video)\b[^>]*?\b(?:href|src|srcset)="([^" ]+)', text)
    return found + re.findall(r'^\[[^\]^]+\]:\s*<?(\S+?)>?\s*$', text, re.M)


def anchors(path):
    """What a document can be entered by: its headings, as GitHub names them, and what it names itself."""
    found, seen = set(), {}
    for _, title in headings(path):
        title = re.sub(r'!?\[([^\]]*)\]\([^)]*\)', r'\1', title)
        slug = re.sub(r'[^\w\- ]', '', title.strip().lower().replace('`', '')).replace(' ', '-')
        found.add(f'{slug}-{seen[slug]}' if slug in seen else slug)
        seen[slug] = seen.get(slug, 0) + 1
    return found | set(re.findall(r'<\w+[^>]*?\b(?:id|name)="([^"]+)"', path.read_text(encoding='utf-8')))


def headings(path):
    """(level, title) of each."""
    lines = [line for kind, lines in parts(path.read_text(encoding='utf-8')) if kind == 'prose' for line in lines]
    found = [re.match(r'(#{1,6}) +(.*?)[ #]*$', line) for line in lines]
    return [(len(match[1]), match[2]) for match in found if match]


@documents
def test_every_link_leads_somewhere(path):
    wrong = []
    for link in links(path):
        if re.match(r'[a-z][a-z+.-]*:', link):  # http:, mailto:
            continue
        file, _, anchor = link.partition('#')
        target = (path.parent / unquote(file)).resolve() if file else path
        inside = target == ROOT or ROOT in target.parents
        if not (inside and target.exists()):
            wrong.append(link)
        elif anchor and target.suffix == '.md' and unquote(anchor) not in anchors(target):
            wrong.append(f'{link}: there are {sorted(anchors(target))}')
        elif re.fullmatch(r'L\d+(-L\d+)?', anchor):  # a line moves with the next edit
            wrong.append(f'{link}: a line, which does not stay where it is')
    assert not wrong, f'{name(path)}:\n' + '\n'.join(wrong)


def test_links_and_anchors_are_found(tmp_path):
    text = (
        '# A `b` c!\n## A b c\n[x](y.md#z) ![](p.png "t") <img src="q.png">\n[r]: s.md\n```\n[no](no.md)\n# no\n```\n'
    )
    (tmp_path / 'x.md').write_text(text + '## 训练\n`[no](no)`\n')
    assert links(tmp_path / 'x.md') == ['y.md#z', 'p.png', 'q.png', 's.md']
    assert anchors(tmp_path / 'x.md') == {'a-b-c', 'a-b-c-1', '训练'}


def test_the_citation_says_what_is_needed_of_one():
    said = yaml.safe_load((ROOT / '.github/CITATION.cff').read_text(encoding='utf-8'))
    assert {'cff-version', 'message', 'title', 'authors'} <= set(said)
    assert said['title'] == headings(ROOT / 'README.md')[0][1]
    assert said['license'] == (ROOT / 'LICENSE').read_text(encoding='utf-8').split()[0]
    assert said['authors'][0]['name'] in (ROOT / 'LICENSE').read_text(encoding='utf-8')


# ---------------------------------------------------------------------------------------------------------------------
# two languages


@pytest.mark.parametrize('path', CHINESE, ids=name)
def test_both_languages_have_the_same_commands_and_headings(path):
    other = path.with_name(path.name.replace('.zh.md', '.md'))
    assert other.is_file()
    assert [level for level, _ in headings(path)] == [level for level, _ in headings(other)]
    assert commands(path) == commands(other)


# ---------------------------------------------------------------------------------------------------------------------
# from_upstream.md: which flag became what

UPSTREAM = ROOT / 'tutorial/from_upstream.md'
THEIRS = """gpu_ids name data_dir train_all batchsize color_jitter erasing_p DG lr weight_decay total_epoch fp16 bf16
cosine FSGD wa linear_num stride droprate use_dense use_swin use_swinv2 use_dino use_efficient use_NAS use_hr
use_convnext ibn usam PCB warm_epoch arcface circle cosface contrast instance instance_id ins_gamma triplet lifted
sphere adv aiter which_epoch test_dir multi ms query_index k1 k2 lamb batch total warm"""


def flags():
    """(script, what was typed, what is typed now) of each row of its tables."""
    for block in re.findall(r'<!-- flags: (.*)', UPSTREAM.read_text(encoding='utf-8').replace('\n', '\f')):
        for table in block.split('<!-- flags: '):
            script = table.partition(' -->')[0]
            for line in table.split('\f\f')[1].split('\f')[2:]:
                old, new = (re.search(r'`(--[^`]*)`', cell) for cell in line.strip('| ').split(' | '))
                yield script, old[1], new[1] if new else old[1]


@pytest.mark.parametrize(('script', 'old', 'new'), list(flags()))
def test_an_old_flag_and_what_it_is_called_now_say_the_same(script, old, new):
    parser = module_of(script).options()
    before, after = (vars(cli.parse(parser, words.split())) for words in (old, new))
    ours = {'command', 'given'}
    assert {k: v for k, v in before.items() if k not in ours} == {k: v for k, v in after.items() if k not in ours}
    assert set(before['given']) == set(after['given'])


def test_every_flag_of_the_baseline_is_in_the_tables():
    told = {word for _, old, _ in flags() for word in re.findall(r'--\w+', old)}
    assert {f'--{flag}' for flag in THEIRS.split()} == told
    assert {*cli.ALIASES, *cli.LOSSES} <= told


def test_what_is_quoted_as_published_is_what_the_table_of_published_figures_has():
    rows = read_rows(ROOT / 'results/published.csv')
    for recipe, rank1, score in re.findall(r'\| `(\w+)` \| ([\d.]+) / ([\d.]+)', UPSTREAM.read_text(encoding='utf-8')):
        (row,) = [row for row in rows if row['recipe'] == recipe]
        assert (row['rank1'], row['map'], row['kind']) == (rank1, score, 'trapezoid')
