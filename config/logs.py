"""Logging: one line for each event, with its fields, as text for people or JSON for programs."""

from __future__ import annotations

import logging
from typing import Any

from .settings import LoggingSettings


class Log:
    """A named logger whose calls take an event and its fields: `log.info("claimed", request=id, attempt=3)`."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"inferflux.{name}")

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, *, error: BaseException | None = None, **fields: Any) -> None:
        """`error` adds the traceback."""
        self._write(logging.ERROR, event, fields, error)

    def _write(self, level: int, event: str, fields: dict[str, Any], error: BaseException | None = None) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, event, extra={"fields": fields}, exc_info=error)


def get_logger(name: str) -> Log:
    """The logger `inferflux.<name>`."""
    return Log(name)


def setup(settings: LoggingSettings, process: str) -> None:
    """Send every InferFlux log line to stderr, marked with the process it came from."""
    raise NotImplementedError
