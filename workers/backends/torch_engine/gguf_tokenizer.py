"""The tokenizer that a GGUF file describes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from inferflux.broker.errors import ConfigError

from .tokenizer import FastTokenizer, SpecialTokens

CONTROL, USER_DEFINED = 3, 4
ENDINGS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<|end_of_text|>", "<EOT>", "</s>")
"""Tokens that end a turn in one model or another; a model that has one of them as a control token ends with it."""

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(pattern: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _single_digits() -> Any:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


WORD_RULES: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "default": lambda: pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": _single_digits,
    "qwen2": lambda: _split(_WORDS % ""),
    "llama-bpe": lambda: _split(_WORDS % "{1,3}"),
}
"""How text is cut into words before pairs are merged, by the name that GGUF files use."""


def gguf_tokenizer(metadata: Mapping[str, Any], where: str) -> FastTokenizer:
    """Raises ConfigError naming the kind of tokenizer when it is not one that is served."""
    kind, rule = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or rule not in WORD_RULES:
        raise ConfigError(
            f"model.path: {where} has a tokenizer of kind {kind!r}, {rule!r}, which the torch backend does not read; "
            "serve the file with backend: llamacpp, or the model's safetensors folder"
        )
    texts: list[str] = metadata["tokenizer.ggml.tokens"]
    kinds: list[int] = metadata.get("tokenizer.ggml.token_type") or [1] * len(texts)
    merges = [tuple(merge.split(" ", 1)) for merge in metadata["tokenizer.ggml.merges"]]
    vocabulary = {text: token for token, text in enumerate(texts)}
    native = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=rule == "llama-bpe"))
    if rule == "qwen2":
        native.normalizer = normalizers.NFC()
    native.pre_tokenizer = WORD_RULES[rule]()
    native.decoder = decoders.ByteLevel()
    for token, (text, each) in enumerate(zip(texts, kinds, strict=True)):
        if each in (CONTROL, USER_DEFINED):
            native.add_tokens([AddedToken(text, special=each == CONTROL, normalized=False)])
            assert native.token_to_id(text) == token
    return FastTokenizer(native, _special_tokens(metadata, texts, kinds))


def _special_tokens(metadata: Mapping[str, Any], texts: list[str], kinds: list[int]) -> SpecialTokens:
    def text(name: str) -> str:
        token = metadata.get(f"tokenizer.ggml.{name}")
        return "" if token is None else texts[token]

    ids = {metadata.get(f"tokenizer.ggml.{name}") for name in ("eos_token_id", "eot_token_id", "eom_token_id")}
    named = {token for token, each in enumerate(kinds) if each == CONTROL and texts[token] in ENDINGS}
    return SpecialTokens(
        eos_ids=frozenset(token for token in ids | named if token is not None),
        eos_token=text("eos_token_id"),
        bos_token=text("bos_token_id"),
        adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", False)),
        chat_template=metadata.get("tokenizer.chat_template"),
    )
