"""The tokenizer of a GGUF file, as llama.cpp reads it."""

from __future__ import annotations

import ctypes
from typing import Any

import llama_cpp.llama_cpp as lib


class LlamaCppTokenizer:
    """Reads the model's vocabulary, which does not change while it is loaded: any thread may use it."""

    def __init__(self, model: Any) -> None:
        self._vocab = lib.llama_model_get_vocab(model)
        self.vocab_size: int = lib.llama_vocab_n_tokens(self._vocab)
        self._eos_ids = frozenset(
            token for token in range(self.vocab_size) if lib.llama_vocab_is_eog(self._vocab, token)
        )
        self._pieces: list[bytes | None] = [None] * self.vocab_size
        template = lib.llama_model_chat_template(model, None)
        self._chat_template = None if template is None else template.decode(errors="replace")
        self._bos_token = self._text(lib.llama_vocab_bos(self._vocab))
        self._eos_token = self._text(lib.llama_vocab_eos(self._vocab))

    @property
    def eos_ids(self) -> frozenset[int]:
        return self._eos_ids

    @property
    def chat_template(self) -> str | None:
        return self._chat_template

    @property
    def bos_token(self) -> str:
        return self._bos_token

    @property
    def eos_token(self) -> str:
        return self._eos_token

    def encode(self, text: str, *, special: bool, bos: bool) -> list[int]:
        data = text.encode()
        size = len(data) + 2
        while True:
            buffer = (lib.llama_token * size)()
            count = lib.llama_tokenize(self._vocab, data, len(data), buffer, size, bos, special)
            if count >= 0:
                return list(buffer[:count])
            size = -count

    def piece(self, token: int) -> bytes:
        piece = self._pieces[token]
        if piece is None:
            piece = self._pieces[token] = self._read_piece(token)
        return piece

    def _read_piece(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count: int = lib.llama_token_to_piece(self._vocab, token, buffer, size, 0, False)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def _text(self, token: int) -> str:
        """A special token as the template writes it; empty when the model has none."""
        if token < 0:
            return ""
        text: bytes = lib.llama_vocab_get_text(self._vocab, token)
        return text.decode(errors="replace")
