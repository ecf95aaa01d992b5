"""What operators do over the admin API: lanes, single requests, dead letters, fairness."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
from harness.scripted_worker import LIMITS, Turn, failing, silent

from inferflux.broker.errors import Code
from inferflux.broker.subjects import Lane, RequestKey, ServiceClass, tenant_owner
from inferflux.broker.wire.requests import Claim, decode_frame, failure
from inferflux.registry.deadletters import DeadLetters
from inferflux.registry.fairness import FairnessStore
from inferflux.registry.store import PolicyStore

LANE = Lane("org/small", ServiceClass.BATCH, "acme")
SECRET = "the words of the prompt"


async def publish(api: Any, request: str, lane: Lane = LANE) -> int:
    """As a direct publisher, to a lane that no scripted worker hears of."""
    body = msgspec.json.encode({"type": "completion", "id": request, "prompt": SECRET})
    receipt = await api.broker.publish_prompt(lane, body, msg_id=f"t-{lane.tenant}.{request}")
    return int(receipt.seq)


async def bury(api: Any, request: str = "job 7", lane: Lane = LANE) -> str:
    key = RequestKey(tenant_owner(lane.tenant), request)
    lost = [Claim(worker=worker, at=5.0) for worker in ("w1", "w2")]
    body = msgspec.json.encode({"type": "completion", "id": request, "prompt": SECRET, "deadline": 1.0})
    reason = failure(Code.ATTEMPTS_EXHAUSTED, "given up")
    await DeadLetters(api.broker).bury(key, lane, {"traceparent": "00-1"}, body, reason=reason, lost=lost)
    return (await DeadLetters(api.broker).ids())[-1]


class TestDryRuns:
    async def test_a_cancel_is_only_talked_about(self, apis: Any) -> None:
        api = await apis.start(worker=False)
        await publish(api, "job")
        answer = await api.client.delete("/v1/admin/requests/t-acme.job?dry_run=true")
        assert answer.json() == {"id": "t-acme.job", "state": "cancelled", "dry_run": True}
        assert await api.broker.backlog() == {LANE: 1}
        assert (await api.client.delete("/v1/admin/requests/t-acme.other?dry_run=true")).status_code == 404

    async def test_a_dead_letter_stays(self, api: Any) -> None:
        letter = await bury(api)
        answer = await api.client.delete(f"/v1/admin/queue/dead/{letter}?dry_run=true")
        assert answer.json() == {"id": letter, "dropped": False, "dry_run": True}
        assert await DeadLetters(api.broker).ids() == [letter]
        assert (await api.client.delete("/v1/admin/queue/dead/t-acme.other?dry_run=true")).status_code == 404


class TestQueue:
    async def test_lanes_say_what_waits_and_runs_and_since_when(self, apis: Any) -> None:
        api = await apis.start(worker=False)
        other = Lane("org/small", ServiceClass.DEFAULT, "acme")
        for number in range(3):
            await publish(api, f"r{number}")
        await publish(api, "other", other)
        await api.broker.pull(LANE, LIMITS)

        lanes = (await api.client.get("/v1/admin/queue")).json()["data"]

        assert [(lane["service_class"], lane["depth"], lane["num_running"], lane["num_waiting"]) for lane in lanes] == [
            ("batch", 3, 1, 2),
            ("default", 1, 0, 1),
        ]
        assert all(0 <= lane["oldest_age_s"] < 10 for lane in lanes)

    async def test_running_request_is_cancelled(self, api: Any) -> None:
        api.worker.script = silent
        waiting = asyncio.create_task(api.chat())
        async with asyncio.timeout(30):
            while not api.worker.turns or not api.worker.turns[0].attempt:
                await asyncio.sleep(0.01)

        # The id as clients see it.
        answer = await api.client.delete(f"/v1/admin/requests/chatcmpl-{api.worker.turns[0].prompt.id}")

        assert answer.status_code == 200
        assert answer.json()["state"] == "cancelled"
        response = await waiting
        assert response.status_code == 499
        assert response.json()["error"]["message"] == "an operator cancelled the request"
        again = await api.client.delete(f"/v1/admin/requests/{api.worker.turns[0].prompt.id}")
        assert again.json()["state"] == "ended"

    async def test_queued_request_of_a_publisher_is_cancelled_and_removed(self, apis: Any) -> None:
        api = await apis.start(worker=False)
        for number in range(3):
            await publish(api, f"job {number}")

        answer = await api.client.delete("/v1/admin/requests/t-acme.job=201")

        assert answer.json() == {"id": "t-acme.job=201", "state": "cancelled", "dry_run": False}
        assert (await api.broker.backlog())[LANE] == 2
        tape = await api.broker.read_tape(RequestKey("t-acme", "job 1"))
        (end,) = [decode_frame(entry.body) for entry in tape.frames]
        assert end.error is not None
        assert end.error.code == "cancelled"

    @pytest.mark.parametrize(("name", "status"), [("aaaa-bbbb-cccc", 404), ("t-acme.nothing", 404), ("nonsense", 400)])
    async def test_request_that_is_not_there_is_not_cancelled(self, api: Any, name: str, status: int) -> None:
        answer = await api.client.delete(f"/v1/admin/requests/{name}")

        assert answer.status_code == status
        assert await api.broker.tape_fill() == 0.0


class TestDead:
    async def test_list_tells_everything_but_the_prompt(self, api: Any) -> None:
        letter = await bury(api)

        answer = await api.client.get("/v1/admin/queue/dead")

        (listed,) = answer.json()["data"]
        assert listed.pop("message") == "given up"
        assert abs(listed.pop("at") - time.time()) < 60
        assert listed.pop("num_bytes") > len(SECRET)
        assert listed == {
            "id": letter,
            "request": "job 7",
            "owner": "t-acme",
            "model": "org/small",
            "service_class": "batch",
            "tenant": "acme",
            "code": "attempts_exhausted",
            "attempts": [{"worker": worker, "at": 5.0, "state": "running"} for worker in ("w1", "w2")],
        }
        assert SECRET not in answer.text

    async def test_one_is_shown_with_its_prompt(self, api: Any) -> None:
        shown = (await api.client.get(f"/v1/admin/queue/dead/{await bury(api)}")).json()

        assert shown["prompt"]["prompt"] == SECRET
        assert shown["headers"] == {"traceparent": "00-1"}
        assert shown["request"] == "job 7"

    async def test_retry_answers_under_a_new_id_and_the_letter_goes(self, api: Any) -> None:
        letter = await bury(api)

        answer = await api.client.post(f"/v1/admin/queue/dead/{letter}/retry")

        assert answer.status_code == 200, answer.text
        retried = answer.json()
        assert retried["id"] == letter
        assert retried["choices"] == [{"index": 0, "text": "Hello", "finish_reason": "stop"}]
        assert retried["usage"]["completion_tokens"] == 2
        (turn,) = api.worker.turns
        assert (turn.lane, turn.prompt.id, turn.prompt.prompt) == (LANE, retried["request"], SECRET)
        assert turn.prompt.id != "job 7"
        assert turn.prompt.deadline > time.time()
        assert await DeadLetters(api.broker).ids() == []

    async def test_retry_that_fails_keeps_the_letter(self, api: Any) -> None:
        letter = await bury(api)
        api.worker.script = failing(Code.ENGINE_ERROR, "no")

        answer = await api.client.post(f"/v1/admin/queue/dead/{letter}/retry")

        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "engine_error"
        assert await DeadLetters(api.broker).ids() == [letter]

    async def test_retry_that_is_given_up_again_is_a_new_letter(self, api: Any) -> None:
        letter = await bury(api)

        async def give_up(turn: Turn) -> None:
            error = failure(Code.ATTEMPTS_EXHAUSTED, "again")
            await DeadLetters(api.broker).bury(
                turn.key, turn.lane, turn.headers, turn.delivery.body, reason=error, lost=()
            )
            await turn.fail(error)

        api.worker.script = give_up
        answer = await api.client.post(f"/v1/admin/queue/dead/{letter}/retry")

        assert answer.json()["error"]["code"] == "attempts_exhausted"
        (left,) = await DeadLetters(api.broker).ids()
        assert left != letter

    async def test_model_that_is_gone_is_named(self, api: Any) -> None:
        letter = await bury(api, lane=Lane("gone", ServiceClass.BATCH, "acme"))

        answer = await api.client.post(f"/v1/admin/queue/dead/{letter}/retry")

        assert answer.status_code == 404
        assert "'gone'" in answer.json()["error"]["message"]
        assert await DeadLetters(api.broker).ids() == [letter]

    async def test_drop_forgets_one(self, api: Any) -> None:
        first, second = await bury(api, "a"), await bury(api, "b")

        answer = await api.client.delete(f"/v1/admin/queue/dead/{first}")
        assert answer.json() == {"id": first, "dropped": True, "dry_run": False}
        assert await DeadLetters(api.broker).ids() == [second]
        for call in ("get", "delete"):
            assert (await getattr(api.client, call)(f"/v1/admin/queue/dead/{first}")).status_code == 404
        assert (await api.client.post(f"/v1/admin/queue/dead/{first}/retry")).status_code == 404

    async def test_metrics_count_them(self, api: Any) -> None:
        await bury(api, "a")
        await bury(api, "b")

        assert "inferflux_dead_letters 2.0" in (await api.client.get("/metrics")).text.splitlines()


class TestFairness:
    async def test_settings_are_in_force_until_changed(self, api: Any) -> None:
        answer = (await api.client.get("/v1/admin/fairness")).json()

        assert answer == {
            "weights": {},
            "min_share": {"default": 0.2, "batch": 0.05},
            "changed": {"weights": {}, "min_share": {}},
            "dry_run": False,
        }

    async def test_change_is_stored_and_told(self, api: Any) -> None:
        body = {"weights": {"acme": 4, "globex": 0.5}, "min_share": {"batch": 0.1}}
        answer = await api.client.put("/v1/admin/fairness", json=body)

        assert answer.status_code == 200
        assert answer.json()["weights"] == {"acme": 4, "globex": 0.5}
        assert answer.json()["min_share"] == {"default": 0.2, "batch": 0.1}
        await api.client.put("/v1/admin/fairness", json={"weights": {"globex": None}, "min_share": {"batch": None}})
        stored = await FairnessStore(PolicyStore(api.broker)).read()
        assert (stored.weights, stored.min_share) == ({"acme": 4.0}, {})
        assert (await api.client.get("/v1/admin/fairness")).json()["changed"]["weights"] == {"acme": 4}

    async def test_a_dry_run_stores_nothing(self, api: Any) -> None:
        answer = await api.client.put("/v1/admin/fairness?dry_run=true", json={"weights": {"acme": 4}})

        assert (answer.json()["weights"], answer.json()["dry_run"]) == ({"acme": 4}, True)
        assert (await FairnessStore(PolicyStore(api.broker)).read()).weights == {}

    @pytest.mark.parametrize(
        ("body", "param"),
        [
            ({"weights": {"acme": 0}}, "weights"),
            ({"weights": {"acme": -2}}, "weights"),
            ({"weights": {"acme": "4"}}, "weights"),
            ({"min_share": {"batch": 1.5}}, "min_share"),
            ({"min_share": {"priority": 0.5}}, "min_share"),
            ({"shares": {}}, "shares"),
        ],
    )
    async def test_nonsense_is_refused_by_name(self, api: Any, body: dict[str, Any], param: str) -> None:
        answer = await api.client.put("/v1/admin/fairness", json=body)

        assert answer.status_code == 400
        assert param in answer.text
        assert (await FairnessStore(PolicyStore(api.broker)).read()).weights == {}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/admin/queue"),
        ("DELETE", "/v1/admin/requests/x-y"),
        ("GET", "/v1/admin/queue/dead"),
        ("GET", "/v1/admin/queue/dead/t-a.r"),
        ("POST", "/v1/admin/queue/dead/t-a.r/retry"),
        ("DELETE", "/v1/admin/queue/dead/t-a.r"),
        ("GET", "/v1/admin/fairness"),
        ("PUT", "/v1/admin/fairness"),
    ],
)
async def test_only_for_admins(api: Any, method: str, path: str) -> None:
    answer = await api.client.request(method, path, headers={"authorization": "Bearer key-generate"})

    assert answer.status_code == 403
