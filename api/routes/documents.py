"""GET /openapi.json, and /docs: the same as a page that loads nothing from anywhere."""

from __future__ import annotations

from functools import cache
from html import escape
from typing import Any

import msgspec
from litestar import Response, get

from inferflux.config.version import package_version

from ..openapi import OPERATIONS, document
from ..operation import Operation

_REQUIRED = " <small>required</small>"
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h2{font-size:1.05rem;margin-top:2rem}code,td:first-child{font-family:ui-monospace,monospace}"
    "table{border-collapse:collapse}td{padding:.1rem 1rem .1rem 0;vertical-align:top}small{color:#666}"
    "@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}small{color:#999}a{color:#8bf}}"
)


@get("/openapi.json")
async def openapi_json() -> Response[bytes]:
    """The OpenAPI document."""
    return Response(_document(), media_type="application/json")


@get("/docs")
async def docs() -> Response[bytes]:
    """The OpenAPI document, to read."""
    return Response(_page(), media_type="text/html")


@cache
def _document() -> bytes:
    return msgspec.json.encode(document(package_version()))


@cache
def _page() -> bytes:
    schemas = msgspec.json.decode(_document())["components"]["schemas"]
    sections = "".join(_section(each, schemas) for each in OPERATIONS)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>InferFlux API</title><style>{_STYLE}</style>'
        f"<h1>InferFlux API</h1><p>Requests and answers have OpenAI's shapes; send your key as "
        f'<code>Authorization: Bearer KEY</code>. For programs: <a href="/openapi.json">openapi.json</a>.</p>'
        f"{sections}</html>"
    ).encode()


def _section(each: Operation, schemas: dict[str, Any]) -> str:
    scope = f" <small>scope {each.scope}</small>" if each.scope else ""
    title = f"<h2><code>{each.method.upper()} {escape(each.path)}</code>{scope}</h2><p>{escape(each.summary)}</p>"
    if each.request is None:
        return title
    schema = schemas[each.request.__name__]
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(_kind(field))}{_REQUIRED if name in required else ''}</td></tr>"
        for name, field in schema["properties"].items()
    )
    return f"{title}<table>{rows}</table>"


def _kind(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(_kind(each) for each in schema["anyOf"] if each.get("type") != "null")
    if "enum" in schema:
        return ", ".join(str(value) for value in schema["enum"] if value is not None)
    if schema.get("type") == "array":
        items = schema.get("items")
        return f"list of {_kind(items)}" if isinstance(items, dict) else "list"
    bounds = [f"{sign} {schema[key]}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([str(schema.get("type", "any")), *bounds])


_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
