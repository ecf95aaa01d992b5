"""Logging: one line for each event, with its fields, as text for people or JSON for programs.

What arrives in a field may come from a client, so nothing in it can end a line, colour a terminal or look like
another field.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Mapping
from typing import Any, Literal, TextIO

from .lifeline import supervised_name
from .settings import LoggingSettings

_COLOURS = {"DEBUG": "2", "WARNING": "33", "ERROR": "31", "CRITICAL": "31"}


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


def setup(settings: LoggingSettings, process: str, stream: TextIO | None = None) -> None:
    """Send every InferFlux log line, and other libraries' warnings, to stderr, marked with the process they are from.

    A supervisor's name for the process (`worker-2`) wins over `process`.
    """
    stream = stream or sys.stderr
    process = supervised_name(os.environ) or process
    handler = logging.StreamHandler(stream)
    if resolve_format(settings.format, stream) == "json":
        handler.setFormatter(JsonFormatter(process))
    else:
        handler.setFormatter(TextFormatter(process, coloured=wants_colour(stream, os.environ)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("inferflux").setLevel(settings.level.upper())
    logging.captureWarnings(True)


def resolve_format(chosen: Literal["auto", "text", "json"], stream: TextIO) -> Literal["text", "json"]:
    """`auto` is text where a person reads (a terminal) and JSON where a program does."""
    if chosen == "auto":
        return "text" if stream.isatty() else "json"
    return chosen


def wants_colour(stream: TextIO, environ: Mapping[str, str]) -> bool:
    """By the conventions NO_COLOR and FORCE_COLOR, else on a terminal."""
    if environ.get("NO_COLOR"):
        return False
    return bool(environ.get("FORCE_COLOR")) or (stream.isatty() and environ.get("TERM") != "dumb")


def process_colour(process: str) -> str:
    """One terminal colour for each kind of process."""
    return {"api": "36", "worker": "35", "serve": "32"}.get(process.partition("-")[0], "34")


def escape(text: str) -> str:
    """The text with every character that could end a line or steer a terminal spelled out."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _spell(char) for char in text)


class TextFormatter(logging.Formatter):
    """`HH:MM:SS.mmm api  event  key=value key="two words"`, with a traceback indented below."""

    def __init__(self, process: str, *, coloured: bool) -> None:
        super().__init__()
        self._process = process
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        parts = [self._paint(f"{clock}.{int(record.msecs):03d}", "2")]
        parts.append(self._paint(f"{self._process:<8}", process_colour(self._process)))
        if record.levelno != logging.INFO:
            parts.append(self._paint(record.levelname.lower(), _COLOURS.get(record.levelname, "0")))
        parts.append(self._paint(escape(record.getMessage()), "1"))
        parts += (f"{self._paint(key + '=', '2')}{_quote(value)}" for key, value in _fields(record).items())
        lines = [" ".join(parts)]
        if record.exc_info and record.exc_info[1]:
            lines += (f"    {escape(line)}" for line in _traceback(record.exc_info[1]).split("\n"))
        return "\n".join(lines)

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured else text


class JsonFormatter(logging.Formatter):
    """One ASCII object a line: ts, level, process, logger, event, fields, and error with the traceback."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": self._process,
            "logger": record.name,
            "event": record.getMessage(),
            "fields": {key: _plain(value) for key, value in _fields(record).items()},
        }
        if record.exc_info and record.exc_info[1]:
            line["error"] = _traceback(record.exc_info[1])
        return json.dumps(line, default=str)


def _fields(record: logging.LogRecord) -> Mapping[str, Any]:
    # Lines of other libraries have no fields; their logger's name says where they are from.
    own: Mapping[str, Any] | None = getattr(record, "fields", None)
    return {"logger": record.name} if own is None else own


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)).rstrip("\n")


def _quote(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if text and text.isprintable() and not any(char in ' "=\\' for char in text):
        return text
    return '"' + "".join("\\" + char if char in '"\\' else escape(char) for char in text) + '"'


def _plain(value: Any) -> Any:
    # JSON has no NaN and no infinity.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | bool | list | dict | None) else str(value)


def _spell(char: str) -> str:
    short = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(char)
    return short or (f"\\x{ord(char):02x}" if ord(char) < 256 else f"\\u{ord(char):04x}")
