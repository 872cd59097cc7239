"""How every script starts and ends: options in, exit code out, sentences instead of tracebacks."""

import argparse
import os
import re
import sys

from reid.problem import Problem

# What users of the older baselines type, and what it means here. Kept out of --help: there is one way to say a thing.
ALIASES = {
    '--batch': '--batchsize',
    '--total': '--total_epoch',
    '--warm': '--warm_epoch',
    '--lamb': '--lambda_value',
    '--PCB': '--head pcb',
    '--use_dense': '--backbone densenet121',
}


def start(main, options, argv=None):
    """Parse the command line by `options()`, call `main(opts)` and leave with the exit code a shell expects."""
    parser = options()
    for stream in (sys.stdout, sys.stderr):  # a picture's name may not fit the code page that output is redirected in
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    try:
        main(parse(parser, argv))
    except Problem as problem:
        # One that was raised in a process that loads pictures comes back wrapped in that process' traceback.
        sentence = str(problem).rpartition('reid.problem.Problem: ')[2].rstrip()
        print(f'{parser.prog}: {sentence}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f'\n{parser.prog}: stopped', file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to say on the way out
        sys.exit(141)


def parse(parser, argv=None):
    """The options, with `opts.given`: the names that were really typed, whatever their value."""
    words = expand(sys.argv[1:] if argv is None else argv)
    opts = parser.parse_args(words)
    untouched = object()
    probe = parser.parse_args(words, argparse.Namespace(**dict.fromkeys(vars(opts), untouched)))
    opts.given = {name for name, value in vars(probe).items() if value is not untouched}
    return opts


def expand(words):
    """Replace aliases by what they stand for: ['--PCB', '--batch=8'] -> ['--head', 'pcb', '--batchsize=8']."""
    out = []
    for word in words:
        flag, equals, value = word.partition('=')
        if flag in ALIASES:
            new = ALIASES[flag].split()
            out += [*new[:-1], new[-1] + equals + value]
        else:
            out.append(word)
    return out


def quote(path):
    """A path as one can paste it into a shell."""
    return str(path) if re.fullmatch(r'[\w./\\:~+-]+', str(path)) else f'"{path}"'


def parser(doc, **kw):
    """An ArgumentParser that shows a script's own opening lines and accepts whole option names only."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **kw
    )
