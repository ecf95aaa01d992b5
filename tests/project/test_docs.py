"""The documents say what the code does: settings, error codes, metrics, libraries and commands are in both."""

from __future__ import annotations

import re

import pytest
import typer
from harness.checkout import ROOT, pyproject, text
from prometheus_client import CollectorRegistry

from inferflux.broker.errors import HTTP_ERRORS, Code
from inferflux.broker.wire.requests import ChatPrompt, Claim, CompletionPrompt, EmbeddingPrompt, Frame
from inferflux.cli.main import app
from inferflux.config.knobs import KNOBS
from inferflux.config.metrics import ApiMetrics, FleetMetrics, PolicyMetrics, WorkerMetrics

DOCUMENTS = ["README.md", "CHANGELOG.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def rows(document: str) -> dict[str, list[str]]:
    """Table rows whose first cell is one code span, by that span: the other cells."""
    found = {}
    for line in text(document).splitlines():
        match = re.match(r"\| `([^`]+)` \| (.*) \|$", line)
        if match:
            found[match[1]] = [cell.strip() for cell in match[2].split(" | ")]
    return found


def shown(default: object) -> str:
    if default is None or default == ():
        return "(empty)"
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return f"`{default}`"


def test_every_setting_is_explained_with_its_default() -> None:
    table = rows("docs/AdminGuide.md")
    documented = {path: table[path][0] for path in KNOBS if path in table and table[path][1]}
    assert documented == {path: shown(knob.default) for path, knob in KNOBS.items()}


def test_no_setting_is_made_up() -> None:
    sections = {path.split(".")[0] for path in KNOBS}
    known = set(KNOBS) | {path.rpartition(".")[0] for path in KNOBS} | {"server.yaml", "registry.yaml"}
    for document in DOCUMENTS:
        spans = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", text(document))
        named = {span for span in spans if span.split(".")[0] in sections}
        assert named <= known, document


def test_every_error_code_is_explained_with_its_status() -> None:
    table = rows("docs/protocol.md")
    documented = {code: table[code][0] for code in Code if code in table and all(table[code])}
    assert documented == {code: str(HTTP_ERRORS[code].status) for code in Code}


def test_every_field_of_the_wire_is_explained() -> None:
    spans = set(re.findall(r"`([a-z_]+)`", text("docs/protocol.md")))
    spans |= set(re.findall(r'"([a-z_]+)"', text("docs/protocol.md")))
    for message in (ChatPrompt, CompletionPrompt, EmbeddingPrompt, Frame, Claim):
        missing = set(message.__struct_fields__) - spans
        assert not missing, message.__name__


def test_every_metric_is_explained() -> None:
    names = set()
    for kind in (ApiMetrics, FleetMetrics, WorkerMetrics, PolicyMetrics):
        kind(registry := CollectorRegistry())
        names |= {f"{each.name}_total" if each.type == "counter" else each.name for each in registry.collect()}
    assert names == {name for name in rows("docs/AdminGuide.md") if name.startswith("inferflux_")}


def test_every_library_has_its_reason() -> None:
    project = pyproject()["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["llamacpp"], *extras["dev"]]
    names = {re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower() for requirement in wanted}
    section = text("docs/architecture.md").partition("## Third-party libraries")[2].partition("\n## ")[0]
    listed = {
        name.strip().lower() for row in re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE) for name in row.split(",")
    }
    assert names <= listed


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    folder = (ROOT / document).parent
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text(document)):
        path, _, anchor = target.partition("#")
        file = folder / path if path else ROOT / document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^a-z0-9 -]", "", each.lower()).replace(" ", "-") for each in headings}, target


def test_documented_scripts_can_be_run() -> None:
    for document in DOCUMENTS:
        for script in re.findall(r"(scripts/\w+\.sh)", text(document)):
            assert (ROOT / script).stat().st_mode & 0o100, f"{document}: {script}"


def command(words: str) -> tuple[str, set[str]]:
    """The command that these words begin with, down to its last subcommand, and its options."""
    group, path = typer.main.get_command(app), list[str]()
    for word in words.split():
        below = getattr(group, "commands", {}).get(word)
        if below is None:
            break
        group = below
        path.append(word)
    assert path, f"inferctl {words} is no command"
    return " ".join(path), {"--help", *(option for parameter in group.params for option in parameter.opts)}


def test_documented_commands_and_options_exist() -> None:
    called = set()
    for document in DOCUMENTS:
        for words, rest in re.findall(r"\binferctl ([a-z][a-z-]*(?: [a-z][a-z-]*)*)([^`\n|]*)", text(document)):
            name, options = command(words)
            called.add(name)
            missing = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", rest)) - options
            assert not missing, f"{document}: inferctl {name} has no {missing}"
    assert {"serve", "completion", "chat", "models", "status", "doctor", "pull", "config"} <= called
    assert {"fleet", "top", "queue", "queue cancel", "queue dead retry", "admin fairness"} <= called


def test_the_changelog_has_a_place_for_the_next_entry() -> None:
    headings = re.findall(r"^## \[(.+?)\]", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert len(headings) == len(set(headings))


def test_every_proof_is_one_that_exists_and_every_chaos_test_is_listed() -> None:
    named = set(re.findall(r"`(\w+\.py)::(\w+)`", text("docs/reliability.md")))
    defined = {
        (path.name, name)
        for folder in ("chaos", "e2e")
        for path in (ROOT / "tests" / folder).glob("*.py")
        for name in re.findall(r"^(?:async )?def (\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named <= defined, named - defined
    chaos = {
        (path.name, name)
        for path in (ROOT / "tests" / "chaos").glob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        if path.name != "test_scenarios.py"
    }
    assert chaos <= named, chaos - named
