"""Errors for the person at the terminal."""

from __future__ import annotations

from serving.errors import Error


class UserError(Error):
    """Something the user can put right: one line, exit code 2, nothing written."""

    exit_code = 2


class BusyError(UserError):
    """Another run is at work in the folder."""


class RunError(Error):
    """A run that failed for another reason; the log has the details."""

    exit_code = 1
