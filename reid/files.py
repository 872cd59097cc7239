"""Files that are either whole or not there."""

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
