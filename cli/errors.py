"""What `inferctl` says when it cannot do what was asked."""

from __future__ import annotations

from inferflux.config.errors import InferFluxError


class CommandFailed(InferFluxError):
    """One line for stderr that names the cause and, where there is one, the fix."""


class ServerRefused(CommandFailed):
    """The server answered with an error; `status` and `code` are its own."""

    def __init__(self, message: str, *, status: int, code: str | None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
