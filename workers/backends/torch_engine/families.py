"""The model families served: how each one's config.json is read. A family is a function and a row of the table."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from inferflux.broker.errors import ConfigError

from .architecture import Architecture, Rope, RopeKind

Config = Mapping[str, Any]


def read_config(config: Config, where: str) -> Architecture:
    """The architecture that a Hugging Face config.json describes. Raises ConfigError naming what is not served."""
    names = config.get("architectures") or []
    name = names[0] if names else "none"
    family = FAMILIES.get(name)
    if family is None:
        raise ConfigError(f"{where}: the architecture {name!r} is not served; known: {', '.join(FAMILIES)}")
    if config.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"{where}: hidden_act {config['hidden_act']!r} is not served; only silu is")
    for field in (*REQUIRED, *OPTIONAL):
        value = config.get(field)
        if not (_is_positive(value) or (value is None and field in OPTIONAL)):
            raise ConfigError(f"{where}: {field} must be a whole number above 0, not {value!r}")
    try:
        architecture = family(config, where)
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"{where}: a value is of another kind than it should be: {error}") from error
    if architecture.num_heads % architecture.num_kv_heads or architecture.head_size % 2:
        raise ConfigError(
            f"{where}: {architecture.num_heads} heads of {architecture.head_size} features cannot share "
            f"{architecture.num_kv_heads} heads of keys; groups must be equal and the features even"
        )
    return architecture


def _is_positive(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def llama(config: Config, where: str) -> Architecture:
    """Llama, SmolLM and what else is built like them."""
    biased = bool(config.get("attention_bias", False))
    return _decoder(
        config,
        where,
        family="llama",
        qkv_bias=biased,
        output_bias=biased,
        feed_forward_bias=bool(config.get("mlp_bias", False)),
        windows=(None,) * config["num_hidden_layers"],
    )


def mistral(config: Config, where: str) -> Architecture:
    """Llama with a sliding window in every layer, unless the config says null."""
    windows = (config.get("sliding_window", 4096),) * config["num_hidden_layers"]
    return _decoder(config, where, family="mistral", windows=windows)


def qwen2(config: Config, where: str) -> Architecture:
    """Biases on queries, keys and values; a sliding window in the upper layers when it is switched on."""
    return _decoder(config, where, family="qwen2", qkv_bias=True, windows=_upper_windows(config))


def qwen3(config: Config, where: str) -> Architecture:
    """Queries and keys of each head are normalized before they are rotated. Heads have 128 features by default."""
    config = {"head_dim": 128, **config}
    biased = bool(config.get("attention_bias", False))
    return _decoder(
        config,
        where,
        family="qwen3",
        qkv_bias=biased,
        output_bias=biased,
        normalizes_heads=True,
        windows=_upper_windows(config),
    )


FAMILIES: dict[str, Callable[[Config, str], Architecture]] = {
    "LlamaForCausalLM": llama,
    "MistralForCausalLM": mistral,
    "Qwen2ForCausalLM": qwen2,
    "Qwen3ForCausalLM": qwen3,
}
STRETCHES: dict[str, RopeKind] = {"linear": "linear", "llama3": "llama3", "yarn": "yarn"}
REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
)
OPTIONAL = ("num_key_value_heads", "head_dim", "sliding_window")


def _decoder(config: Config, where: str, **of_family: Any) -> Architecture:
    num_heads = config["num_attention_heads"]
    return Architecture(
        vocab_size=config["vocab_size"],
        hidden_size=config["hidden_size"],
        feed_forward_size=config["intermediate_size"],
        num_layers=config["num_hidden_layers"],
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        head_size=config.get("head_dim") or config["hidden_size"] // num_heads,
        trained_length=config["max_position_embeddings"],
        norm_epsilon=_number(config, "rms_norm_eps", 1e-6, where),
        rope=_rope(config, where),
        ties_embeddings=bool(config.get("tie_word_embeddings", False)),
        **of_family,
    )


def _number(config: Config, field: str, default: float, where: str) -> float:
    value = config.get(field, default)
    if not isinstance(value, int | float):
        raise ConfigError(f"{where}: {field} must be a number, not {value!r}")
    return float(value)


def _upper_windows(config: Config) -> tuple[int | None, ...]:
    num_layers: int = config["num_hidden_layers"]
    window: int | None = config.get("sliding_window")
    if not config.get("use_sliding_window", False):
        return (None,) * num_layers
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 28)
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _rope(config: Config, where: str) -> Rope:
    """Of `rope_parameters`, or of the older `rope_theta` and `rope_scaling`.

    Dynamic scaling begins beyond the trained length, which no sequence here passes: up to there it is the default.
    """
    scaling = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    theta = float(scaling.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    kind: str = scaling.get("rope_type") or scaling.get("type") or "default"
    if float(scaling.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0) != 1.0:
        raise ConfigError(f"{where}: partial_rotary_factor is not served for this family")
    if kind in ("default", "dynamic"):
        return Rope(theta=theta)
    if kind not in STRETCHES:
        raise ConfigError(
            f"{where}: rope scaling {kind!r} is not served; known: default, dynamic, linear, llama3, yarn"
        )
    try:
        return Rope(
            theta=theta,
            kind=STRETCHES[kind],
            factor=float(scaling["factor"]),
            original_length=scaling.get("original_max_position_embeddings") or config["max_position_embeddings"],
            low_freq_factor=float(scaling.get("low_freq_factor", 1.0)),
            high_freq_factor=float(scaling.get("high_freq_factor", 4.0)),
            beta_fast=float(scaling.get("beta_fast") or 32.0),
            beta_slow=float(scaling.get("beta_slow") or 1.0),
            attention_factor=scaling.get("attention_factor") or _attention_factor(scaling),
            truncate=bool(scaling.get("truncate", True)),
        )
    except KeyError as error:
        raise ConfigError(f"{where}: rope scaling {kind!r} lacks {error.args[0]!r}") from error


def _attention_factor(scaling: Config) -> float | None:
    """Of DeepSeek's two weights of the factor's logarithm, where both are there."""
    weights = [scaling.get(name) for name in ("mscale", "mscale_all_dim")]
    if not all(weights):
        return None
    logarithm = math.log(max(float(scaling["factor"]), 1.0))
    above, below = (0.1 * float(weight) * logarithm + 1.0 for weight in weights if weight)
    return above / below
