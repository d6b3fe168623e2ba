"""One warning line per message and process: a validation epoch must not drown in repeats."""

import logging

_logger = logging.getLogger("fastcap.metrics")
_said: set[str] = set()


def warn_once(message: str) -> None:
    """Log a warning the first time this message turns up in this process, and never again.

    Args:
        message: One line of text, which is also the key of "again".
    """
    if message not in _said:
        _said.add(message)
        _logger.warning(message)
