"""Files that are either whole or not there, tables of rows in them, and folders in a few words."""

import csv
import os
import secrets
import time
from contextlib import contextmanager

WAITS = (0.1, 0.2, 0.4, 0.8, 1.6)  # seconds, one after the other


@contextmanager
def replacing(path):
    """`with replacing(path) as temporary:` write to a neighbour that takes the place of path once it is complete.
    Two may do so at a time."""
    temporary = path.with_name(f'{path.name}.{secrets.token_hex(4)}.part')
    try:
        yield temporary
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace(temporary, path):
    """Windows refuses while another program has one of them open. A virus scanner lets go of it after a moment."""
    for wait in WAITS:
        try:
            return os.replace(temporary, path)
        except PermissionError:
            time.sleep(wait)
    return os.replace(temporary, path)


def holds(folder, most=8):
    """The first entries of a folder, for a sentence."""
    names = sorted(os.listdir(folder))
    return ', '.join(names[:most]) + (f' and {len(names) - most} more' if len(names) > most else '') or 'nothing'


def read_rows(path):
    """The rows of a CSV file as dicts of text; none, if it is not there."""
    if not path.is_file():
        return []
    with path.open(encoding='utf-8', newline='') as file:
        return list(csv.DictReader(file))


def write_rows(path, columns, rows):
    with replacing(path) as temporary, temporary.open('w', encoding='utf-8', newline='') as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
