"""Files that are either whole or not there, and folders in a few words."""

import os
from contextlib import contextmanager


@contextmanager
def replacing(path):
    """`with replacing(path) as temporary:` write to a neighbour that takes the place of path once it is complete."""
    temporary = path.with_name(f'{path.name}.part')
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def holds(folder, most=8):
    """The first entries of a folder, for a sentence."""
    names = sorted(os.listdir(folder))
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '') or 'nothing'
