"""/v1/admin/guardrails: what is in force, changing it, and trying it on a text."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from litestar import Request, Response, get, post, put
from litestar.di import NamedDependency
from litestar.params import FromQuery
from msgspec import UNSET, Meta, UnsetType

from inferflux.broker.wire.policies import GuardrailSet
from inferflux.registry.control import Control
from inferflux.registry.guardrails.guard import hits
from inferflux.registry.guardrails.matcher import Matcher, redacted
from inferflux.registry.guardrails.policy import Entry, Policy
from inferflux.registry.guardrails.store import GuardrailChange, GuardrailStore

from ..audit import describe
from ..gateway import Gateway

Name = Annotated[str, Meta(min_length=1, max_length=256)]


class GuardrailsRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What shall change, and what is not named stays. `active` null gives the list back to the settings; `add` and
    `remove` change it. A set that is null is given back to the settings too."""

    active: tuple[Name, ...] | UnsetType | None = UNSET
    add: tuple[Name, ...] = ()
    remove: tuple[Name, ...] = ()
    sets: dict[Annotated[str, Meta(min_length=1, max_length=64)], GuardrailSet | None] = {}


class TrialRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text to try the guardrails on."""

    text: Annotated[str, Meta(max_length=1_000_000)]


class Found(msgspec.Struct, frozen=True):
    """A guardrail that finds something, and what it does about it."""

    guardrail: str
    action: str


class StageAnswer(msgspec.Struct, frozen=True):
    """What becomes of a text as a prompt, or as an answer: `text` as it would leave, null when it is blocked."""

    blocked: bool
    found: list[Found]
    text: str | None


class TrialAnswer(msgspec.Struct, frozen=True):
    """What the matchers say; OPA is not asked."""

    input: StageAnswer
    output: StageAnswer


class GuardrailsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What is in force. `changed` says whether the list differs from the settings' own; terms of sets are counted, not
    listed, unless asked for."""

    revision: int
    active: list[Entry]
    sets: dict[str, GuardrailSet]
    changed: bool
    opa_endpoint: str | None
    dry_run: bool = False


@get("/guardrails", opt={"scope": "admin"})
async def get_guardrails(
    control: NamedDependency[Control], guardrail_store: NamedDependency[GuardrailStore]
) -> Response[bytes]:
    """Guardrails in force, and the sets there are."""
    changed = await guardrail_store.read()
    return _respond(_answer(guardrail_store.policy(changed), changed=changed.active is not None))


@put("/guardrails", opt={"scope": "admin"})
async def change_guardrails(
    request: Request[Any, Any, Any],
    gateway: NamedDependency[Gateway],
    guardrail_store: NamedDependency[GuardrailStore],
    dry_run: FromQuery[bool] = False,
) -> Response[bytes]:
    """Change what is in force; every replica and worker follows within a second."""
    wanted = await gateway.parse(request, GuardrailsRequest)
    change = GuardrailChange(
        active=None if wanted.active is UNSET else wanted.active,
        gives_back=wanted.active is None,
        add=wanted.add,
        remove=wanted.remove,
        sets=wanted.sets,
    )
    now = await guardrail_store.change(change, dry_run=dry_run)
    policy = guardrail_store.policy(now)
    describe(request, revision=policy.revision, num_active=len(policy.active), sets=sorted(wanted.sets))
    return _respond(_answer(policy, changed=now.active is not None, dry_run=dry_run))


@post("/guardrails/test", opt={"scope": "admin"}, status_code=200)
async def try_guardrails(
    request: Request[Any, Any, Any], gateway: NamedDependency[Gateway], control: NamedDependency[Control]
) -> Response[bytes]:
    """What becomes of a text, without sending it anywhere."""
    text = (await gateway.parse(request, TrialRequest)).text
    policy = control.guard.policy
    return _respond(TrialAnswer(_tried(policy.input, text), _tried(policy.output, text)))


def _tried(matcher: Matcher | None, text: str) -> StageAnswer:
    found = [Found(guardrail, action) for guardrail, action in hits(matcher, text)]
    blocked = any(each.action == "block" for each in found)
    shown = text if matcher is None else redacted(text, matcher.find(text))
    return StageAnswer(blocked, found, None if blocked else shown)


def _answer(policy: Policy, *, changed: bool, dry_run: bool = False) -> GuardrailsAnswer:
    return GuardrailsAnswer(
        revision=policy.revision,
        active=list(policy.entries()),
        sets=policy.sets,
        changed=changed,
        opa_endpoint=policy.opa_endpoint,
        dry_run=dry_run,
    )


def _respond(answer: object) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json")


GUARDRAIL_ROUTES = (get_guardrails, change_guardrails, try_guardrails)
