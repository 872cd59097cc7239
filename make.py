"""make for machines that have none: python make.py demo | test | lint | setup. The Makefile only calls this file.

Everything runs in the active Python where torch imports already (your CUDA build, Colab), else in .venv, made here.
It has to start on any Python, to be able to say that a newer one is needed: no f-strings, standard library only.
"""

from __future__ import print_function

import hashlib
import json
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(ROOT, '.venv')
OLDEST = (3, 10)
CORE = ('numpy', 'scipy', 'matplotlib', 'yaml', 'tqdm', 'PIL')
TOOLS = ('pytest', 'xdist', 'hypothesis', 'ruff')
SIDE_BY_SIDE = ('-n', 'auto', '--maxprocesses', '4', '--dist', 'loadfile')  # a file's tests share what they prepare
CONSTRAINTS = 'requirements/constraints.txt'
ALONE = 'requirements/alone.txt'  # without the packages that these ask for
HELP_ON_WINDOWS = (
    '\nOn Windows it needs the Visual C++ runtime: https://aka.ms/vs/17/release/vc_redist.x64.exe'
    if os.name == 'nt'
    else ''
)
GIGABYTES = 8 if sys.platform.startswith('linux') else 3  # PyTorch for Linux brings its CUDA libraries along


def main():
    goals = {'demo': demo, 'test': test, 'lint': lint, 'setup': setup}
    if len(sys.argv) < 2 or sys.argv[1] not in goals or (len(sys.argv) > 2 and sys.argv[1] != 'test'):
        stop('usage: python make.py demo | test [words for pytest] | lint | setup')
    if sys.version_info < OLDEST:
        stop(
            'Python %d.%d or newer is needed, this is %s (%s). If a newer one is installed, name it:\n'
            '  make %s PYTHON=python3.12    or    python3.12 make.py %s'
            % (OLDEST + (sys.version.split()[0], sys.executable, sys.argv[1], sys.argv[1]))
        )
    os.chdir(ROOT)
    goals[sys.argv[1]](*sys.argv[2:])


# ---------------------------------------------------------------------------------------------------------------------
# 1. a Python that has what is needed


def setup(tools=()):
    """The path of a Python with the core packages and `tools`, installed first where they are missing."""
    if has_torch(sys.executable):
        missing = [name for name in CORE + tuple(tools) if not has(name)]
        if missing:
            print('active environment: %s missing, installing' % ', '.join(missing))
            install(sys.executable, tools)
        return sys.executable

    python = os.path.join(VENV, *(('Scripts', 'python.exe') if os.name == 'nt' else ('bin', 'python')))
    wanted = fingerprint(tools)
    stamp = os.path.join(VENV, 'complete')
    if os.path.exists(stamp) and has_torch(python):
        with open(stamp) as file:
            if wanted in file.read().split():
                return python
    try:
        import ensurepip  # noqa: F401 (on Debian venv is there without it, and fails half-way)
        import venv
    except ImportError:
        stop(
            'this Python cannot make an environment: its venv module is a package of its own on Debian and Ubuntu.\n'
            '  sudo apt install python3-venv\n'
            'or install the packages where you like them: pip install -r requirements.txt'
        )
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < GIGABYTES and not has_torch(python):
        stop('the disk is nearly full: the packages need %d GB here, %.1f GB are free in %s' % (GIGABYTES, free, ROOT))
    if not os.path.exists(python):
        print('making an environment in .venv')
        # Links, as `python -m venv` makes: a copy of the program does not find its library on macOS. Windows needs it.
        venv.create(VENV, with_pip=True, clear=True, symlinks=os.name != 'nt')
    install(python, tools, constrain=True)
    if not has_torch(python):
        stop('PyTorch was installed, and does not import:\n  %s%s' % (last_words(python), HELP_ON_WINDOWS))
    with open(stamp, 'a') as file:
        file.write(wanted + '\n')
    return python


def has(name):
    """Is a package here, without importing it?"""
    import importlib.util

    return importlib.util.find_spec(name) is not None


def has_torch(python):
    """Do torch and torchvision import, together (not all pairs do), and are they new enough?"""
    if not os.path.exists(python) or (python == sys.executable and not has('torch')):
        return False
    code = 'import torch, torchvision; v = torch.__version__.split("."); print(int(v[0]) * 1000 + int(v[1]))'
    try:
        return int(subprocess.check_output([python, '-c', code], stderr=subprocess.DEVNULL)) >= 2006
    except (subprocess.CalledProcessError, OSError, ValueError):
        return False


