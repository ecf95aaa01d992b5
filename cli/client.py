"""The HTTP client behind every command that talks to a server."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Self
from urllib.parse import urlsplit

import httpx

from .errors import CommandFailed, ServerRefused
from .stream import Stream

_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class Client:
    """Calls one server. Every failure is a CommandFailed that says what to do.

    `url` may name several replicas, separated by commas: the first is called, and the others too for what is left of a
    stream that broke off.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = 600.0,
        verify: bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._urls = [each.strip().rstrip("/") for each in url.split(",")]
        for each in self._urls:
            if urlsplit(each).scheme not in ("http", "https") or not urlsplit(each).hostname:
                raise CommandFailed(f"{each!r} is not a server's URL: write it as http://HOST:PORT")
        self.url = self._urls[0]
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_s, connect=5.0),
            verify=verify,
            # A proxy from the environment has no business between this machine and itself.
            trust_env=not all(urlsplit(each).hostname in _LOOPBACK for each in self._urls),
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
                raise ServerRefused.told(response.status_code, response.read())
            for chunk in response.iter_bytes():
                out.write(chunk)
                num_bytes += len(chunk)
        return num_bytes

    def probe(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON object whatever the status is; an answer that is no object is an empty one."""
        with self._explained():
            response = self._http.get(path)
        return response.status_code, _object(response)

    def stream(
        self, path: str, body: Mapping[str, Any], *, resumable: bool = True
    ) -> Generator[dict[str, Any], None, None]:
        """The chunks of a streamed answer, read on elsewhere when it breaks off. An error event, or an answer that does
        not come to its end, raises CommandFailed. It is cancelled when it is left: close it to leave it at once."""
        with self._explained():
            yield from Stream(self._http, self._urls, path, body).chunks(resumable=resumable)

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


def _answered(response: httpx.Response) -> dict[str, Any]:
    answer = _object(response)
    if response.is_error:
        raise ServerRefused.told(response.status_code, response.content)
    return answer


def _object(response: httpx.Response) -> dict[str, Any]:
    try:
        answer = response.json()
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}
