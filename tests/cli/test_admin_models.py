"""`inferctl admin models`, `routing`, `scheduler`, `cache` and `workers` against a scripted server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from harness.http import Answer, Asked

PATH = "/v1/admin/models"
CACHE = {
    "workers": [
        {
            "worker": "w-1",
            "model": "a",
            "num_pages": 9,
            "num_pages_used": 2,
            "num_pages_cached": 3,
            "prefix_queries": 70,
            "prefix_hits": 40,
            "warm": ["x"],
        }
    ],
    "warm": [{"id": "x", "model": "a", "tenant": "acme", "num_chars": 5, "at": 0.0, "num_workers": 1}],
    "dry_run": False,
}
ROUTING = {"model": "a", "aliases": ["b", "c"], "hardware": "gpu", "default": True, "changed": ["aliases"]}
BOUNDS = {"max_batch_size": 8, "max_batch_tokens": 512, "chunked_prefill_tokens": 256}


def worker(**fields: Any) -> dict[str, Any]:
    state = {"worker": "w-1", "state": "ready", "reason": None, "progress": 1.0, "current": True, "backend": "stub"}
    return state | fields


def model(name: str, *workers: dict[str, Any], **fields: Any) -> dict[str, Any]:
    about = {"id": name, "owner": "file", "state": "ready", "path": None, "backend": "llamacpp", "default": False}
    return about | {"aliases": [], "stub_reason": None, "workers": list(workers)} | fields


def registry(*models: dict[str, Any], **file: Any) -> dict[str, Any]:
    report = {"path": "registry.yaml", "applied": True, "error": None, "conflict": None} | file
    return {"object": "list", "data": list(models), "default": None, "file": report, "dry_run": False}


class Script:
    """What the server says of its models, one answer after the other, and what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, Any]] = []
        self.registries = [registry(model("a", worker()))]

    def __call__(self, asked: Asked) -> Answer:
        self.calls.append((asked.method, asked.path, asked.json if asked.body else None))
        path = asked.path.partition("?")[0]
        if path == "/v1/admin/routing":
            return Answer(body={"data": [ROUTING]})
        if path == "/v1/admin/scheduler":
            return Answer(body={"data": [{"model": "a", **BOUNDS, "changed": []}]})
        if path.startswith("/v1/admin/cache"):
            return Answer(body=CACHE)
        if path == "/v1/admin/workers":
            return Answer(body={"data": []})
        return Answer(body=self.registries[0] if len(self.registries) == 1 else self.registries.pop(0))


@pytest.fixture
def script(http_server: Any, monkeypatch: pytest.MonkeyPatch) -> Script:
    made = Script()
    monkeypatch.setenv("INFERCTL_URL", http_server(made).url)
    return made


@pytest.mark.parametrize("arguments", [[], ["--list"]])
def test_models_are_listed_with_their_state(inferctl: Any, script: Script, arguments: list[str]) -> None:
    script.registries = [
        registry(
            model("a", worker(), worker(state="loading", progress=0.4), default=True, aliases=["b"]),
            model("[red]b", worker(state="failed", reason="no room"), owner="admin", state="failed"),
            model("old", worker(state="unloading"), owner=None, state="unloading"),
            error="registry.yaml: models[0].pth: is not known",
        )
    ]
    done = inferctl("admin", "models", *arguments)
    first, second, third = done.out.splitlines()[1:]

    assert first.split() == ["a", "ready,", "loading", "40", "%", "1/2", "stub", "yes", "b", "registry", "file"]
    assert second.startswith("[red]b")
    assert "failed; on w-1: no room" in second
    assert "operators" in second
    assert "nobody any more" in third
    assert "refused: registry.yaml: models[0].pth" in done.err
    assert json.loads(inferctl("admin", "models", "--json").out) == script.registries[0]


