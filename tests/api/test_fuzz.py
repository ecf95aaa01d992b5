"""Whatever is sent to an operation of our own OpenAPI document, valid or not: an answer, and never one of 5xx."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
import uvicorn
from harness.ports import free_port
from harness.scripted_worker import SECRET, ScriptedWorker
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from inferflux.api.app import create_app
from inferflux.api.openapi import document
from inferflux.broker.memory import MemoryBroker, MemoryHub
from inferflux.broker.stamp import Stamper
from inferflux.config.settings import AuthSettings, KeySettings, QueueSettings, ServerSettings, Settings
from inferflux.registry.control import Control
from inferflux.registry.models import ModelEntry, Models
from inferflux.registry.store import PolicyStore
from inferflux.registry.tenants import Tenants

KEY = "a-key-with-every-scope"
NUM_EXAMPLES = 4
SCHEMA = schemathesis.openapi.from_dict(document("test"))
OPERATIONS = [each.ok() for each in SCHEMA.get_all_operations()]
DEEP = b'{"a":' * 50_000
BODIES = {
    "nothing": b"",
    "no JSON": b"{",
    "not an object": b"[]",
    "bytes that are no text": b'{"model": "\xff\xfe"}',
    "half a surrogate": b'{"model": "\\ud800", "prompt": "\\udfff", "messages": [{"content": "\\ud800"}]}',
    "a NUL": b'{"model": "\\u0000", "prompt": "\\u0000", "id": "\\u0000"}',
    "a huge number": b'{"max_tokens": 1' + b"0" * 5000 + b', "seed": 1e999, "prompt": "x"}',
    "no number": b'{"temperature": NaN, "prompt": "x"}',
    "deep nesting": DEEP,
    "a key twice": b'{"prompt": "a", "prompt": ["b"], "model": null, "model": 5}',
}
PATHS = [
    "%00",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "%0d%0ax-injected:%201",
    "%ff%fe",
    "x" * 3000,
    "a.b.c",
    "%F0%9F%98%80",
]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A replica over HTTP, with a worker that answers everything."""
    config = Settings(
        server=ServerSettings(max_body_bytes=1_000_000),
        queue=QueueSettings(no_backend_grace_s=0.2),
        auth=AuthSettings(api_keys=(KeySettings(key=KEY, tenant="acme", scopes=("generate", "read", "admin")),)),
    )
    hub, port = MemoryHub(settings=config), free_port()
    served = Models([ModelEntry(id="small", path=None, backend="llamacpp", default=True)])
    started, servers = threading.Event(), list[uvicorn.Server]()

    async def serve() -> None:
        broker = MemoryBroker(hub)
        control = Control(config, PolicyStore(broker), Tenants.from_settings(config))
        app = create_app(config, broker, Stamper(SECRET), served, control)
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, http="httptools", lifespan="on"))
        servers.append(server)
        async with ScriptedWorker(MemoryBroker(hub), "small"):
            running = asyncio.create_task(server.serve())
            while not server.started and not running.done():
                await asyncio.sleep(0.005)
            started.set()
            await running

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert started.wait(60), "the replica does not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        servers[0].should_exit = True
        thread.join(60)


def may_be(answer: Any) -> bool:
    """An operation before may have loaded a model that no worker has; saying so is right."""
    return answer.status_code < 500 or (answer.status_code == 503 and answer.json()["error"]["code"] == "no_backend")


@pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["valid", "invalid"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
def test_no_answer_is_a_server_error(operation: Any, mode: GenerationMode, url: str) -> None:
    @settings(
        max_examples=NUM_EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def send(case: Case) -> None:
        answer = case.call(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
        assert may_be(answer), f"{case.as_curl_command()}\n{answer.text}"

    try:
        send()
    except Unsatisfiable:
        pytest.skip("nothing of it can be invalid")


@pytest.mark.parametrize("what", BODIES)
def test_hostile_bodies_are_refused(what: str, url: str) -> None:
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        for operation in OPERATIONS:
            if "requestBody" in operation.definition.raw:
                path = operation.path.replace("{", "").replace("}", "")
                headers = {"content-type": "application/json"}
                answer = client.request(operation.method, path, content=BODIES[what], headers=headers)
                assert 400 <= answer.status_code < 500, f"{operation.label}: {answer.status_code} {answer.text}"
                assert "error" in answer.json(), operation.label


@pytest.mark.parametrize("name", PATHS)
def test_hostile_paths_are_refused(name: str, url: str) -> None:
    with httpx.Client(base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as client:
        for operation in OPERATIONS:
            if "{" in operation.path and operation.method in ("get", "delete"):
                before, _, rest = operation.path.partition("{")
                answer = client.request(operation.method, f"{before}{name}{rest.partition('}')[2]}")
                assert may_be(answer), f"{operation.label}: {answer.status_code} {answer.text}"
                assert "x-injected" not in answer.headers
                assert "root:" not in answer.text
