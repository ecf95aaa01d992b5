"""`inferctl admin guardrails` against a scripted server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.http import Answer, Asked

PATH = "/v1/admin/guardrails"
IN_FORCE = {
    "revision": 7,
    "active": [
        {"name": "pii", "kind": "detectors", "action": "redact", "stage": "both", "num_terms": 0},
        {"name": "classified", "kind": "terms", "action": "block", "stage": "both", "num_terms": 2},
    ],
    "sets": {
        "pii": {"action": "redact"},
        "classified": {"terms": ["orchid", "top secret"]},
        "idle": {"terms": ["x"], "stage": "input"},
    },
    "changed": True,
    "opa_endpoint": None,
    "dry_run": False,
}
TRIAL = {
    "input": {"blocked": True, "found": [{"guardrail": "classified", "action": "block"}], "text": None},
    "output": {"blocked": False, "found": [], "text": "an orchid"},
}


class Script:
    """What it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []

    def __call__(self, asked: Asked) -> Answer:
        self.calls.append((asked.method, asked.path, asked.json if asked.body else None))
        return Answer(body=TRIAL if asked.path.endswith("/test") else IN_FORCE)

    @property
    def change(self) -> Any:
        method, path, body = self.calls[-1]
        assert (method, path) == ("PUT", PATH)
        return body


@pytest.fixture
def script(http_server: Any, monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    monkeypatch.setenv("INFERCTL_URL", http_server(made).url)
    return made


@pytest.mark.parametrize("arguments", [[], ["--get"]])
def test_what_is_in_force_is_shown(inferctl: Any, script: Script, arguments: list[str]) -> None:
    shown = inferctl("admin", "guardrails", *arguments).out
    assert script.calls == [("GET", PATH, None)]
    assert all(word in shown for word in ("pii", "redact", "classified", "2", "idle", "changed while running"))
    assert json.loads(inferctl("admin", "guardrails", "--json").out) == IN_FORCE


def test_the_guides_command(inferctl: Any, script: Script) -> None:
    assert inferctl("admin", "guardrails", "--set", "pii,classified").status == 0
    assert script.change == {"active": ["pii", "classified"]}


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["--set", ""], {"active": []}),
        (["--add", "project bluebird, x"], {"add": ["project bluebird", "x"]}),
        (["--remove", "x"], {"remove": ["x"]}),
        (["--reset"], {"active": None}),
        (["--action", "pii=flag"], {"sets": {"pii": {"action": "flag"}}}),
        (["--stage", "idle=output"], {"sets": {"idle": {"terms": ["x"], "stage": "output"}}}),
        (["--define", "plants=fern,moss"], {"sets": {"plants": {"terms": ["fern", "moss"]}}}),
        (["--drop", "idle"], {"sets": {"idle": None}}),
    ],
)
def test_changes_say_only_what_changes(inferctl: Any, script: Script, arguments: list[str], body: Any) -> None:
    assert inferctl("admin", "guardrails", *arguments).status == 0
    assert script.change == body


def test_terms_come_from_a_file(inferctl: Any, script: Script, tmp_path: Path) -> None:
    (tmp_path / "terms.txt").write_text("top secret\n\n機密 \n", encoding="utf-8")
    assert inferctl("admin", "guardrails", "--define", f"classified=@{tmp_path / 'terms.txt'}").status == 0
    assert script.change == {"sets": {"classified": {"terms": ["top secret", "機密"]}}}
    gone = inferctl("admin", "guardrails", "--define", "x=@/nowhere/terms.txt")
    assert gone.status == 1
    assert "cannot be read" in gone.err


def test_a_dry_run_is_told(inferctl: Any, script: Script) -> None:
    result = inferctl("admin", "guardrails", "--set", "pii", "--dry-run")
    assert script.calls[-1][1] == f"{PATH}?dry_run=true"
    assert "nothing was changed" in result.err


def test_a_text_is_tried(inferctl: Any, script: Script) -> None:
    shown = inferctl("admin", "guardrails", "--test", "an orchid").out
    assert script.calls == [("POST", f"{PATH}/test", {"text": "an orchid"})]
    assert all(word in shown for word in ("blocked", "classified (block)", "passes"))
    assert json.loads(inferctl("admin", "guardrails", "--test", "x", "--json").out) == TRIAL


@pytest.mark.parametrize(
    "arguments",
    [
        ["--get", "--set", "pii"],
        ["--test", "x", "--add", "y"],
        ["--reset", "--set", "pii"],
        ["--action", "pii=burn"],
        ["--stage", "pii"],
        ["--define", "=x"],
    ],
)
def test_unclear_wishes_are_refused(inferctl: Any, script: Script, arguments: list[str]) -> None:
    assert inferctl("admin", "guardrails", *arguments).status == 2
