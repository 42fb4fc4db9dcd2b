"""Errors for the person at the terminal."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from serving.errors import Error


class UserError(Error):
    """Something the user can put right: one line, exit code 2, nothing written."""

    exit_code = 2


class BusyError(UserError):
    """Another run is at work in the folder."""


class RunError(Error):
    """A run that failed for another reason; the log has the details."""

    exit_code = 1


def hint(name: str, known: Collection[str]) -> str:
    """The known name that is nearest to an unknown one, as a question, or all of them."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
