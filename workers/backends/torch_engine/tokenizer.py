"""Tokenizers by Hugging Face's library, giving bytes for each token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tokenizers
from msgspec import Struct

from inferflux.broker.errors import ConfigError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class SpecialTokens(Struct, frozen=True, kw_only=True):
    """What a model says about its tokens besides the vocabulary. `adds_bos`: prompts begin with `bos_token`."""

    eos_ids: frozenset[int]
    eos_token: str = ""
    bos_token: str = ""
    adds_bos: bool = False
    chat_template: str | None = None


class FastTokenizer:
    """Two copies of one tokenizer: one that reads special tokens in a text, and one to which they are text."""

    def __init__(self, native: tokenizers.Tokenizer, special: SpecialTokens) -> None:
        native.no_truncation()
        native.no_padding()
        self._reading = native
        self._plain = tokenizers.Tokenizer.from_str(native.to_str())
        self._plain.encode_special_tokens = True
        self._special = special
        self._bos_id = native.token_to_id(special.bos_token) if special.bos_token else None
        self._pieces = _pieces(native)
        self.vocab_size = len(self._pieces)

    @classmethod
    def from_folder(cls, folder: Path) -> FastTokenizer:
        """Of tokenizer.json and the files beside it. Raises ConfigError when it cannot be read."""
        path = folder / "tokenizer.json"
        try:
            native = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ConfigError(
                f"model.path: {path} cannot be read: {error}; the folder needs the tokenizer in the form of "
                "Hugging Face's tokenizers library, which transformers saves beside the weights"
            ) from error
        return cls(native, _special_tokens(folder, native))

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._special.eos_ids

    @property
    def chat_template(self) -> str | None:
        return self._special.chat_template

    @property
    def bos_token(self) -> str:
        return self._special.bos_token

    @property
    def eos_token(self) -> str:
        return self._special.eos_token

    def encode(self, text: str, *, special: bool, bos: bool) -> list[int]:
        native = self._reading if special else self._plain
        tokens: list[int] = native.encode(text, add_special_tokens=False).ids
        if bos and self._special.adds_bos and self._bos_id is not None:
            tokens.insert(0, self._bos_id)
        return tokens

    def piece(self, token: int) -> bytes:
        # A model may have more rows of logits than its tokenizer has tokens.
        return self._pieces[token] if token < len(self._pieces) else b""


def _pieces(native: tokenizers.Tokenizer) -> list[bytes]:
    parts = [part for part in (native.decoder, native.pre_tokenizer) if part is not None]
    byte_level = any(b'"ByteLevel"' in part.__getstate__() for part in parts)
    added = native.get_added_tokens_decoder()
    pieces = [b""] * native.get_vocab_size(with_added_tokens=True)
    for text, token in native.get_vocab(with_added_tokens=True).items():
        if token >= len(pieces):
            pieces += [b""] * (token + 1 - len(pieces))
        if token in added:
            pieces[token] = b"" if added[token].special else added[token].content.encode()
        else:
            pieces[token] = _byte_level(text) if byte_level else _sentence_piece(text)
    return pieces


def _sentence_piece(text: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes((int(byte[1], 16),)) if byte else text.replace("\u2581", " ").encode()


def _byte_level(text: str) -> bytes:
    return bytes(_BYTE_OF[character] for character in text) if all(each in _BYTE_OF for each in text) else text.encode()


def _bytes_of_characters() -> dict[str, int]:
    """GPT-2's way to write every byte as a visible character: those that are visible stand for themselves."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + index): byte for index, byte in enumerate(hidden)}


_BYTE_OF = _bytes_of_characters()


def _special_tokens(folder: Path, native: tokenizers.Tokenizer) -> SpecialTokens:
    settings = _read_json(folder / "tokenizer_config.json")
    eos_token, bos_token = _text(settings.get("eos_token")), _text(settings.get("bos_token"))
    eos_ids = set(_numbers(_read_json(folder / "config.json").get("eos_token_id")))
    eos_ids.update(_numbers(_read_json(folder / "generation_config.json").get("eos_token_id")))
    if eos_token and (token := native.token_to_id(eos_token)) is not None:
        eos_ids.add(token)
    first = native.encode("", add_special_tokens=True).ids[:1]
    return SpecialTokens(
        eos_ids=frozenset(eos_ids),
        eos_token=eos_token,
        bos_token=bos_token,
        adds_bos=bool(bos_token) and first == [native.token_to_id(bos_token)],
        chat_template=_template(folder, settings),
    )


def _template(folder: Path, settings: dict[str, Any]) -> str | None:
    path = folder / "chat_template.jinja"
    if path.exists():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, each with a name
        template = next((each.get("template") for each in template if each.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def _read_json(path: Path) -> dict[str, Any]:
    """Empty when there is none: each of these files is optional."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path: {path} cannot be read: {error}") from error
    return content if isinstance(content, dict) else {}


def _text(token: Any) -> str:
    """A token is written as text, or as an object with its text in it."""
    return token.get("content", "") if isinstance(token, dict) else token or ""


def _numbers(value: Any) -> Iterable[int]:
    return [value] if isinstance(value, int) else value or ()
