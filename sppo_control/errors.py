"""Errors that the user can mend: scripts print their message in one line, without a traceback."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can mend; scripts print its message without a traceback."""


class FileError(UserError, ValueError):
    """A file is damaged, or is not what it should be; the message names the file and, where it can, the entry."""


class NonFiniteError(UserError):
    """A loss or a gradient became NaN or infinite."""
