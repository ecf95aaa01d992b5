"""Traces: a client's context goes through NATS to the engine's steps, by a real exporter to a real HTTP collector."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from harness.server import KEY, running_server

pytest.importorskip("opentelemetry.sdk", reason="the extra `tracing` is not installed")

pytestmark = pytest.mark.integration

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.arrived = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                sent = ExportTraceServiceRequest()
                content = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    import gzip

                    content = gzip.decompress(content)
                sent.ParseFromString(content)
                for each in sent.resource_spans:
                    service = next(x.value.string_value for x in each.resource.attributes if x.key == "service.name")
                    collector.spans += [(service, span) for scope in each.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/v1/traces"


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.server.shutdown()
    made.server.server_close()


def attributes(span: Any) -> dict[str, Any]:
    return {each.key: each.value.string_value or each.value.int_value for each in span.attributes}


def test_a_request_is_one_trace_from_the_client_to_the_steps(collector: Collector, tmp_path: Path) -> None:
    with running_server(tmp_path, settings={"tracing": {"endpoint": collector.url, "sample": 0.0}}) as server:
        headers = {"authorization": f"Bearer {KEY}", "traceparent": f"00-{TRACE}-{SPAN}-01"}
        body = {"model": "stub", "messages": [{"role": "user", "content": "a secret"}], "max_tokens": 5, "stream": True}
        url = f"{server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, headers=headers, timeout=60) as answer:
            assert answer.status_code == 200
            answer.read()
        # Nobody asked for a trace of this one, and the share is nothing.
        httpx.post(
            url,
            json={**body, "stream": False},
            headers={"authorization": f"Bearer {KEY}"},
            timeout=60,
        ).raise_for_status()
    spans = {span.name: (service, span) for service, span in collector.spans}
    assert sorted(span.name for _, span in collector.spans) == sorted(
        ["chat stub", "process stub", "queue", "prefill", "decode"]
    )
    assert all(span.trace_id.hex() == TRACE for _, span in collector.spans)
    service, request = spans["chat stub"]
    assert (service, request.parent_span_id.hex()) == ("inferflux-api", SPAN)
    about = attributes(request)
    assert about["gen_ai.operation.name"] == "chat"
    assert about["gen_ai.request.model"] == "stub"
    assert about["gen_ai.usage.output_tokens"] == 5
    assert [event.name for event in request.events] == ["gen_ai.first_token"]
    service, attempt = spans["process stub"]
    assert (service, attempt.parent_span_id) == ("inferflux-worker", request.span_id)
    assert attributes(attempt)["inferflux.outcome"] == "finished"
    for name in ("queue", "prefill", "decode"):
        part = spans[name][1]
        assert part.parent_span_id == attempt.span_id
        assert part.start_time_unix_nano <= part.end_time_unix_nano
    assert spans["queue"][1].end_time_unix_nano <= spans["prefill"][1].end_time_unix_nano
    assert not any("secret" in str(span) for _, span in collector.spans)


def test_without_an_endpoint_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from inferflux.config.settings import TracingSettings; "
        "from inferflux.broker.trace import make_tracer; import inferflux.api.app, inferflux.workers.worker; "
        "assert make_tracer(TracingSettings(), 'api') is None; "
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
