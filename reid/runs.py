"""What a run in training keeps on disk, epoch after epoch, so that it can be stopped, killed, read and gone on with."""

import time

import torch

from reid import plots, processes, results
from reid.files import replacing, write_rows
from reid.problem import Problem


def begin(folder, overwrite):
    """A new run: never on top of another by accident."""
    there = sorted(folder.glob('net_*.pth'))
    if there and not overwrite:
        raise Problem(
            f'{folder} holds a run already ({there[-1].name}). Go on with it: --resume. '
            f'Begin anew in its place: --overwrite. Or take another --name'
        )


def clear(folder):
    """Remove what an earlier run left: its snapshots, features and figures would pass for the new one's."""
    processes.wait()  # until all have looked what is there
    if not processes.first():
        return
    folder.mkdir(parents=True, exist_ok=True)
    made = (
        'net_*.pth resume.pth text.pth opts.yaml log.csv train.jpg pytorch_result* multi_query* metrics.json result.txt'
    )
    for pattern in [*made.split(), 'show.png', 'report.png', 'threshold.*', 'rankings/*.png', '*.part']:
        for path in folder.glob(pattern):
            results.remove(path)


def gone_on(state, names, folder):
    """A line on what is gone on with. The label of an identity is its place among the names: they must be the same."""
    if state['names'] != names:
        one = sorted(set(state['names']) ^ set(names))[0]
        raise Problem(
            f'{folder} was trained on other identities ({len(state["names"])}) than are here ({len(names)}), {one} for '
            'one: give the --data_dir that it was trained on'
        )
    return f'{folder}: going on after epoch {len(state["log"])}'


def keep(folder, epoch, parts, log, names):
    """Everything that a later run or reader needs, after every epoch; a snapshot of its own after every tenth.

    resume.pth comes last: who is killed before it is complete does the epoch again, and gets the same.
    """
    if not processes.first():
        return
    same = epoch > 0 and parts['model'].frozen  # as before the first epoch, and not written again
    if not same:
        weights = parts['model'].state_dict()
        save(weights, folder / 'net_last.pth')
        if epoch and epoch % 10 == 0:
            save(weights, folder / f'net_{epoch:03d}.pth')
    if log:
        columns = list(dict.fromkeys(column for row in log for column in row))
        unless_open(folder / 'log.csv', lambda path: write_rows(path, columns, log))
        unless_open(folder / 'train.jpg', lambda path: plots.curves(log, path))
    state = {name: part.state_dict() for name, part in parts.items() if name != 'model' or not same}
    state |= {'log': log, 'names': names}
    save(state, folder / 'resume.pth')


def unless_open(path, write):
    """Write what is only there to be looked at. Whatever prevents that, training goes on."""
    try:
        write(path)
    except OSError as error:
        print(
            f'{path} is not written ({error.strerror}): close it if it is open in another program, such as Excel, and '
            'it is complete again after the next epoch'
        )


def save(state, path):
    if not processes.first():
        return
    try:
        with replacing(path) as temporary:
            torch.save(state, temporary)
    except (OSError, RuntimeError) as error:  # the latter is torch's, whatever stopped its writing
        raise Problem(
            f'{path} cannot be written ({str(error).splitlines()[0]}): is the disk full, or the file open in another '
            'program? What was saved before it is there: once that is mended, --resume goes on'
        ) from None


def time_is_up(minutes, began, log):
    """Would another epoch, as long as the longest so far, end after so many minutes (None: as long as it takes)?"""
    longest = max((row['seconds'] for row in log), default=0)
    return minutes is not None and processes.most(time.time() - began + longest) > 60 * minutes


def line(row, total):
    """One line an epoch."""
    text = f'epoch {row["epoch"]:3d}/{total}'
    for phase in ('train', 'val'):
        if f'{phase}_loss' in row:
            text += f'  {phase} loss {row[f"{phase}_loss"]:.4f} error {row[f"{phase}_top1err"]:.4f}'
    if 'rank1' in row:
        text += f'  held out Rank@1 {row["rank1"]:.4f} mAP {row["map"]:.4f}'
    return f'{text}  {row["seconds"]:.0f} s'
