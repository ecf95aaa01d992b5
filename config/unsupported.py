"""Settings that this version knows but cannot enforce."""

from __future__ import annotations

from .settings import Settings


def unsupported(settings: Settings) -> list[str]:
    """One sentence for each such setting that is in use: a process that would ignore a protection must not start."""
    guardrails = settings.guardrails
    in_use = {
        "guardrails.blocklist": bool(guardrails.blocklist),
        "guardrails.opa_endpoint": guardrails.opa_endpoint is not None,
    }
    return [f"{path} is set, but this version does not enforce it: remove it" for path, used in in_use.items() if used]
