"""What `inferctl` says when it cannot do what was asked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import msgspec

from inferflux.config.errors import InferFluxError

_FIXES = {
    "invalid_api_key": "set INFERCTL_API_KEY or pass --api-key",
    "insufficient_scope": "use a key that has the scope",
    "model_not_found": "`inferctl models` lists what there is",
    "no_backend": "start a worker for this model, or look at `inferctl status`",
}


class CommandFailed(InferFluxError):
    """One line for stderr that names the cause and, where there is one, the fix."""


class ServerRefused(CommandFailed):
    """The server answered with an error; `status` and `code` are its own."""

    def __init__(self, message: str, *, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    @classmethod
    def told(cls, status: int, body: bytes | str) -> Self:
        """From the body of an answer, or of an error event."""
        try:
            answer = msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            answer = None
        error = answer.get("error") if isinstance(answer, Mapping) else None
        if not isinstance(error, Mapping):
            return cls(f"the server answered with HTTP status {status}", status=status, code=None)
        code = error.get("code")
        fix = _FIXES.get(str(code))
        message = f"{error.get('message', 'the server refused')} [{code or error.get('type')}]"
        return cls(f"{message}: {fix}" if fix else message, status=status, code=code)
