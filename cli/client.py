"""The HTTP client behind every command that talks to a server."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec

from .errors import CommandFailed, ServerRefused

_LOOPBACK = ("127.0.0.1", "::1", "localhost")
_FIXES = {
    "invalid_api_key": "set INFERCTL_API_KEY or pass --api-key",
    "insufficient_scope": "use a key that has the scope",
    "model_not_found": "`inferctl models` lists what there is",
    "no_backend": "start a worker for this model, or look at `inferctl status`",
}


class Event(msgspec.Struct, frozen=True):
    """One server-sent event."""

    data: str
    name: str = "message"
    id: str | None = None


def parse_events(chunks: Iterable[bytes]) -> Iterator[Event]:
    """Server-sent events (WHATWG HTML, section 9.2) out of a byte stream cut anywhere.

    Only CR LF and LF end a line: text may hold every other character that Unicode counts as a line break.
    """
    name, ident, data = "message", None, list[str]()
    for line in _lines(chunks):
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield Event("\n".join(data), name, ident)
            name, data = "message", []
        elif field == "data":
            data.append(value)
        elif field == "event":
            name = value
        elif field == "id":
            ident = value


class Client:
    """Calls one server. Every failure is a CommandFailed that says what to do."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        verify: bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).hostname:
            raise CommandFailed(f"{url!r} is not a server's URL: write it as http://HOST:PORT")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            verify=verify,
            # A proxy from the environment has no business between this machine and itself.
            trust_env=urlsplit(self.url).hostname not in _LOOPBACK,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._http.close()

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at a path."""
        return self._call("GET", path)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that answers a JSON body."""
        return self._call("POST", path, body)

    def put(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._call("PUT", path, body)

    def delete(self, path: str) -> dict[str, Any]:
        return self._call("DELETE", path)

    def upload(self, path: str, file: Path, fields: Mapping[str, str]) -> dict[str, Any]:
        """The JSON object that answers a form with a file, which is sent as it is read."""
        try:
            content = file.open("rb")
        except OSError as error:
            raise CommandFailed(f"{file} cannot be read: {error.strerror}") from None
        with content, self._explained():
            response = self._http.post(path, files={"file": (file.name, content)}, data=dict(fields))
        return _answered(response)

    def download(self, path: str, out: IO[bytes]) -> int:
        """Write what is at a path as it comes; how many bytes that were."""
        num_bytes = 0
        with self._explained(), self._http.stream("GET", path) as response:
            if response.is_error:
                response.read()
                raise _refusal(response.status_code, _object(response))
            for chunk in response.iter_bytes():
                out.write(chunk)
                num_bytes += len(chunk)
        return num_bytes

    def probe(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON object whatever the status is; an answer that is no object is an empty one."""
        with self._explained():
            response = self._http.get(path)
        return response.status_code, _object(response)

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The chunks of a streamed answer. An error event, or an end without `[DONE]`, raises CommandFailed."""
        with self._explained(), self._http.stream("POST", path, json={**body, "stream": True}) as response:
            if response.is_error:
                response.read()
                raise _refusal(response.status_code, _object(response))
            for event in parse_events(response.iter_bytes()):
                if event.data == "[DONE]":
                    return
                chunk = msgspec.json.decode(event.data)
                if "error" in chunk:
                    raise _refusal(response.status_code, chunk)
                yield chunk
        raise CommandFailed("the stream ended before the answer did: look at the server's log")

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        with self._explained():
            response = self._http.request(method, path, json=body)
        return _answered(response)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError as error:
            raise CommandFailed(
                f"no server answers at {self.url} ({error}): start one with `inferctl serve`, "
                "or point INFERCTL_URL or --url at yours"
            ) from None
        except httpx.TimeoutException:
            raise CommandFailed(f"{self.url} did not answer in time: look at `inferctl status`") from None
        except httpx.HTTPError as error:
            raise CommandFailed(f"the connection to {self.url} broke: {error}") from None


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")


def _answered(response: httpx.Response) -> dict[str, Any]:
    answer = _object(response)
    if response.is_error:
        raise _refusal(response.status_code, answer)
    return answer


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _refusal(status: int, answer: Mapping[str, Any]) -> ServerRefused:
    error = answer.get("error")
    if not isinstance(error, Mapping):
        return ServerRefused(f"the server answered with HTTP status {status}", status=status, code=None)
    code = error.get("code")
    fix = _FIXES.get(str(code))
    message = f"{error.get('message', 'the server refused')} [{code or error.get('type')}]"
    return ServerRefused(f"{message}: {fix}" if fix else message, status=status, code=code)
