"""What the customer's guides say works: each row of guides.yaml is exercised for real, on a server started as they say.

INFERFLUX_GUIDES may name a folder with the guides themselves: then they are parsed, and whatever they spell as code has
to be a row.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.checkout import ROOT
from harness.guided import DENIED, KEY, PAGES, RATE, TERM, Guided, guided, lines
from harness.model import model_path

from inferflux.broker.jetstream import JetStreamBroker
from inferflux.broker.subjects import BUCKET_POLICY
from inferflux.config.settings import BrokerSettings, Settings

pytestmark = pytest.mark.integration

ROWS: list[dict[str, str]] = yaml.safe_load(Path(__file__).with_name("guides.yaml").read_text())
GUIDES = os.environ.get("INFERFLUX_GUIDES")
Check = Callable[[Guided], None]
CHECKS: dict[str, Check] = {}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guided]:
    with guided(tmp_path_factory.mktemp("guided")) as server:
        yield server


def exercises(*says: str) -> Callable[[Check], Check]:
    """The check of these rows."""

    def register(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(says, check))
        return check

    return register


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row['guide']}: {row['says']}")
def test_a_row_works(row: dict[str, str], server: Guided) -> None:
    check = CHECKS.get(row["says"])
    assert check is not None, f"nothing exercises {row['says']!r} of the {row['guide']} guide"
    check(server)


def test_every_check_has_a_row() -> None:
    assert CHECKS.keys() <= {row["says"] for row in ROWS}


@pytest.mark.skipif(GUIDES is None, reason="INFERFLUX_GUIDES names no folder with the guides")
@pytest.mark.parametrize("guide", ["user", "admin"])
def test_the_guides_name_nothing_else(guide: str) -> None:
    path = Path(GUIDES or "") / f"{guide.title()}Guide.md"
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL)))
    named |= set(re.findall(r"\]\(([^)]+)\)", text))
    named |= set(re.findall(r"\b\w+\.yaml\b", "".join(re.findall(r"```.*?```", text, flags=re.DOTALL))))
    assert named
    assert named - {row["says"] for row in ROWS if row["guide"] == guide} == set()


def succeeds(server: Guided, command: str, *arguments: str, **more: str) -> str:
    done = server.run(command, *arguments, **more)
    assert done.returncode == 0, done.stderr
    return done.stdout


def complete(server: Guided, model: str | None = None, *, key: str = KEY, **fields: Any) -> Any:
    body = {"prompt": "Hello", "max_tokens": 4, **({} if model is None else {"model": model}), **fields}
    return server.call("POST", "/v1/completions", body, key=key)


@exercises("export INFERCTL_API_KEY=dev-key-123")
def the_key_is_taken_from_the_environment(server: Guided) -> None:
    assert "llama3" in succeeds(server, "export INFERCTL_API_KEY=dev-key-123; inferctl models")
    refused = server.run("export INFERCTL_API_KEY=another; inferctl models")
    assert refused.returncode == 1
    assert "not known" in refused.stderr


@exercises("export INFERFLUX_MODEL_PATH=$HOME/models/llama3.gguf", "INFERFLUX_MODEL_PATH")
def the_model_is_named_by_its_file_and_is_the_default(server: Guided) -> None:
    assert complete(server).json()["model"] == "llama3"
    assert server.models()["llama3"]["default"]


@exercises("./scripts/run_dev.sh --config config/server.yaml")
def it_serves_and_says_where_the_stub_stands_in(server: Guided) -> None:
    assert server.call("GET", "/readyz").status_code == 200
    answer = complete(server, "llama3")
    assert answer.headers["x-inferflux-backend"] == "stub", "there is no such model file, and a model answers"
    listed = {model["id"]: model for model in server.call("GET", "/v1/models").json()["data"]}
    assert "llama3.gguf" in listed["llama3"]["stub_reason"]


@exercises('./build/inferctl completion --prompt "Hello" --stream --model llama3')
def a_completion_streams(server: Guided) -> None:
    assert succeeds(server, './build/inferctl completion --prompt "Hello" --stream --model llama3').strip()
    refused = server.run("./build/inferctl completion --prompt Hello --stream --model nobody")
    assert refused.returncode == 1
    assert "nobody" in refused.stderr
    assert "build/inferctl" in (ROOT / "scripts" / "setup.sh").read_text(), "nobody makes build/inferctl"


@exercises("inferctl chat --interactive --model llama3")
def a_chat_has_turns(server: Guided) -> None:
    spoken = succeeds(
        server, "inferctl chat --interactive --model llama3", "--max-tokens", "4", stdin="Hi\nMore\n/exit\n"
    )
    assert len(spoken.strip().splitlines()) == 2


@exercises("inferctl admin models --list")
def models_are_listed(server: Guided) -> None:
    shown = succeeds(server, "inferctl admin models --list")
    assert {"llama3", "first"} <= {line.split()[0] for line in shown.splitlines()}


@exercises("inferctl admin models --load path.gguf --id llama3 --default")
def a_model_is_loaded_and_becomes_the_default(server: Guided) -> None:
    shutil.copy(model_path(), server.folder / "path.gguf")
    command = f"cd {server.folder}; inferctl admin models --load path.gguf --id llama3-loaded --default"
    succeeds(server, command, "--wait", "150")
    assert server.models()["llama3-loaded"]["default"]
    server.wait_until("it is the default", lambda: complete(server).json()["model"] == "llama3-loaded")
    assert "x-inferflux-backend" not in complete(server).headers, "the stub answers for a file that is there"
    succeeds(server, "inferctl admin models --unload llama3-loaded", "--wait", "150")
    succeeds(server, "inferctl admin models --set-default default")
    server.wait_until("it is so no more", lambda: complete(server).json()["model"] == "llama3")
    the_model_is_named_by_its_file_and_is_the_default(server)


@exercises("request.stream=true")
def tokens_come_as_events(server: Guided) -> None:
    answer = complete(server, "llama3", stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.rstrip().endswith("data: [DONE]")


@exercises("registry.path=config/registry.yaml", "registry.yaml")
def the_registry_is_read_again_when_it_changes(server: Guided) -> None:
    shipped = yaml.safe_load((ROOT / "config" / "server.yaml").read_text())
    assert shipped["registry"]["path"] == "config/registry.yaml"
    entry = {"id": "second", "path": "second.gguf", "backend": "stub", "default": False}
    server.write_registry({"id": "first", "backend": "stub"}, entry)
    server.wait_until("an edit is served", lambda: complete(server, "second").status_code == 200)
    server.write_registry({"id": "first", "backend": "stub"})
    server.wait_until("an edit takes it away", lambda: complete(server, "second").status_code == 404)
    assert complete(server, "first").status_code == 200
    events = " ".join(server.metrics("inferflux_registry_events_total"))
    assert 'event="added"' in events
    assert 'event="removed"' in events


@exercises("auth.rate_limit_per_minute")
def each_key_has_its_rate(server: Guided) -> None:
    assert complete(server).headers["x-ratelimit-limit-requests"] == str(RATE)
    succeeds(server, "inferctl admin rate-limit --set 1")
    try:
        server.wait_until("the limit holds", lambda: complete(server).json()["error"]["code"] == "rate_limit_exceeded")
    finally:
        succeeds(server, "inferctl admin rate-limit --set default")
    server.wait_until("it is lifted", lambda: complete(server).status_code == 200)


@exercises("no_backend")
def a_model_that_nobody_has_loaded_says_so(server: Guided) -> None:
    succeeds(server, "inferctl admin models --load stub --id elsewhere --hardware gpu")
    answers: list[Any] = []

    def known() -> bool:
        answers.append(complete(server, "elsewhere"))
        return bool(answers[-1].status_code != 404)

    server.wait_until("the model is known", known)
    succeeds(server, "inferctl admin models --unload elsewhere")
    assert (answers[-1].status_code, answers[-1].json()["error"]["code"]) == (503, "no_backend")


@exercises("inferflux_stream_tokens_total")
def streamed_tokens_are_counted(server: Guided) -> None:
    def counted() -> float:
        return sum(float(sample.rpartition(" ")[2]) for sample in server.metrics("inferflux_stream_tokens_total"))

    before = counted()
    complete(server, "llama3", stream=True, max_tokens=8, ignore_eos=True)
    server.wait_until("they are counted", lambda: counted() >= before + 8)


@exercises("/metrics")
def metrics_are_prometheus_text(server: Guided) -> None:
    answer = server.call("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "# TYPE inferflux_http_requests_total counter" in answer.text


@exercises("inferflux_queue_depth")
def what_waits_is_shown(server: Guided) -> None:
    succeeds(server, "inferctl admin models --load stub --id nowhere --hardware gpu")
    server.wait_until("the model is known", lambda: "nowhere" in server.call("GET", "/v1/models").text)

    def waits() -> bool:
        samples = server.metrics("inferflux_queue_depth")
        return any('model="nowhere"' in sample and sample.endswith(" 1.0") for sample in samples)

    # Batch work waits for a worker, and this one for as long as somebody reads.
    with server.streaming("/v1/completions", {"model": "nowhere", "prompt": "Hello", "service_tier": "flex"}) as answer:
        assert answer.status_code == 200, answer.read()
        server.wait_until("a prompt waits", waits)
    server.wait_until("nothing waits", lambda: not waits())
    succeeds(server, "inferctl admin models --unload nowhere")


@exercises("inferflux_kv_pages_in_use", "runtime.paged_kv.cpu_pages")
def pages_are_as_many_as_the_settings_say(server: Guided) -> None:
    assert all(sample.endswith(f" {PAGES}.0") for sample in server.metrics("inferflux_kv_pages"))
    assert server.metrics("inferflux_kv_pages")
    assert server.metrics("inferflux_kv_pages_in_use")


@exercises("config/server.yaml")
def keys_have_scopes(server: Guided) -> None:
    (shipped,) = yaml.safe_load((ROOT / "config" / "server.yaml").read_text())["auth"]["api_keys"]
    assert (shipped["key"], "admin" in shipped["scopes"]) == (KEY, True)
    made = server.call("POST", "/v1/admin/api_keys", {"tenant": "dev", "scopes": ["read"]}).json()["key"]
    server.wait_until("the key is known", lambda: server.call("GET", "/v1/models", key=made).status_code == 200)
    assert complete(server, key=made).json()["error"]["code"] == "insufficient_scope"


@exercises("auth.oidc_issuer", "auth.oidc_audience")
def tokens_of_the_issuer_are_taken(server: Guided) -> None:
    issuer = server.issuer
    assert complete(server, key=issuer.token(scope="inferflux:generate")).status_code == 200
    assert complete(server, key=issuer.token(scope="inferflux:read")).status_code == 403
    for wrong in ({"aud": "another"}, {"iss": "https://another.example"}, {"exp": 1}):
        assert complete(server, key=issuer.token(scope="inferflux:generate", **wrong)).status_code == 401, wrong


@exercises("INFERFLUX_POLICY_PASSPHRASE")
def policies_are_stored_sealed(server: Guided) -> None:
    succeeds(server, "inferctl admin fairness --set-weight somebody-secret=4")

    async def stored() -> list[bytes]:
        settings = Settings(broker=BrokerSettings(store_dir=str(server.folder / "nats"), port=server.broker_port))
        broker = await JetStreamBroker.connect(settings, "admin", "test")
        try:
            return [entry.value or b"" for entry in await (await broker.bucket(BUCKET_POLICY)).entries()]
        finally:
            await broker.close()

    entries = asyncio.run(stored())
    assert entries
    assert not any(b"somebody-secret" in entry for entry in entries), "a policy lies in clear"
    assert "somebody-secret" in succeeds(server, "inferctl admin fairness --get")


def refused(server: Guided, prompt: str) -> bool:
    """Whether a guardrail refuses it."""
    answer = complete(server, "llama3", prompt=prompt)
    if answer.status_code == 200:
        return False
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "content_filter"), answer.text
    return True


@exercises("guardrails.blocklist", "inferflux_guardrail_blocks_total")
def a_term_of_the_blocklist_is_refused_and_counted(server: Guided) -> None:
    assert refused(server, f"May I have {TERM}?")
    assert not refused(server, "May I have an apple?")
    server.wait_until("it is counted", lambda: server.metrics("inferflux_guardrail_blocks_total"))


@exercises("guardrails.opa_endpoint")
def the_policy_engine_is_asked(server: Guided) -> None:
    assert refused(server, f"Here {DENIED}")
    assert not refused(server, "Here it says yes")


@exercises("inferctl admin guardrails --set pii,classified")
def guardrails_are_changed_while_it_runs(server: Guided) -> None:
    mail, word = "Write to ann@example.com", "This is classified"
    assert not refused(server, word)
    succeeds(server, "inferctl admin guardrails --set pii,classified")
    try:
        server.wait_until("the term holds", lambda: refused(server, word))
        assert refused(server, mail)
        assert not refused(server, f"May I have {TERM}?"), "--set replaces the list"
    finally:
        succeeds(server, "inferctl admin guardrails --reset")
    server.wait_until("it is given back", lambda: not refused(server, word))
    assert refused(server, f"May I have {TERM}?")


@exercises("logging.audit_log")
def the_audit_log_may_be_rotated(server: Guided) -> None:
    complete(server, key="nobody's")
    server.wait_until("it is written", lambda: any(line["verdict"] == "denied" for line in lines(server.audit_log)))
    rotated = server.audit_log.with_suffix(".1")
    server.audit_log.rename(rotated)
    complete(server, key="nobody's")
    server.wait_until("a new file begins", server.audit_log.exists)
    assert "as they were written" in succeeds(server, f"inferctl audit verify {rotated} {server.audit_log}")
    assert "Hello" not in rotated.read_text()


@exercises("INFERFLUX_DIST_RANK", "INFERFLUX_DIST_WORLD_SIZE", "INFERFLUX_DIST_BACKEND")
def ranks_are_checked_when_a_worker_starts(server: Guided) -> None:
    worker = f"{sys.executable} -m inferflux.workers"
    for wrong, named in (
        ({"INFERFLUX_DIST_WORLD_SIZE": "two"}, "INFERFLUX_DIST_WORLD_SIZE"),
        ({"INFERFLUX_DIST_WORLD_SIZE": "2", "INFERFLUX_DIST_RANK": "2"}, "INFERFLUX_DIST_RANK"),
        ({"INFERFLUX_DIST_WORLD_SIZE": "2", "INFERFLUX_DIST_BACKEND": "other"}, "INFERFLUX_DIST_BACKEND"),
    ):
        done = server.run(worker, **wrong)
        assert done.returncode == 2
        assert named in done.stderr
    assert (ROOT / "tests/workers/backends/torch_engine/test_ranks.py").exists(), "nothing runs two ranks"


@exercises("docker build -t inferflux . && docker run -p 8080:8080 inferflux", "/models")
def the_image_serves_on_8080_and_looks_for_models(_: Guided) -> None:
    image = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^EXPOSE .*\b8080\b", image, re.MULTILINE)
    assert "/models" in image
    assert (ROOT / "tests/deploy/test_images.py").exists()


@exercises("helm upgrade --install inferflux charts/inferflux -f deploy/values.yaml")
def the_chart_takes_its_values(_: Guided) -> None:
    assert yaml.safe_load((ROOT / "charts/inferflux/Chart.yaml").read_text())["name"] == "inferflux"
    given = yaml.safe_load((ROOT / "deploy/values.yaml").read_text())
    known = yaml.safe_load((ROOT / "charts/inferflux/values.yaml").read_text())
    assert given
    assert given.keys() <= known.keys()


@exercises("terraform apply -chdir=deploy/terraform")
def terraform_finds_its_module(server: Guided) -> None:
    terraform = shutil.which("terraform")
    if terraform is None:
        pytest.skip("terraform is not installed")
    folder = server.folder / "terraform"
    shutil.copytree(ROOT / "deploy" / "terraform", folder, ignore=shutil.ignore_patterns(".terraform*"))
    # Terraform wants the option before the command, whatever the guide says.
    succeeds(server, f"terraform -chdir={folder} fmt -check -recursive")
    assert (ROOT / "tests/deploy/test_machines.py").exists()


@exercises("docs/DeveloperGuide.md", "docs/UserGuide.md", "AdminGuide.md")
def the_documents_are_there(_: Guided) -> None:
    for name in ("DeveloperGuide", "UserGuide", "AdminGuide"):
        assert (ROOT / "docs" / f"{name}.md").read_text().startswith("# ")
