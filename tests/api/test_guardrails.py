"""Guardrails at the API: prompts judged before they are stamped, changed over the admin API, tried on a text."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inferflux.config.settings import GuardrailSetSettings, GuardrailSettings, LoggingSettings

PATH = "/v1/admin/guardrails"
GUARDRAILS = GuardrailSettings(
    blocklist=("project bluebird", "classified", "pii"),
    sets=(
        GuardrailSetSettings(name="classified", terms=("top secret", "orchid")),
        GuardrailSetSettings(name="pii", action="redact"),
    ),
)


@pytest.fixture
async def guarded(apis: Any) -> Any:
    return await apis.start(msgspec.structs.replace(apis.settings, guardrails=GUARDRAILS))


def messages(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "Be kind."}, {"role": "user", "content": text}]


def blocks(api: Any, guardrail: str, action: str) -> float:
    labels = {"stage": "input", "guardrail": guardrail, "action": action}
    return api.parts.metrics.registry.get_sample_value("inferflux_guardrail_blocks_total", labels) or 0.0


async def until(api: Any, revision: int) -> None:
    async with asyncio.timeout(30):
        while api.parts.control.guard.policy.revision != revision:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(("text", "name"), [("Project\u00a0BLUEBIRD?", "blocklist"), ("a tóp secret", "classified")])
async def test_a_blocked_prompt_is_a_400_that_names_the_guardrail_and_not_the_term(
    guarded: Any, text: str, name: str
) -> None:
    response = await guarded.chat(messages=messages(text))
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"], error["type"]) == ("content_filter", "messages", "invalid_request_error")
    assert repr(name) in error["message"]
    assert "bluebird" not in error["message"].lower()
    assert blocks(guarded, name, "block") == 1
    assert not guarded.worker.turns


async def test_redaction_changes_what_is_published_and_the_stamp_says_by_which_policy(guarded: Any) -> None:
    response = await guarded.chat(messages=messages("Write to john@example.com!"))
    assert response.status_code == 200
    (turn,) = guarded.worker.turns
    assert [each.content for each in turn.prompt.messages] == ["Be kind.", "Write to [redacted:pii.mail]!"]
    assert turn.stamp.policy_revision == guarded.parts.control.guard.policy.revision != 0
    assert blocks(guarded, "pii.mail", "redact") == 1


async def test_every_text_of_a_completion_and_an_embedding_is_judged(guarded: Any) -> None:
    body = {"model": "small", "prompt": ["fine", "an orchid"]}
    response = await guarded.client.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, "prompt")
    response = await guarded.client.post("/v1/embeddings", json={"model": "small", "input": "orchid"})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "input")


async def test_a_blocked_prompt_frees_its_idempotency_key(guarded: Any) -> None:
    headers = {"idempotency-key": "once"}
    body = {"messages": messages("top secret")}
    for _ in range(2):
        response = await guarded.client.post("/v1/chat/completions", json=body, headers=headers)
        assert response.status_code == 400


async def test_changes_hold_for_the_next_request(guarded: Any) -> None:
    answer = (await guarded.client.put(PATH, json={"active": ["umbrella"]})).json()
    await until(guarded, answer["revision"])
    assert (await guarded.chat(messages=messages("top secret"))).status_code == 200
    assert (await guarded.chat(messages=messages("an Umbrella"))).status_code == 400
    answer = (await guarded.client.put(PATH, json={"add": ["pii.card"], "remove": ["umbrella"]})).json()
    assert [each["name"] for each in answer["active"]] == ["pii.card"]
    await until(guarded, answer["revision"])
    assert (await guarded.chat(messages=messages("4111 1111 1111 1111"))).status_code == 400
    answer = (await guarded.client.put(PATH, json={"active": None})).json()
    assert [each["name"] for each in answer["active"]] == list(GUARDRAILS.blocklist)
    assert not answer["changed"]


async def test_a_new_set_becomes_one_wherever_its_name_is_listed(guarded: Any) -> None:
    body = {"sets": {"plants": {"terms": ["fern"], "action": "flag"}}, "add": ["plants"]}
    answer = (await guarded.client.put(PATH, json=body)).json()
    assert {"name": "plants", "kind": "terms", "action": "flag", "stage": "both", "num_terms": 1} in answer["active"]
    await until(guarded, answer["revision"])
    assert (await guarded.chat(messages=messages("a fern"))).status_code == 200
    assert blocks(guarded, "plants", "flag") == 1


async def test_a_dry_run_changes_nothing(guarded: Any) -> None:
    before = (await guarded.client.get(PATH)).json()
    answer = (await guarded.client.put(f"{PATH}?dry_run=true", json={"active": []})).json()
    assert answer["dry_run"]
    assert answer["active"] == []
    assert (await guarded.client.get(PATH)).json() == before


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"sets": {"pii": {"terms": ["x"]}}}, "built in"),
        ({"sets": {"empty": {}}}, "no terms"),
        ({"active": ["\u200b"]}, "no visible character"),
        ({"sets": {"x": {"terms": ["a"], "action": "burn"}}}, "burn"),
        ({"actve": []}, "actve"),
    ],
)
async def test_nonsense_is_refused_in_words(guarded: Any, body: Any, words: str) -> None:
    response = await guarded.client.put(PATH, json=body)
    assert response.status_code == 400
    assert words in response.json()["error"]["message"]


async def test_a_text_can_be_tried(guarded: Any) -> None:
    answer = (await guarded.client.post(f"{PATH}/test", json={"text": "mail a@b.com"})).json()
    assert answer["input"] == {
        "blocked": False,
        "found": [{"guardrail": "pii.mail", "action": "redact"}],
        "text": "mail [redacted:pii.mail]",
    }
    answer = (await guarded.client.post(f"{PATH}/test", json={"text": "an orchid"})).json()
    assert (answer["output"]["blocked"], answer["output"]["text"]) == (True, None)


@pytest.mark.parametrize("keeps", [False, True])
async def test_a_block_is_audited_and_its_prompt_only_where_asked(apis: Any, tmp_path: Path, keeps: bool) -> None:
    path = tmp_path / "audit.log"
    logging = LoggingSettings(audit_log=str(path), audit_prompts=keeps)
    api = await apis.start(msgspec.structs.replace(apis.settings, guardrails=GUARDRAILS, logging=logging))
    await api.chat(messages=messages("an orchid for you"))
    await api.parts.anchorage.close()
    (line,) = [line for line in map(msgspec.json.decode, path.read_bytes().splitlines()) if "tenant" in line]
    assert (line["verdict"], line["detail"]["code"]) == ("denied", "content_filter")
    assert line["detail"]["guardrail"] == "classified"
    assert ("an orchid for you" in path.read_text()) is keeps


@pytest.mark.parametrize(("method", "path"), [("GET", PATH), ("PUT", PATH), ("POST", f"{PATH}/test")])
async def test_only_for_admins(guarded: Any, method: str, path: str) -> None:
    response = await guarded.client.request(method, path, json={}, headers={"authorization": "Bearer key-generate"})
    assert response.status_code == 403
