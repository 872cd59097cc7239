"""How every script starts and ends: options in, exit code out, sentences instead of tracebacks."""

import argparse
import copy
import difflib
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
    '--use_swin': '--height 224 --width 224 --backbone timm/swin_base_patch4_window7_224',
    '--use_swinv2': '--backbone timm/swinv2_base_window8_256',
    '--use_dino': '--backbone timm/vit_base_patch16_dinov3',
    '--use_efficient': '--backbone efficientnet_b4',
    '--use_NAS': '--backbone timm/nasnetalarge',
    '--use_hr': '--backbone timm/hrnet_w18',
    '--use_convnext': '--backbone timm/convnext_base',
    '--ibn': '--backbone resnet50_ibn_a',
    '--usam': '--backbone resnet50_usam',
    '--wa': '--average ema',
    '--FSGD': '--optimizer sgd',
}
# The same for its losses, of which several may be named: --triplet --circle is --loss triplet circle.
LOSSES = [f'--{name}' for name in 'triplet circle contrast lifted sphere arcface cosface instance instance_id'.split()]
GAMMA = '--ins_gamma'  # of its instance losses


def start(main, options, argv=None):
    """Parse the command line by `options()`, call `main(opts)` and leave with the exit code a shell expects."""
    parser = options()
    if os.environ.get('RANK', '0') != '0':  # of several processes, as torchrun starts them, the first alone reports
        sys.stdout = open(os.devnull, 'w')  # noqa: SIM115 (it stays open to the end)
    for stream in (sys.stdout, sys.stderr):  # a picture's name may not fit the code page that output is redirected in
        if hasattr(stream, 'reconfigure'):
            stream.reconfigure(errors='backslashreplace')
    try:
        main(parse(parser, argv))
    except Problem as problem:
        # One that was raised in a process that loads pictures comes back wrapped in that process' traceback.
        sentence = str(problem).rpartition('reid.problem.Problem: ')[2].rstrip()
        sys.stderr.write(f'{parser.prog}: {sentence}\n')  # in one piece: several processes may say it
        sys.exit(2)
    except KeyboardInterrupt:
        print(f'\n{parser.prog}: stopped', file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more to say on the way out
        sys.exit(141)


def parse(parser, argv=None):
    """The options, with `opts.given`: the names that were really typed, whatever their value; and `opts.command`."""
    typed = sys.argv[1:] if argv is None else argv
    words = expand(typed)
    opts = parser.parse_args(words)
    opts.given = set(vars(without_defaults(parser).parse_args(words)))
    if getattr(opts, 'config', None):  # a default gives way to the recipe, and the recipe to what was typed
        written = without_defaults(parser).parse_args(recipe(parser, opts.config))
        for name in vars(written).keys() - opts.given:
            setattr(opts, name, getattr(written, name))
    opts.command = ' '.join(['python', parser.prog, *map(quote, typed)])
    return opts


def typed_of(opts, one, other, sentence):
    """Of two options that exclude each other, the typed one stays, and the recipe's goes. If both were typed, or both
    stand in the recipe, the sentence is a Problem."""
    if (one in opts.given) == (other in opts.given):
        raise Problem(sentence)
    gone = other if one in opts.given else one
    setattr(opts, gone, False if getattr(opts, gone) is True else None)


def without_defaults(parser):
    """A parser that knows of nothing but what was typed."""
    parser = copy.deepcopy(parser)
    parser._defaults.clear()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
        if isinstance(action, argparse._SubParsersAction):
            for name, job in action.choices.items():
                action.choices[name] = without_defaults(job)
    return parser


def recipe(parser, path):
    """A YAML file of options -> the command line that it stands for. An option that is none is a sentence."""
    import yaml  # `--help` does not need it

    try:
        with open(path, encoding='utf-8') as file:
            loader = yaml.SafeLoader(file)
            root = loader.get_single_node()
            keys = [key.value for key, _ in root.value] if isinstance(root, yaml.MappingNode) else []
            content = loader.construct_document(root) if root else None
    except FileNotFoundError:
        raise Problem(f'--config {path}: there is no such file') from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise Problem(f'--config {path} cannot be read: {error}') from None
    if not isinstance(content, dict):
        raise Problem(f'--config {path}: lines such as "lr: 0.05" are expected')
    for key in keys:  # of which YAML would take the last
        if keys.count(key) > 1:
            raise Problem(f'{path}: {key} is there twice: one line for each option, please')
    known = {flag[2:]: action for flag, action in parser._option_string_actions.items() if flag.startswith('--')}
    known = {name: action for name, action in known.items() if name not in ('help', 'config')}
    words = []
    for name, value in content.items():
        if name == 'run' or value is None or value == []:  # what opts.yaml says besides; options that were left open
            continue
        flag = f'--{name}'
        if name not in known and flag not in (*ALIASES, *LOSSES, GAMMA):
            raise Problem(f'{path}: there is no option {name}{nearest(name, known)}')
        switch = flag in LOSSES or ' ' in ALIASES.get(flag, '')
        nargs, choices = (known[name].nargs, known[name].choices) if name in known else (0 if switch else None, None)
        if nargs == 0:
            if not isinstance(value, bool):
                raise Problem(f'{path}: {name}: {value}, but true or false is expected')
            words += [flag] if value else []
        elif nargs == '?' and isinstance(value, bool):  # may stand alone
            words += [flag] if value else []
        elif value is False and 'off' in (choices or ()):  # to YAML, off is false
            words.append(f'{flag}=off')
        elif isinstance(value, list) and nargs is not None:
            words += [flag, *map(str, value)]
        else:
            words.append(f'{flag}={value}')
    return expand(words)


def nearest(name, known):
    """Of the names that are known, what may have been meant by one that is not."""
    near = difflib.get_close_matches(str(name), known, 1)
    return f'; did you mean {near[0]}?' if near else ''


def expand(words):
    """Replace aliases by what they stand for: ['--PCB', '--batch=8'] -> ['--head', 'pcb', '--batchsize=8']."""
    networks = [word for word in words if '--backbone' in ALIASES.get(word, '')]
    if len(networks) > 1:
        raise Problem(
            f'{" ".join(networks)} are networks of their own, which are not combined here: one of them, please'
        )
    words, gamma = without(words, GAMMA)
    out = []
    for word in words:
        flag, equals, value = word.partition('=')
        if word in LOSSES:
            out += ['--loss', f'{word[2:]}:1:gamma={gamma}' if gamma and 'instance' in word else word[2:]]
        elif flag in ALIASES:
            new = ALIASES[flag].split()
            out += [*new[:-1], new[-1] + equals + value]
        else:
            out.append(word)
    return out


def without(words, flag):
    """Words without a flag and its value, and the value: of the instance losses of the baseline."""
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            return words[:i] + words[i + 2 :], words[i + 1]
        if word.startswith(f'{flag}='):
            return words[:i] + words[i + 1 :], word.partition('=')[2]
    return words, None


def quote(path):
    """A path as one can paste it into a shell."""
    return str(path) if re.fullmatch(r'[\w./\\:~+-]+', str(path)) else f'"{path}"'


def parser(doc, epilog='', **kw):
    """An ArgumentParser that shows a script's own opening lines, its commands last, and takes whole names only."""
    run = re.search(r'^Run: +(.+(?:\n .+)*)\n?', doc, re.M)
    if run:
        doc = doc.replace(run[0], '')
        epilog = '\n\n'.join([*([epilog] if epilog else []), examples(*re.sub(r'\n +', '\n', run[1]).splitlines())])
    return Parser(description=doc.strip(), epilog=epilog, formatter_class=Page, allow_abbrev=False, **kw)


def examples(*lines):
    return '\n  '.join(['examples:', *lines])


class Parser(argparse.ArgumentParser):
    """One that knows what may have been meant by an option that it has not."""

    def parse_known_args(self, args=None, namespace=None):
        opts, others = super().parse_known_args(args, namespace)
        wrong = [word.partition('=')[0] for word in others if word.startswith('--')]
        if wrong:
            self.error(f'there is no option {wrong[0]}{nearest(wrong[0], self._option_string_actions)}')
        return opts, others


class Page(argparse.RawDescriptionHelpFormatter):
    """Help that is read from the top down: what it does, how to call it, each option with its range, examples."""

    def _format_usage(self, usage, actions, groups, prefix):
        """What has to be typed: all the others stand below it anyhow."""
        needed = [action for action in actions if action.required or not action.option_strings]
        line = super()._format_usage(usage, needed, [], prefix)
        if len(needed) == len(actions):  # no usage is asked for, but the name of a parser below this one
            return line
        python = '' if self._prog.startswith('python') else 'python '
        return line.replace(self._prog, f'{python}{self._prog} [options]', 1)

    def _get_help_string(self, action):
        return f'{action.help} [{action.type.expected}]' if hasattr(action.type, 'expected') else action.help

    def _get_default_metavar_for_optional(self, action):
        return value_of(action) or super()._get_default_metavar_for_optional(action)


def value_of(action):
    """What stands for a number in the help: N for a whole one, X for any."""
    return {'int': 'N', 'whole number': 'N', 'number': 'X'}.get(getattr(action.type, '__name__', ''))


def switch(group, name, help):
    """An option that a recipe may have set, and --no-NAME undoes."""
    group.add_argument(
        name, action=argparse.BooleanOptionalAction, default=False
    ).help = help  # older Pythons add to it