def test_a_model_is_loaded_as_the_guides_say(
    inferctl: Any, script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inferctl("admin", "models", "--load", "path.gguf", "--id", "llama3", "--default")
    ((method, path, body),) = script.calls
    assert (method, path) == ("POST", PATH)
    assert (body["id"], body["path"], body["default"], body["backend"]) == ("llama3", "path.gguf", True, "auto")

    # A file that is here is meant where the server is here too.
    (tmp_path / "path.gguf").touch()
    inferctl(
        "admin", "models", "--load", "path.gguf", "--id", "llama3", "--alias", "x", "--hardware", "gpu", "--dry-run"
    )
    method, path, body = script.calls[-1]
    assert path == f"{PATH}?dry_run=true"
    assert body["path"] == str(tmp_path / "path.gguf")
    assert (body["aliases"], body["hardware"]) == (["x"], "gpu")


def test_models_are_unloaded_reloaded_and_made_the_default(inferctl: Any, script: Script) -> None:
    inferctl("admin", "models", "--unload", "org/a b")
    inferctl("admin", "models", "--reload", "a", "--dry-run")
    inferctl("admin", "models", "--set-default", "a")
    inferctl("admin", "models", "--set-default", "default")
    assert [call for call in script.calls if call[0] != "GET"] == [
        ("DELETE", f"{PATH}/org/a%20b", None),
        ("POST", f"{PATH}/reload?dry_run=true", {"id": "a"}),
        ("PUT", f"{PATH}/default", {"id": "a"}),
        ("PUT", f"{PATH}/default", {"id": None}),
    ]


def test_waiting_ends_when_every_worker_has_followed(inferctl: Any, script: Script) -> None:
    loading = registry(model("a", worker(state="loading", current=False)))
    script.registries = [loading, loading, registry(model("a", worker()))]
    done = inferctl("admin", "models", "--reload", "a", "--wait", "20")
    assert (done.status, len(script.calls)) == (0, 3)


def test_waiting_fails_for_what_failed_and_for_what_takes_too_long(inferctl: Any, script: Script) -> None:
    script.registries = [registry(model("a", worker(state="failed", reason="no room")))]
    done = inferctl("admin", "models", "--reload", "a", "--wait", "20")
    assert done.status == 1
    assert "no room" in done.err
    script.registries = [registry(model("a"))]
    done = inferctl("admin", "models", "--reload", "a", "--wait", "0.1")
    assert done.status == 1
    assert "not in 0.1 s" in done.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["models", "--load", "x"],
        ["models", "--id", "x"],
        ["models", "--list", "--unload", "x"],
        ["routing", "--model", "a"],
        ["routing", "--alias", "x"],
        ["scheduler", "--model", "a", "--set", "speed=1"],
        ["scheduler", "--model", "a", "--set", "max_batch_size=many"],
        ["cache", "--clear", "--warm", "x"],
    ],
)
def test_wrong_usage_asks_the_server_nothing(inferctl: Any, script: Script, arguments: list[str]) -> None:
    assert inferctl("admin", *arguments).status == 2
    assert script.calls == []


def test_names_and_bounds_are_shown_and_changed(inferctl: Any, script: Script) -> None:
    assert inferctl("admin", "routing").out.splitlines()[1].split() == ["a", "b,", "c", "gpu", "yes", "aliases"]
    inferctl("admin", "routing", "--model", "a", "--alias", "x", "--alias", "y", "--hardware", "default", "--dry-run")
    inferctl("admin", "routing", "--model", "a", "--no-aliases")
    assert inferctl("admin", "scheduler").out.splitlines()[1].split() == ["a", "8", "512", "256"]
    inferctl("admin", "scheduler", "--model", "a", "--set", "max_batch_size=4", "--set", "max_batch_tokens=default")
    assert [call for call in script.calls if call[0] == "PUT"] == [
        ("PUT", "/v1/admin/routing?dry_run=true", {"model": "a", "aliases": ["x", "y"], "hardware": None}),
        ("PUT", "/v1/admin/routing", {"model": "a", "aliases": []}),
        ("PUT", "/v1/admin/scheduler", {"model": "a", "max_batch_size": 4, "max_batch_tokens": None}),
    ]


def test_caches_are_shown_cleared_and_filled(inferctl: Any, script: Script) -> None:
    shown = inferctl("admin", "cache").out
    assert shown.splitlines()[1].split() == ["w-1", "a", "9", "2", "3", "70", "40", "1"]
    assert "5 characters for a and tenant acme, computed by 1 workers" in shown
    inferctl("admin", "cache", "--clear", "--model", "a/b", "--dry-run")
    inferctl("admin", "cache", "--warm", "Once upon", "--model", "a", "--tenant", "acme")
    inferctl("admin", "cache", "--warm-system", "Be brief.")
    messages = [{"role": "system", "content": "Be brief."}]
    assert script.calls[1:] == [
        ("DELETE", "/v1/admin/cache?model=a%2Fb&dry_run=true", None),
        ("POST", "/v1/admin/cache/warm", {"model": "a", "tenant": "acme", "prompt": "Once upon"}),
        ("POST", "/v1/admin/cache/warm", {"model": None, "tenant": None, "messages": messages}),
    ]


def test_workers_are_shown(inferctl: Any, script: Script) -> None:
    assert inferctl("admin", "workers").status == 0
    assert script.calls == [("GET", "/v1/admin/workers", None)]
