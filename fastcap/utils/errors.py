"""The base class of all errors that are the user's to mend, not a bug of the program's."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in what the user gave: an option, a file, a folder.

    The message is one sentence that names the part and the reason. The command line prints it as one line and ends with
    status 2 (``fastcap.cli.one_clear_error``).
    """
