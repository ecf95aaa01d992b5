"""From messages to tokens: the model's own chat template, and no way for a message to speak as the template."""

from __future__ import annotations

import json
import re
import secrets
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from inferflux.broker.errors import Code, RequestError
from inferflux.broker.wire.requests import Message

from .backends.backend import Tokenizer

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""For a model that brings no template."""

_ROLES = {"developer": "system"}
"""OpenAI's newer name for an old role, which most templates do not know."""

MAX_RENDERED_CHARS = 16 * 1024 * 1024
MAX_POWER_BITS = 4096


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """A template comes with a model file, so it is code from elsewhere: it reaches no attribute of Python's, changes
    nothing it is given, and the short ways to fill the memory are closed."""

    intercepted_binops = frozenset(("*", "**"))

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
        self.globals["raise_exception"] = _raise_exception
        self.filters["tojson"] = _to_json

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "**" and isinstance(left, int) and left.bit_length() * right > MAX_POWER_BITS:
            raise jinja2.TemplateError("a power is too large")
        for sized, count in ((left, right), (right, left)):
            if isinstance(sized, Sequence) and isinstance(count, int) and len(sized) * count > MAX_RENDERED_CHARS:
                raise jinja2.TemplateError("a repeated value is too long")
        return super().call_binop(context, operator, left, right)


class Renderer:
    """Turns what a request brings into the tokens a model reads; any thread.

    Text in a message that looks like one of the model's special tokens stays text. A conversation without such text,
    which is nearly every one, is rendered and tokenized whole, as llama.cpp does it. Otherwise the template is
    rendered with placeholders in those messages' place, and only the template's own parts are read with special
    tokens. A template that treats the placeholders differently from the messages is not served such a conversation.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._template: jinja2.Template | None = None
        self._flaw = ""
        source = tokenizer.chat_template or CHATML
        self._knows_developer = "developer" in source
        try:
            self._template = TemplateEnvironment().from_string(source)
        except jinja2.TemplateError as error:
            self._flaw = str(error)

    def text(self, prompt: str) -> list[int]:
        """The tokens of a prompt that is sent as it is. It may use special tokens: nothing is wrapped around it."""
        return self._tokenizer.encode(prompt, special=True, bos=True)

    def chat(self, messages: Sequence[Message], *, now_s: float | None = None) -> list[int]:
        """The tokens of a conversation up to where the assistant speaks. `now_s` is the time a template may print.

        Raises RequestError when the template refuses the messages, is broken, or cannot be kept apart from them.
        """
        now_s = time.time() if now_s is None else now_s
        fields = [_fields(message) for message in messages]
        if not self._knows_developer:
            fields = [values | {"role": _ROLES.get(values["role"], values["role"])} for values in fields]
        rendered = self._render(fields, now_s)
        if not any(self._has_special_tokens(value) for values in fields for value in values.values()):
            return self._encode(rendered, starts=rendered)
        nonce = secrets.token_hex(8)
        hidden: list[str] = []
        masked = [{key: self._mask(value, nonce, hidden) for key, value in values.items()} for values in fields]
        # Odd parts are numbers of hidden values.
        parts = re.split(rf"\[{nonce}:(\d+)\]", self._render(masked, now_s))
        values = _restore(parts, hidden, rendered)
        tokens = self._encode(parts[0], starts=rendered)
        for template_part, value in zip(parts[2::2], values, strict=True):
            tokens += self._tokenizer.encode(value, special=False, bos=False)
            tokens += self._tokenizer.encode(template_part, special=True, bos=False)
        return tokens

    def _encode(self, text: str, *, starts: str) -> list[int]:
        """Tokens of the template's own text; many templates write the beginning-of-sequence token themselves."""
        bos_token = self._tokenizer.bos_token
        return self._tokenizer.encode(text, special=True, bos=not (bos_token and starts.startswith(bos_token)))

    def _has_special_tokens(self, value: str) -> bool:
        plain = self._tokenizer.encode(value, special=False, bos=False)
        return plain != self._tokenizer.encode(value, special=True, bos=False)

    def _mask(self, value: str, nonce: str, hidden: list[str]) -> str:
        if not self._has_special_tokens(value):
            return value
        hidden.append(value)
        return f"[{nonce}:{len(hidden) - 1}]"

    def _render(self, messages: Sequence[dict[str, str]], now_s: float) -> str:
        if self._template is None:
            raise _template_error(f"is broken: {self._flaw}")
        context = {
            "messages": messages,
            "add_generation_prompt": True,
            "bos_token": self._tokenizer.bos_token,
            "eos_token": self._tokenizer.eos_token,
            "strftime_now": lambda form: time.strftime(form, time.localtime(now_s)),
        }
        pieces, num_chars = [], 0
        try:
            for piece in self._template.generate(context):
                num_chars += len(piece)
                if num_chars > MAX_RENDERED_CHARS:
                    raise jinja2.TemplateError(f"it renders more than {MAX_RENDERED_CHARS} characters")
                pieces.append(piece)
        except jinja2.UndefinedError as error:
            raise _template_error(f"needs something that the messages lack: {error}") from error
        except jinja2.TemplateError as error:
            raise _template_error(f"refuses these messages: {error}") from error
        except Exception as error:
            raise _template_error(f"fails on these messages: {error!r}") from error
        return "".join(pieces)


def _restore(parts: Sequence[str], hidden: Sequence[str], rendered: str) -> list[str]:
    """The values behind the placeholders, as the template shows them: whole, or trimmed. Raises RequestError when
    putting them back does not give what the template renders of the messages themselves."""
    numbers = [int(number) for number in parts[1::2]]
    for shown in (hidden, [value.strip() for value in hidden]):
        values = [shown[number] for number in numbers]
        texts = [*parts]
        texts[1::2] = values
        if "".join(texts) == rendered:
            return values
    raise RequestError(
        Code.INVALID_REQUEST,
        "a message contains the text of a special token, and this model's chat template offers no way to tell the two "
        "apart; remove that text from the messages",
        param="messages",
    )


def _fields(message: Message) -> dict[str, str]:
    fields = {"role": message.role, "content": message.content}
    if message.name is not None:
        fields["name"] = message.name
    if message.tool_call_id is not None:
        fields["tool_call_id"] = message.tool_call_id
    return fields


def _template_error(text: str) -> RequestError:
    return RequestError(Code.INVALID_REQUEST, f"the model's chat template {text}", param="messages")


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, indent: int | None = None) -> str:
    """As templates expect it: for the model, not for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
