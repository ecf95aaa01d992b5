"""GET /ui: the operator's page, from files of this package. Its data needs a key; the page itself has none in it."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from litestar import Response, get
from litestar.params import FromPath

from inferflux.broker.errors import Code, RequestError

# Nothing from elsewhere, nothing inline, nobody's frame; what the page calls is this replica.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_TYPES = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "session.js": "text/javascript; charset=utf-8",
    "metrics.js": "text/javascript; charset=utf-8",
    "playground.js": "text/javascript; charset=utf-8",
}


@get("/ui")
async def ui_page() -> Response[bytes]:
    """The page."""
    return _file("index.html")


@get("/ui/{name:str}")
async def ui_file(name: FromPath[str]) -> Response[bytes]:
    """What the page is made of."""
    if name not in _TYPES:
        raise RequestError(Code.NOT_FOUND, "the operator's page has no such file; it is at /ui")
    return _file(name)


def _file(name: str) -> Response[bytes]:
    return Response(_content(name), media_type=_TYPES[name], headers=_HEADERS)


@cache
def _content(name: str) -> bytes:
    return files("inferflux.api").joinpath("ui", name).read_bytes()
