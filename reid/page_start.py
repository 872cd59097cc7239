"""What is chosen on the page (reid.page) and holds from the next start of the service on: what computes, and by what.

start = Start(path, {'device': [...], 'engine': [...]}, typed=['engine'])
start.chosen()            # {'device': 'GPU 1'}, of before this start: whatever the file says, it is one of these
start.keep({'device': ...})
"""

import json

from reid.files import replacing


class Start:
    def __init__(self, path, choices, typed=()):
        """The first of each is that of the command line. typed: what was given there, which goes before. now: what is
        in force, if the caller says so."""
        self.path, self.choices, self.typed = path, choices, set(typed)
        self.now = {name: next(iter(some)) for name, some in choices.items()}

    def chosen(self):
        try:
            return self.known(json.loads(self.path.read_text(encoding='utf-8')))
        except (OSError, ValueError):
            return {}

    def keep(self, given):
        with replacing(self.path) as temporary:
            temporary.write_text(json.dumps({**self.chosen(), **self.known(given)}), encoding='utf-8')

    def known(self, given):
        given = given if isinstance(given, dict) else {}
        return {name: given[name] for name, some in self.choices.items()
                if given.get(name) in list(some) and name not in self.typed}  # fmt: skip

    def next(self):
        """{name: what will hold}."""
        return {**self.now, **self.chosen()}
