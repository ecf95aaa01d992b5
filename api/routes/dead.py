"""/v1/admin/queue/dead: requests that were given up, to look at, to retry and to drop."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, Response, delete, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.subjects import ServiceClass
from inferflux.broker.wire.requests import AnyPrompt, decode_prompt
from inferflux.config.logs import get_logger
from inferflux.registry.deadletters import DeadLetters, Letter
from inferflux.registry.tenants import Tenants

from ..admission import TIER_OF_CLASS
from ..answers import UsageAnswer
from ..ask import Ask
from ..assembly import assemble
from ..exchange import GONE, ClientGone
from ..gateway import Gateway
from ..problems import FailureError, respond

log = get_logger("api.dead")


class AttemptAnswer(msgspec.Struct, frozen=True):
    """A claim before the last: whose, when, and whether it was lost (`running`) or handed back (`released`)."""

    worker: str
    at: float
    state: str


class LetterAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter without its prompt. `at` is when it was given up, `num_bytes` the size of the prompt."""

    id: str
    request: str
    owner: str
    model: str
    service_class: str
    tenant: str
    code: str
    message: str
    at: float
    num_bytes: int
    attempts: list[AttemptAnswer]


class WholeLetterAnswer(LetterAnswer, frozen=True, kw_only=True):
    """With the prompt: as JSON where it is some, else as text."""

    headers: dict[str, str]
    prompt: Any


class RetriedChoice(msgspec.Struct, frozen=True):
    """One choice of a retried completion or chat; embeddings have no text."""

    index: int
    text: str
    finish_reason: str | None


class RetryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A letter that was answered under a new request id, and is gone."""

    id: str
    request: str
    choices: list[RetriedChoice]
    usage: UsageAnswer


@get("/queue/dead", opt={"scope": "admin"})
async def list_dead(dead_letters: NamedDependency[DeadLetters]) -> Response[bytes]:
    """Every dead letter, oldest first, without prompts."""
    letters = await dead_letters.all()
    return _respond({"object": "list", "data": [LetterAnswer(**_about(letter)) for letter in letters]})


@get("/queue/dead/{letter_id:str}", opt={"scope": "admin"})
async def get_dead(letter_id: FromPath[str], dead_letters: NamedDependency[DeadLetters]) -> Response[bytes]:
    """One dead letter with its prompt."""
    letter = await _found(dead_letters, letter_id)
    return _respond(WholeLetterAnswer(**_about(letter), headers=letter.about.headers, prompt=_prompt(letter.body)))


@post("/queue/dead/{letter_id:str}/retry", status_code=200, opt={"scope": "admin"})
async def retry_dead(
    request: Request[Any, Any, Any],
    letter_id: FromPath[str],
    dead_letters: NamedDependency[DeadLetters],
    gateway: NamedDependency[Gateway],
    tenants: NamedDependency[Tenants],
) -> Response[bytes]:
    """Run the prompt again, as a new request of its tenant with a new deadline, and wait for the answer.

    Whoever asked first is long gone, so the answer goes to the operator; hanging up cancels. The letter goes when it
    was answered, or when another letter took its place.
    """
    letter = await _found(dead_letters, letter_id)
    model = gateway.models.resolve(letter.about.model)
    if model is None:
        raise RequestError(Code.MODEL_NOT_FOUND, f"the model {letter.about.model!r} does not exist any more")
    tier = TIER_OF_CLASS[ServiceClass(letter.about.service_class)]

    def build(ident: str, created_s: float, deadline_s: float) -> AnyPrompt:
        prompt = decode_prompt(letter.body)
        return msgspec.structs.replace(prompt, id=ident, created=created_s, deadline=deadline_s)

    wanted = Ask(kind="completion", model=model.id, tier=tier, build=build, digest="")
    exchange = await gateway.dispatcher.submit(tenants.tenant(letter.about.tenant), model, wanted, letter.about.headers)
    log.info("dead letter retried", letter=letter_id, request=exchange.id)
    exchange.watch(request.receive)
    try:
        assembly = await assemble(exchange)
    except FailureError as error:
        if error.failure.code == Code.ATTEMPTS_EXHAUSTED:
            await dead_letters.drop(letter_id)
        raise
    except ClientGone:
        return respond(GONE)
    finally:
        exchange.close()
    await dead_letters.drop(letter_id)
    choices = [
        RetriedChoice(number, "".join(choice.texts), choice.finish_reason) for number, choice in assembly.choices()
    ]
    return _respond(
        RetryAnswer(id=letter_id, request=exchange.id, choices=choices, usage=UsageAnswer.of(assembly.usage))
    )


@delete("/queue/dead/{letter_id:str}", status_code=200, opt={"scope": "admin"})
async def drop_dead(
    letter_id: FromPath[str], dead_letters: NamedDependency[DeadLetters], dry_run: FromQuery[bool] = False
) -> Response[bytes]:
    """Forget a dead letter."""
    if dry_run:
        await _found(dead_letters, letter_id)
    elif not await dead_letters.drop(letter_id):
        raise _missing(letter_id)
    return _respond({"id": letter_id, "dropped": not dry_run, "dry_run": dry_run})


async def _found(dead_letters: DeadLetters, letter_id: str) -> Letter:
    letter = await dead_letters.get(letter_id)
    if letter is None:
        raise _missing(letter_id)
    return letter


def _missing(letter_id: str) -> RequestError:
    return RequestError(Code.NOT_FOUND, f"there is no dead letter {letter_id[:200]!r}")


def _about(letter: Letter) -> dict[str, Any]:
    about = letter.about
    return {
        "id": letter.id,
        "request": about.request,
        "owner": about.owner,
        "model": about.model,
        "service_class": about.service_class,
        "tenant": about.tenant,
        "code": about.reason.code,
        "message": about.reason.message,
        "at": about.at,
        "num_bytes": len(letter.body),
        "attempts": [AttemptAnswer(each.worker, each.at, each.state) for each in about.attempts],
    }


def _prompt(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return body.decode("utf-8", "replace")


def _respond(answer: object) -> Response[bytes]:
    return Response(msgspec.json.encode(answer), media_type="application/json")
