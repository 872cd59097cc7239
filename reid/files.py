"""Files that are either whole or not there, tables of rows in them, and folders in a few words."""

import csv
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
