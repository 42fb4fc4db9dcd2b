"""What ends a run because of its data, as exceptions for people."""

from __future__ import annotations

from serving.errors import Error


class ComponentError(Error):
    """Root of what the components raise on purpose."""

    exit_code = 2


class DataError(ComponentError, ValueError):
    """Input data that cannot be used; the message says which file and why."""


class DataAnomalyError(ComponentError):
    """The examples do not fit the schema."""
