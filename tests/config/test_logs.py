from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys

import pytest

from inferflux.config.lifeline import SUPERVISED
from inferflux.config.logs import escape, get_logger, resolve_format, setup, wants_colour
from inferflux.config.settings import LoggingSettings

HOSTILE = "a\nb\r\t\x1b[31mred\x9b31m\u2028next\u202eback \x00\x7f"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored(monkeypatch):
    for name in (SUPERVISED, "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    logging.getLogger("inferflux").setLevel(logging.NOTSET)
    logging.captureWarnings(False)


def lines(settings: LoggingSettings, stream: io.StringIO | None = None) -> io.StringIO:
    stream = stream or io.StringIO()
    setup(settings, "api", stream)
    return stream


def test_text_is_one_line_with_time_process_event_and_fields():
    out = lines(LoggingSettings(format="text"))
    get_logger("api").info("claimed", request="r-1", attempt=3, seconds=0.12345678, note="two words", none=None)
    assert re.fullmatch(
        r'\d\d:\d\d:\d\d\.\d{3} api      claimed request=r-1 attempt=3 seconds=0\.123457 note="two words" none=None\n',
        out.getvalue(),
    )


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_in_a_field_ends_a_line_or_steers_a_terminal(form):
    out = lines(LoggingSettings(format=form))
    log = get_logger("api")
    log.info(HOSTILE, value=HOSTILE, forged='x level=error "quoted"', listed=[HOSTILE])
    log.info("second")
    assert out.getvalue().count("\n") == 2
    assert out.getvalue().isascii() or form == "text"
    assert all(char.isprintable() or char == "\n" for char in out.getvalue()) or form == "json"
    assert not set(out.getvalue()) & set("\x1b\x9b\u2028\u202e\r\x00")


def test_a_value_cannot_forge_a_field():
    out = lines(LoggingSettings(format="text"))
    get_logger("api").info("got", value='x" level=error y="')
    assert out.getvalue().endswith('value="x\\" level=error y=\\""\n')


def test_json_is_one_object_with_the_agreed_keys():
    out = lines(LoggingSettings(format="json"))
    get_logger("api").warning("slow", seconds=float("nan"), request="r", ok=True, path=re)
    line = json.loads(out.getvalue())
    assert {key: line[key] for key in ("level", "process", "logger", "event")} == {
        "level": "warning",
        "process": "api",
        "logger": "inferflux.api",
        "event": "slow",
    }
    assert line["fields"]["seconds"] == "nan"
    assert line["fields"]["ok"] is True
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["ts"])


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_brings_its_traceback_and_cannot_forge_a_line(form):
    out = lines(LoggingSettings(format=form))
    try:
        raise ValueError("bad\n12:00:00.000 api forged")
    except ValueError as error:
        get_logger("api").error("failed", error=error)
    if form == "json":
        assert "ValueError" in json.loads(out.getvalue())["error"]
    else:
        first, *rest = out.getvalue().splitlines()
        assert "failed" in first
        assert all(line.startswith("    ") for line in rest)


def test_level_hides_what_is_below_it_and_other_libraries_speak_from_warning_on():
    out = lines(LoggingSettings(format="text", level="error"))
    get_logger("api").warning("unseen")
    logging.getLogger("library").info("unseen")
    logging.getLogger("library").warning("seen %s", "once")
    assert "unseen" not in out.getvalue()
    assert "seen once logger=library" in out.getvalue()


def test_auto_is_text_on_a_terminal_and_json_elsewhere():
    assert resolve_format("auto", Terminal()) == "text"
    assert resolve_format("auto", io.StringIO()) == "json"
    assert resolve_format("text", io.StringIO()) == "text"


def test_colour_follows_the_conventions():
    assert wants_colour(Terminal(), {})
    assert not wants_colour(Terminal(), {"NO_COLOR": "1"})
    assert not wants_colour(Terminal(), {"TERM": "dumb"})
    assert not wants_colour(io.StringIO(), {})
    assert wants_colour(io.StringIO(), {"FORCE_COLOR": "1"})


def test_a_supervisors_name_for_the_process_wins(monkeypatch):
    monkeypatch.setenv(SUPERVISED, "api-2")
    out = lines(LoggingSettings(format="json"))
    get_logger("api").info("hello")
    assert json.loads(out.getvalue())["process"] == "api-2"


def test_escape_leaves_readable_text_alone():
    assert escape("Grüße, 世界 ✓") == "Grüße, 世界 ✓"
    assert escape("\x1b\n\u202e") == "\\x1b\\n\\u202e"


def test_nothing_is_set_up_by_importing():
    code = "import logging; import inferflux.config.logs; assert not logging.getLogger().handlers"
    subprocess.run([sys.executable, "-c", code], check=True)
