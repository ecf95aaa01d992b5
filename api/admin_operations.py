"""The operations under /v1/admin."""

from __future__ import annotations

from .operation import Operation
from .queues import CancelAnswer
from .routes.admin_models import DefaultAnswer, DefaultRequest, LoadRequest, ModelNameRequest, RegistryAnswer
from .routes.api_keys import ApiKeyRequest, NewApiKeyAnswer
from .routes.cache import CacheAnswer, WarmRequest
from .routes.dead import RetryAnswer, WholeLetterAnswer
from .routes.fairness import FairnessAnswer, FairnessRequest
from .routes.guardrails import GuardrailsAnswer, GuardrailsRequest, TrialAnswer, TrialRequest
from .routes.policy import PolicyAnswer, RepairAnswer
from .routes.rate_limit import RateLimitAnswer, RateLimitRequest
from .routes.routing import RoutingRequest, SchedulerRequest
from .routes.tenants import TenantAnswer, TenantRequest
from .routes.usage import UsageAnswer
from .status import StatusAnswer

ADMIN_OPERATIONS = (
    Operation(method="get", path="/v1/admin/workers", summary="Every live worker's last heartbeat.", scope="admin"),
    Operation(
        method="get",
        path="/v1/admin/queue",
        summary="Every lane that holds prompts: how many wait and run, and how old the oldest is.",
        scope="admin",
    ),
    Operation(
        method="delete",
        path="/v1/admin/requests/{request_id}",
        summary="Cancel a request, queued or running.",
        scope="admin",
        answer=CancelAnswer,
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/queue/dead",
        summary="Requests that were given up, without their prompts.",
        scope="admin",
    ),
    Operation(
        method="get",
        path="/v1/admin/queue/dead/{letter_id}",
        summary="One of them, with its prompt.",
        scope="admin",
        answer=WholeLetterAnswer,
    ),
    Operation(
        method="post",
        path="/v1/admin/queue/dead/{letter_id}/retry",
        summary="Run its prompt again as a new request, and wait for the answer.",
        scope="admin",
        answer=RetryAnswer,
    ),
    Operation(
        method="delete", path="/v1/admin/queue/dead/{letter_id}", summary="Forget it.", scope="admin", dry_run=True
    ),
    Operation(
        method="get",
        path="/v1/admin/fairness",
        summary="Weights and class shares in force.",
        scope="admin",
        answer=FairnessAnswer,
    ),
    Operation(
        method="put",
        path="/v1/admin/fairness",
        summary="Change weights and class shares while the fleet runs.",
        scope="admin",
        request=FairnessRequest,
        answer=FairnessAnswer,
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/guardrails",
        summary="Guardrails in force, and the sets there are.",
        scope="admin",
        answer=GuardrailsAnswer,
    ),
    Operation(
        method="put",
        path="/v1/admin/guardrails",
        summary="Change guardrails while the fleet runs.",
        scope="admin",
        request=GuardrailsRequest,
        answer=GuardrailsAnswer,
        dry_run=True,
    ),
    Operation(
        method="post",
        path="/v1/admin/guardrails/test",
        summary="Say what would become of a text.",
        scope="admin",
        request=TrialRequest,
        answer=TrialAnswer,
    ),
    Operation(
        method="get",
        path="/v1/admin/rate_limit",
        summary="Limits of keys and tenants in force.",
        scope="admin",
        answer=RateLimitAnswer,
    ),
    Operation(
        method="put",
        path="/v1/admin/rate_limit",
        summary="Change limits of keys and tenants while the fleet runs.",
        scope="admin",
        request=RateLimitRequest,
        answer=RateLimitAnswer,
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/usage",
        summary="Requests and tokens of each tenant, key and model by the day or month, and this month's budgets.",
        scope="admin",
        answer=UsageAnswer,
        query=("tenant", "key", "model", "since", "until", "by"),
    ),
    Operation(method="get", path="/v1/admin/api_keys", summary="Every API key, by all but itself.", scope="admin"),
    Operation(
        method="post",
        path="/v1/admin/api_keys",
        summary="Make an API key; the answer is the only one that shows it.",
        scope="admin",
        request=ApiKeyRequest,
        answer=NewApiKeyAnswer,
        status=201,
        dry_run=True,
    ),
    Operation(
        method="delete",
        path="/v1/admin/api_keys/{key_id}",
        summary="Revoke an API key.",
        scope="admin",
        dry_run=True,
    ),
    Operation(method="get", path="/v1/admin/tenants", summary="Every tenant that is named anywhere.", scope="admin"),
    Operation(
        method="get",
        path="/v1/admin/tenants/{tenant_id}",
        summary="One tenant as it is in force.",
        scope="admin",
        answer=TenantAnswer,
    ),
    Operation(
        method="put",
        path="/v1/admin/tenants/{tenant_id}",
        summary="Change a tenant, or make one.",
        scope="admin",
        request=TenantRequest,
        answer=TenantAnswer,
        dry_run=True,
    ),
    Operation(
        method="delete",
        path="/v1/admin/tenants/{tenant_id}",
        summary="Give a tenant back to the settings.",
        scope="admin",
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/policy",
        summary="Whether the policy store is sealed, and what of it this replica refuses.",
        scope="admin",
        answer=PolicyAnswer,
    ),
    Operation(
        method="post",
        path="/v1/admin/policy/repair",
        summary="Put back what is in force where somebody without the passphrase changed it.",
        scope="admin",
        answer=RepairAnswer,
        dry_run=True,
    ),
    Operation(method="get", path="/v1/admin/status", summary="This API process.", scope="admin", answer=StatusAnswer),
    Operation(
        method="get",
        path="/v1/admin/models",
        summary="Every model of the registry, with its state on each worker.",
        scope="admin",
        answer=RegistryAnswer,
    ),
    Operation(
        method="post",
        path="/v1/admin/models",
        summary="Load a model on every worker of its class.",
        scope="admin",
        request=LoadRequest,
        answer=RegistryAnswer,
        dry_run=True,
    ),
    Operation(
        method="delete",
        path="/v1/admin/models/{model_id}",
        summary="Unload a model that was loaded while running; what it has accepted is finished first.",
        scope="admin",
        answer=RegistryAnswer,
        dry_run=True,
    ),
    Operation(
        method="post",
        path="/v1/admin/models/reload",
        summary="Load a model once more.",
        scope="admin",
        request=ModelNameRequest,
        answer=RegistryAnswer,
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/models/default",
        summary="The model for requests that name none.",
        scope="admin",
        answer=DefaultAnswer,
    ),
    Operation(
        method="put",
        path="/v1/admin/models/default",
        summary="Choose the model for requests that name none.",
        scope="admin",
        request=DefaultRequest,
        answer=DefaultAnswer,
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/routing",
        summary="Under which names, and on which class of workers, each model is served.",
        scope="admin",
    ),
    Operation(
        method="put",
        path="/v1/admin/routing",
        summary="Change a model's other names, or the class of workers that loads it.",
        scope="admin",
        request=RoutingRequest,
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/scheduler",
        summary="Bounds of every model's engine steps.",
        scope="admin",
    ),
    Operation(
        method="put",
        path="/v1/admin/scheduler",
        summary="Change the bounds of a model's engine steps.",
        scope="admin",
        request=SchedulerRequest,
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/cache",
        summary="Every worker's prefix caches, and the prefixes that are kept warm.",
        scope="admin",
        answer=CacheAnswer,
    ),
    Operation(
        method="delete",
        path="/v1/admin/cache",
        summary="Have all workers forget the prefixes of one model, or of all.",
        scope="admin",
        answer=CacheAnswer,
        dry_run=True,
        query=("model",),
    ),
    Operation(
        method="post",
        path="/v1/admin/cache/warm",
        summary="Have workers compute how prompts begin, now and whenever an engine starts.",
        scope="admin",
        request=WarmRequest,
        answer=CacheAnswer,
        dry_run=True,
    ),
    Operation(
        method="get",
        path="/v1/admin/audit",
        summary="The newest line of each process's audit log, to verify the files by.",
        scope="admin",
    ),
)