def last_words(python):
    """What Python says when torch does not import."""
    done = subprocess.Popen([python, '-c', 'import torch, torchvision'], stderr=subprocess.PIPE)
    lines = done.communicate()[1].decode('utf-8', 'replace').strip().splitlines()
    return lines[-1] if lines else 'it is older than 2.6'


def install(python, tools, constrain=False):
    pip = [python, '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check']
    files = files_of(tools)
    print('installing the packages of %s (a minute or more)' % ' and '.join(files))
    calls = [pip + [word for name in files if name != ALONE for word in ('-r', name)]]
    if constrain:
        calls[0] += ['-c', CONSTRAINTS]
    if ALONE in files:
        calls.append(pip + ['--no-deps', '-r', ALONE])
    if any(subprocess.call(words) for words in calls):
        stop(
            'pip could not install the packages: its words are above. Often it is the network (a proxy: set\n'
            'HTTPS_PROXY) or the disk (%.1f GB are free). Then try again: what is there is kept.'
            % (shutil.disk_usage(ROOT).free / 2**30)
        )


def files_of(tools):
    return ['requirements.txt'] + (['requirements/dev.txt', ALONE] if tools else [])


def fingerprint(tools):
    """Changes when the requirements do, so that an old .venv is brought up to date."""
    digest = hashlib.sha256()
    for name in files_of(tools) + [CONSTRAINTS]:
        with open(os.path.join(ROOT, name), 'rb') as file:
            digest.update(file.read())
    return digest.hexdigest()


# ---------------------------------------------------------------------------------------------------------------------
# 2. goals


def test(*words):
    """The whole test suite, a process for each of up to four cores; or what the words for pytest choose, in one."""
    run(setup(TOOLS), '-m', 'pytest', *(words or SIDE_BY_SIDE))


def lint():
    python = setup(TOOLS)
    run(python, '-m', 'ruff', 'check', '.')
    run(python, '-m', 'ruff', 'format', '--check', '.')


def demo():
    """From nothing to a ranked picture, with the commands that one would type."""
    python = setup()
    toy = ['--config', 'configs/toy.yaml', '--overwrite'] + (['--bf16'] if fast_bf16() else [])
    run(python, 'prepare.py', '--dataset', 'toy')
    run(python, 'train.py', '--name', 'toy_untrained', '--total_epoch', '0', *toy)
    run(python, 'test.py', '--name', 'toy_untrained')
    run(python, 'train.py', '--name', 'toy', *toy)
    run(python, 'test.py', '--name', 'toy')
    run(python, 'evaluate_gpu.py', '--name', 'toy')
    run(python, 'evaluate_rerank.py', '--name', 'toy')
    run(python, 'demo.py', '--name', 'toy', '--query_index', '73', '--heatmap')

    before, after = figures('toy_untrained'), figures('toy')
    print('\n%-28s %8s %8s   (%d queries, identities never trained on)' % ('', 'Rank@1', 'mAP', after['queries']))
    for title, row in (('untrained', before), ('trained', after), ('trained, re-ranked', after['rerank'])):
        print('%-28s %8.2f %8.2f' % (title, 100 * row['rank1'], 100 * row['map_trapezoid']))
    print('\nLook at:')
    print('  data/toy/                      the pictures, and in pytorch/ the tree that prepare.py made of them')
    print('  model/toy/show.png             a query and its ten nearest; below, where the network looked')
    print('  model/toy/train.jpg, log.csv   how it learnt')
    print('  model/toy/metrics.json         the figures above, and more')
    if python != sys.executable:
        activate = r'.venv\Scripts\activate' if os.name == 'nt' else 'source .venv/bin/activate'
        print('The packages are in .venv, for commands that you type: ' + activate)
        if os.name == 'nt':
            print(r'  (if PowerShell does not allow it, type .venv\Scripts\python for python)')
    print('Next: another query (python demo.py --name toy --query_index 42), then a real data set: see README.md')


def figures(name):
    with open(os.path.join('model', name, 'metrics.json')) as file:
        return json.load(file)


def fast_bf16():
    """CPUs with bfloat16 instructions learn about twice as fast in it, others many times slower."""
    try:
        with open('/proc/cpuinfo') as file:
            return 'avx512_bf16' in file.read()
    except OSError:
        return False


def run(*words):
    print('\n$ ' + ' '.join(['python'] + list(words[1:])), flush=True)
    code = subprocess.call(words)
    if code:
        stop('', code)


def stop(sentence, code=2):
    if sentence:
        print(sentence, file=sys.stderr)
    sys.exit(code)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        stop('\nstopped', 130)
