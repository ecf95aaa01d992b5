"""Entries of the control plane: fairness, guardrails, models, limits, keys, tenants, caches, and how they are sealed.

They are strict: an unknown field is a mistake of whoever writes one.
"""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from inferflux.config.settings import Scope, ServiceClassName

from .base import Wire
from .requests import Message


class Fairness(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators changed while the fleet runs: it wins over the settings. The value of `policy` `fairness`.

    Strict, because with nothing required any object would do for one, and reset what is in force.
    """

    weights: dict[str, Annotated[float, Meta(gt=0)]] = {}
    min_share: dict[Literal["default", "batch"], Annotated[float, Meta(ge=0, le=1)]] = {}


GuardrailAction: TypeAlias = Literal["block", "redact", "flag"]

GuardrailStage: TypeAlias = Literal["both", "input", "output"]


class GuardrailSet(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Terms under one name, what is done about them, and whether in prompts, in answers or in both.

    Without terms it says how one of the sets is applied that InferFlux brings along.
    """

    terms: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] = ()
    action: GuardrailAction = "block"
    stage: GuardrailStage = "both"


class Guardrails(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators changed while the fleet runs: it wins over the settings. The value of `policy` `guardrails`.

    `active` names the sets in force, and single terms; None leaves that to the settings.
    """

    active: tuple[Annotated[str, Meta(min_length=1, max_length=256)], ...] | None = None
    sets: dict[Annotated[str, Meta(min_length=1, max_length=64)], GuardrailSet] = {}


ModelName: TypeAlias = Annotated[str, Meta(min_length=1)]

Limit: TypeAlias = Annotated[int, Meta(ge=1)]


class ModelRecord(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the registry. `path` is a file or folder on the workers' machines; without one the stub serves.

    What is missing at `path` is fetched from `source` first, a URL or `hf:ORG/REPO/FILE`. `hardware` is the class of
    workers that load it. A limit that is None is left to each worker's settings.
    """

    id: ModelName
    path: str | None = None
    source: str | None = None
    backend: Literal["auto", "llamacpp", "torch", "stub"] = "auto"
    aliases: tuple[ModelName, ...] = ()
    hardware: Literal["any", "cpu", "gpu"] = "any"
    context_length: Limit | None = None
    max_batch_size: Limit | None = None
    max_batch_tokens: Limit | None = None
    chunked_prefill_tokens: Limit | None = None


class ModelChange(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators changed of a model while the fleet runs, whoever owns its record; None leaves the record's value.

    A new number of `num_reloads` has its engine made anew.
    """

    aliases: tuple[ModelName, ...] | None = None
    hardware: Literal["any", "cpu", "gpu"] | None = None
    max_batch_size: Limit | None = None
    max_batch_tokens: Limit | None = None
    chunked_prefill_tokens: Limit | None = None
    num_reloads: int = 0


class FileMark(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which file's models are in force: its path, a digest of what it says, the replica that applied it, and when."""

    path: str
    digest: str
    replica: str
    at: float


class ModelRegistry(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Every model of the fleet. The value of `registry` `models`.

    `listed` are those of the registry file and the settings, and change with them; `loaded` those that the admin API
    added. `default` is the operators' choice and wins over `listed_default`.
    """

    listed: tuple[ModelRecord, ...] = ()
    listed_default: str | None = None
    loaded: tuple[ModelRecord, ...] = ()
    default: str | None = None
    changes: dict[str, ModelChange] = {}
    file: FileMark | None = None


NumAllowed = Annotated[int, Meta(ge=0, le=2**53)]
"""How many of something; 0 is as many as one likes."""


class RateLimit(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a key or a tenant may use up in a minute; None leaves it to what is said of all."""

    requests_per_minute: NumAllowed | None = None
    tokens_per_minute: NumAllowed | None = None


class TenantLimit(RateLimit, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a tenant may use up, over all its keys and what it publishes itself."""

    tokens_per_month: NumAllowed | None = None


class Limits(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Limits that operators set while the fleet runs: of every key, of every tenant, and of those named. The value of
    `policy` `limits`."""

    key: RateLimit = RateLimit()
    tenant: TenantLimit = TenantLimit()
    keys: dict[str, RateLimit] = {}
    tenants: dict[str, TenantLimit] = {}


class ApiKey(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One API key, without the key: `digest` is its SHA-256, hexadecimal. The value of `tenants` `key.<id>`.

    An empty `models` allows every model. `expires` is None for a key that lasts until it is revoked.
    """

    id: str
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    tenant: str
    scopes: tuple[Scope, ...]
    models: tuple[str, ...] = ()
    name: str = ""
    created: float = 0.0
    expires: float | None = None


class TenantRecord(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators say of a tenant while the fleet runs. The value of `tenants` `tenant.<token>`.

    What is None is left to the settings.
    """

    id: str
    weight: Annotated[float, Meta(gt=0)] | None = None
    classes: Annotated[tuple[ServiceClassName, ...], Meta(min_length=1)] | None = None
    max_queued: Annotated[int, Meta(ge=1)] | None = None
    max_running: Annotated[int, Meta(ge=1)] | None = None
    cache_group: str | None = None
    publish: bool | None = None
    file_quota_bytes: Annotated[int, Meta(ge=1)] | None = None
    file_retention_s: Annotated[float, Meta(ge=1)] | None = None


class WarmPrefix(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How prompts of a tenant begin: every worker of the model computes it, so that its prefix cache has it.

    Either the text of prompts, or the first messages of conversations.
    """

    id: str
    model: str
    tenant: str
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    at: float = 0.0


class CacheOrders(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What operators want of the prefix caches: how often each model's was cleared, and what they shall hold. The value
    of `policy` `cache`."""

    cleared: dict[str, int] = {}
    warm: tuple[WarmPrefix, ...] = ()


class VaultKey(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The key of a sealed policy store, wrapped by a passphrase: scrypt (RFC 7914), then AES-256-GCM. The value of
    `policy` `vault`."""

    n: int
    r: int
    p: int
    salt: bytes
    nonce: bytes
    wrapped: bytes
    version: Literal[1] = 1


class SealedRecord(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry of a sealed policy store: AES-256-GCM, bound to bucket, key and generation, which grows by one with
    each change."""

    generation: Annotated[int, Meta(ge=1)]
    nonce: bytes
    box: bytes
    version: Literal[1] = 1


class Manifest(Wire, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The generation of every sealed entry, by `bucket/key`: what a process that starts must find at least. The value
    of `policy` `manifest`, sealed itself."""

    generations: dict[str, int] = {}
