"""Parameters: reading a body into its request, with every error named in the client's own terms.

A parameter that we do not support is refused by name. Where its value asks for nothing (null, an empty list, the
behaviour that we have anyway) it is accepted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from inferflux.broker.errors import Code, RequestError

R = TypeVar("R", bound=msgspec.Struct)

_REQUEST: Mapping[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "metadata": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_key": (),
    "prompt_cache_retention": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "safety_identifier": (),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
_MESSAGE: Mapping[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "reasoning_content": ("",),
    "refusal": (),
    "tool_calls": ([],),
}
_STREAM_OPTIONS: Mapping[str, tuple[Any, ...]] = {"include_obfuscation": (False,), "continuous_usage_stats": (False,)}
_MESSAGE_FIELDS = ("role", "content", "name", "tool_call_id")
_KEY = "key` in `"
_PART_TYPE = re.compile(r"\.content\[\d+\]\.type$")


def read(body: bytes, request_type: type[R]) -> R:
    """The request in a body. Raises RequestError for JSON that is none, and for the first field that is wrong."""
    try:
        try:
            return msgspec.json.decode(body, type=request_type)
        except msgspec.ValidationError as error:
            if "unknown field" not in str(error):
                raise
        plain = msgspec.json.decode(body)
        _strip(plain, request_type)
        return msgspec.convert(plain, request_type)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from None
    except UnicodeDecodeError:
        raise RequestError(Code.INVALID_JSON, "the request body is not valid UTF-8") from None
    except msgspec.DecodeError as error:
        raise RequestError(Code.INVALID_JSON, f"the request body is not valid JSON: {error}") from None
    except RecursionError:
        raise RequestError(Code.INVALID_JSON, "the request body is nested too deeply") from None


def unsupported(param: str, reason: str = "is not supported by this server; leave it out") -> RequestError:
    return RequestError(Code.UNSUPPORTED_PARAMETER, f"'{param}' {reason}", param=param)


def _invalid(text: str) -> RequestError:
    message, _, path = text.partition(" - at `")
    if path.startswith(_KEY):
        path, message = path.removeprefix(_KEY), f"a key {message[:1].lower()}{message[1:]}"
    param = path.removesuffix("`").removeprefix("$").removeprefix(".").replace("[...]", "")
    missing = re.search(r"missing required field `(.*)`", message)
    if missing:
        param = f"{param}.{missing[1]}" if param else missing[1]
        return RequestError(Code.INVALID_REQUEST, f"'{param}' is required", param=param)
    if _PART_TYPE.search(param):
        return unsupported(param, "must be 'text': this server takes no other kind of content")
    message = message[:1].lower() + message[1:]
    return RequestError(Code.INVALID_REQUEST, f"'{param}': {message}" if param else message, param=param or None)


def _strip(plain: Any, request_type: type[msgspec.Struct]) -> None:
    """Remove parameters that ask for nothing. Raises RequestError for every other unknown one."""
    _strip_object(plain, request_type.__struct_fields__, _REQUEST, "")
    _strip_object(plain.get("stream_options"), ("include_usage",), _STREAM_OPTIONS, "stream_options.")
    messages = plain.get("messages")
    for number, message in enumerate(messages if isinstance(messages, list) else ()):
        where = f"messages[{number}]."
        _strip_object(message, _MESSAGE_FIELDS, _MESSAGE, where)
        content = message.get("content") if isinstance(message, dict) else None
        for part_number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, dict) and part.get("type", "text") != "text":
                param = f"{where}content[{part_number}].type"
                raise unsupported(param, "must be 'text': this server takes no other kind of content")
            _strip_object(part, ("type", "text"), {}, f"{where}content[{part_number}].")


def _strip_object(plain: Any, known: Collection[str], harmless: Mapping[str, tuple[Any, ...]], where: str) -> None:
    if not isinstance(plain, dict):
        return
    for name in [name for name in plain if name not in known]:
        if name not in harmless:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise unsupported(where + name[:64], f"is not a parameter of this endpoint{hint}")
        if plain[name] is not None and plain[name] not in harmless[name]:
            raise unsupported(where + name)
        del plain[name]
