"""docs/asyncapi.yaml is what the code says, and hangs together."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import yaml
from harness.checkout import ROOT, text

from inferflux.broker import subjects


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("asyncapi_generator", ROOT / "scripts" / "asyncapi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def document() -> Any:
    return yaml.safe_load(text("docs/asyncapi.yaml"))


def test_it_is_up_to_date(generator: ModuleType) -> None:
    assert text("docs/asyncapi.yaml") == generator.render(), "run python scripts/asyncapi.py"


def test_every_message_of_the_wire_is_there(generator: ModuleType, document: Any) -> None:
    known, messages = generator.structs(), set(document["components"]["messages"])
    assert set(known) <= messages
    modules = {path.stem for path in (ROOT / "broker" / "wire").glob("*.py")} - {"__init__", "base"}
    assert {each.__module__.rpartition(".")[2] for each in known.values()} == modules, "a module is left out"
    assert {"CompletionPrompt", "ChatPrompt", "EmbeddingPrompt", "Frame", "Claim"} <= messages


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$ref":
                yield value
            else:
                yield from references(value)
    elif isinstance(node, list):
        for each in node:
            yield from references(each)


def test_every_reference_leads_somewhere(document: Any) -> None:
    found = set(references(document))
    assert found
    for reference in found:
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_every_parameter_is_explained(document: Any) -> None:
    for channel in document["channels"].values():
        assert set(re.findall(r"{(\w+)}", channel["address"])) == set(channel.get("parameters", {}))


def test_every_bucket_that_carries_messages_is_there(document: Any) -> None:
    addresses = " ".join(channel["address"] for channel in document["channels"].values())
    internal = {subjects.BUCKET_IDEMPOTENCY, subjects.BUCKET_PRESENCE, subjects.BUCKET_AUDIT}
    for bucket in set(subjects.BUCKETS) - internal:
        assert subjects.kv(bucket, "").removesuffix(".") in addresses, bucket
