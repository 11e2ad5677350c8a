"""Where the connector's log lines go: to dlt's handlers, at dlt's level and in dlt's format.

The rooms below write to Python's logger `posthog_source`, and know nothing of dlt. A program that sets up
logging itself, as Airflow does, gets their lines by its own handlers instead. Not here: what is said, and
when.
"""

from __future__ import annotations

import logging

from dlt.common import logger as dlt_logger

OURS = logging.getLogger("posthog_source")


class _ToDlt(logging.Handler):
    """Hands lines on to dlt's handlers, where nobody else takes them.

    Past dlt's logger itself: Sentry, which listens to loggers, would see each line twice.

    Attributes:
        given_level: That our logger got from dlt.
    """

    given_level = logging.NOTSET

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        theirs = dlt_logger.LOGGER
        others = [
            handler for handler in (*OURS.handlers, *logging.getLogger().handlers) if handler is not self
        ]
        if others or not theirs or not theirs.isEnabledFor(record.levelno):
            return
        for handler in theirs.handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


_TO_DLT = _ToDlt()


def join_dlt() -> None:
    """From now on `[runtime] log_level` and `log_format` hold for the connector, too.

    A level that somebody has given to the logger `posthog_source` stays, and a lower one of the root counts.
    """
    OURS.addHandler(_TO_DLT)  # adding it again changes nothing
    if OURS.level == _TO_DLT.given_level and dlt_logger.LOGGER:
        _TO_DLT.given_level = min(dlt_logger.LOGGER.level, logging.getLogger().level)
        OURS.setLevel(_TO_DLT.given_level)
