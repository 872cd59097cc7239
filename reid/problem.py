"""The one exception that is meant for the reader's eyes: a sentence, not a traceback."""


class Problem(Exception):
    """Something the user can mend. The message says what was expected, what was found and what to do next.

    The scripts print it without a traceback and end with exit code 2; everything else that is raised is a bug.
    """
