"""Errors for the person at the terminal."""


class UserError(Exception):
    """Something the user can put right: one line, exit code 2, nothing written.

    Any exception with an ``exit_code`` is shown the same way.
    """

    exit_code = 2


class RunError(Exception):
    """A run that failed for another reason; the log has the details."""

    exit_code = 1
