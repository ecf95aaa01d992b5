"""Write docs/asyncapi.yaml: every subject and every message that crosses NATS, from `broker/subjects.py` and
`broker/wire`.

    python scripts/asyncapi.py            # writes it
    python scripts/asyncapi.py --check    # fails where it is not what the code says
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from pathlib import Path
from typing import Any

import msgspec
import yaml

from inferflux.broker import subjects
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass
from inferflux.broker.wire import batches, fleet, policies, requests
from inferflux.broker.wire.base import Wire
from inferflux.config.version import package_version

PATH = Path(__file__).resolve().parents[1] / "docs" / "asyncapi.yaml"
PARAMETERS = {
    "model": "Model id, as a subject token.",
    "class": "Service class.",
    "tenant": "Tenant, as a subject token.",
    "owner": "`t-TENANT` for what a tenant published itself, `a-REPLICA` for what came through an API replica.",
    "request": "Request id, as a subject token.",
    "id": "Id of a batch, as a subject token.",
    "file": "Id of a file, as a subject token.",
    "number": "Number of the chunk, from 0.",
    "name": "The object's name in URL-safe base64.",
    "key": "Key of the entry.",
    "epoch": "A run of a worker process, as its gossip names it.",
    "parts": "What is counted, whose, and when.",
}
LANE = Lane("{model}", ServiceClass.DEFAULT, "{tenant}")
KEY = RequestKey("{owner}", "{request}")
EMPTY, BINARY, COUNTER = "Empty", "Chunk", "Counter"


class Channel(msgspec.Struct, frozen=True):
    """One subject: what comes there, who sends it and who reads it."""

    address: str
    summary: str
    messages: tuple[str, ...]
    senders: tuple[str, ...]
    readers: tuple[str, ...]


def plain(subject: str) -> str:
    """A subject made of placeholders, which were encoded like any other text."""
    return re.sub(r"=7B(\w+)=7D", r"{\1}", subject)


def entry(bucket: str, key: str) -> str:
    return plain(subjects.kv(bucket, key))


def channels() -> dict[str, Channel]:
    """Every subject by a name for it."""
    api, worker, tenant, server = "api", "worker", "publisher", "server"
    prompts = ("ChatPrompt", "CompletionPrompt", "EmbeddingPrompt")
    lane = plain(subjects.infer(LANE)).replace(ServiceClass.DEFAULT, "{class}")
    chunk = plain(subjects.object_chunk(subjects.OBJECTS_FILES, subjects.object_name("{tenant}", "{file}"), 0))
    found = {
        "prompt": Channel(lane, "A prompt, kept until it is answered.", prompts, (api, tenant), (worker,)),
        "bell": Channel(
            lane.replace(".infer.", ".bell."), "A prompt was stored; headers only.", (EMPTY,), (server,), (worker,)
        ),
        "claim": Channel(
            plain(subjects.claim(KEY)), "Who works on a request.", ("Claim",), (worker, api), (worker, api)
        ),
        "frame": Channel(plain(subjects.frame(KEY)), "What was generated.", ("Frame",), (worker, api), (worker, api)),
        "head": Channel(
            plain(subjects.head(KEY)), "What other replicas need to answer a request.", ("Head",), (api,), (api,)
        ),
        "reply": Channel(
            plain(subjects.reply(KEY)), "Frames as they are stored.", ("Frame",), (server,), (api, tenant)
        ),
        "cancel": Channel(plain(subjects.cancel(KEY)), "Please stop.", (EMPTY,), (api, tenant), (worker,)),
        "gossip": Channel(
            plain(subjects.fair("{model}")), "What each worker has served.", ("Gossip",), (worker,), (worker,)
        ),
        "forward": Channel(
            plain(subjects.forward("{model}", "{epoch}")),
            "A prompt that one worker has pulled and another suits better; the answer is `taken` or `refused`.",
            ("Forward",),
            (worker,),
            (worker,),
        ),
        "chunk": Channel(
            chunk.removesuffix(".0") + ".{number}",
            "A piece of a file: what a batch reads or writes.",
            (BINARY,),
            (api, tenant),
            (api, tenant),
        ),
        "file": Channel(
            subjects.object_subjects(subjects.OBJECTS_FILES)[1].replace(">", "{name}"),
            "What describes a file that is complete.",
            ("ObjectInfo",),
            (api,),
            (api,),
        ),
        "batch": Channel(
            entry(subjects.BUCKET_BATCHES, subjects.batch_key("{tenant}", "{id}")),
            "A batch and how far it is.",
            ("Batch",),
            (api,),
            (api, tenant),
        ),
        "submission": Channel(
            entry(subjects.BUCKET_BATCHES, subjects.submission_key("{tenant}", "{id}")),
            "A batch that a tenant wants run.",
            ("BatchSubmission",),
            (tenant,),
            (api,),
        ),
        "journal": Channel(
            subjects.object_chunk(subjects.OBJECTS_FILES, subjects.journal_name("{id}"), 0).removesuffix("0")
            + "{number}",
            "Answered lines of a batch, one a line.",
            ("BatchEntry",),
            (api,),
            (api,),
        ),
        "heartbeat": Channel(
            entry(subjects.BUCKET_WORKERS, "{key}"),
            "A worker and its models.",
            ("WorkerBeat",),
            (worker,),
            (api, worker),
        ),
        "dead_letter": Channel(
            entry(subjects.BUCKET_DEADLETTERS, "{key}"),
            "A request that was given up.",
            ("DeadLetter",),
            (worker, api),
            (api,),
        ),
        "policy": Channel(
            entry(subjects.BUCKET_POLICY, "{key}"),
            "What operators changed while the fleet runs.",
            documents("ModelRegistry", "ApiKey", "TenantRecord"),
            (api,),
            (api, worker),
        ),
        "models": Channel(
            entry(subjects.BUCKET_REGISTRY, subjects.KEY_MODELS),
            "All models.",
            ("ModelRegistry",),
            (api,),
            (api, worker),
        ),
        "tenants": Channel(
            entry(subjects.BUCKET_TENANTS, "{key}"),
            "Tenants and keys that the admin API made.",
            ("TenantRecord", "ApiKey"),
            (api,),
            (api, worker),
        ),
    }
    for series in subjects.Series:
        address = f"{subjects.ROOT}.{series.value}.{{parts}}"
        found[f"{series.value}_counter"] = Channel(
            address, "A JetStream counter.", (COUNTER,), (api, worker), (api, worker)
        )
    return found


def documents(*others: str) -> tuple[str, ...]:
    """Documents of the control plane: entries that are strict and no part of another, but for these."""
    known = structs()
    parts = {word for each in known.values() for word in re.findall(r"\w+", str(inspect.get_annotations(each)))}
    strict = (name for name, each in known.items() if each.__struct_config__.forbid_unknown_fields)
    return tuple(name for name in strict if name not in parts and name not in others)


def structs() -> dict[str, type[Wire]]:
    """Every message that there is."""
    return {
        name: each
        for module in (requests, fleet, policies, batches)
        for name, each in vars(module).items()
        if inspect.isclass(each)
        and issubclass(each, Wire)
        and each.__module__ == module.__name__
        and not name.startswith("_")
        and each not in (requests.Prompt, requests.Generation)
    }


def document() -> dict[str, Any]:
    """The AsyncAPI 3 document."""
    known = structs()
    schemas, components = msgspec.json.schema_components(known.values(), ref_template="#/components/schemas/{name}")
    messages: dict[str, Any] = {
        name: {
            "name": name,
            "contentType": "application/json",
            "summary": (inspect.getdoc(known[name]) or name).partition("\n\n")[0].replace("\n", " "),
            "payload": schema,
        }
        for name, schema in zip(known, schemas, strict=True)
    }
    messages |= {
        EMPTY: {"name": EMPTY, "summary": "No body.", "payload": {"type": "null"}},
        BINARY: {
            "name": BINARY,
            "contentType": "application/octet-stream",
            "summary": "Bytes of a file.",
            "payload": {"type": "string", "format": "binary"},
        },
        COUNTER: {
            "name": COUNTER,
            "contentType": "application/json",
            "summary": "A count; JetStream adds up what is published.",
            "payload": {"type": "object", "properties": {"val": {"type": "string"}}},
        },
    }
    found = channels()
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "InferFlux",
            "version": package_version(),
            "description": "Every subject and message of a fleet on NATS; docs/protocol.md says more.",
        },
        "defaultContentType": "application/json",
        "servers": {"nats": {"host": "127.0.0.1:4222", "protocol": "nats"}},
        "channels": {name: _channel(channel) for name, channel in found.items()},
        "operations": dict(operation for name, channel in found.items() for operation in _operations(name, channel)),
        "components": {"messages": messages, "schemas": {name: _cleaned(each) for name, each in components.items()}},
    }


def _cleaned(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema whose description is not indented as the docstring was that it comes from."""
    return schema | {"description": inspect.cleandoc(schema["description"])} if "description" in schema else schema


def _channel(channel: Channel) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", channel.address)
    described: dict[str, Any] = {
        "address": channel.address,
        "description": channel.summary,
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in channel.messages},
    }
    if names:
        described["parameters"] = {name: {"description": PARAMETERS[name]} for name in names}
    if "class" in names:
        described["parameters"]["class"]["enum"] = [each.value for each in ServiceClass]
    return described


def _operations(name: str, channel: Channel) -> list[tuple[str, dict[str, Any]]]:
    reference = {"$ref": f"#/channels/{name}"}
    return [
        (f"{role}_{verb}_{name}", {"action": action, "channel": reference, "summary": channel.summary})
        for roles, verb, action in ((channel.senders, "sends", "send"), (channel.readers, "reads", "receive"))
        for role in roles
    ]


def render() -> str:
    return yaml.safe_dump(document(), sort_keys=False, width=120, allow_unicode=True)


def main() -> None:
    """Write the file, or with --check compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the file is out of date")
    if parser.parse_args().check:
        if PATH.read_text(encoding="utf-8") != render():
            sys.exit("docs/asyncapi.yaml is out of date: run python scripts/asyncapi.py")
        return
    PATH.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
