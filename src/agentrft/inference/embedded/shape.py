"""What `config.json` says about a Llama-shaped model, checked; refuses what the network cannot do."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentrft.core.errors import ModelError

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
"""Values of `model_type` the fast network runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rope:
    """Rotary position embedding: `default`, `linear`, or the frequency bands of Llama 3.1."""

    theta: float
    kind: str = "default"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    trained_context: int = 8192
    """Context before scaling, which the bands are cut by."""

    def inverse_frequencies(self, head_dim: int) -> list[float]:
        """Return head_dim / 2 angles per position, in radians."""
        plain = [self.theta ** (-2 * i / head_dim) for i in range(head_dim // 2)]
        if self.kind == "llama3":
            return [self._banded(frequency) for frequency in plain]
        return [frequency / self.factor for frequency in plain]

    def _banded(self, frequency: float) -> float:
        # Llama 3.1: long waves are stretched, short ones kept, those between interpolated.
        turns = self.trained_context * frequency / (2 * math.pi)
        span = self.high_frequency_factor - self.low_frequency_factor
        keep = min(1.0, max(0.0, (turns - self.low_frequency_factor) / span))
        return frequency * (keep + (1 - keep) / self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes and switches of one model."""

    family: str
    vocabulary: int
    width: int
    """Of the residual stream."""
    feed_forward: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    norm_eps: float
    rope: Rope
    context_tokens: int
    """Positions the model was made for."""
    tied: bool
    """Whether the output projection is the embedding."""
    qkv_bias: bool
    output_bias: bool
    feed_forward_bias: bool
    head_norm: bool
    """Whether queries and keys are normalised per head (Qwen3)."""

    @property
    def parameters(self) -> int:
        """How many numbers the weights hold, biases and norms left out."""
        projections = self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        layer = self.width * (projections + 3 * self.feed_forward)
        return self.layers * layer + self.vocabulary * self.width * (1 if self.tied else 2)


def read_config(folder: Path) -> dict[str, Any]:
    """Return `config.json`; raises ModelError if it is missing or not JSON."""
    path = folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"model folder {str(folder)!r} has no config.json") from None
    except json.JSONDecodeError as error:
        raise ModelError(f"{str(path)!r} is not JSON: {error}") from None


def read_shape(folder: Path, *, max_context_tokens: int) -> Shape:
    """Return the shape; raises ModelError for anything the network would compute wrongly."""
    config = read_config(folder)
    family = str(config.get("model_type", ""))
    if family not in FAMILIES:
        raise ModelError(
            f"model {str(folder)!r} has type {family!r}; supported are {', '.join(FAMILIES)}"
        )
    _refuse_unsupported(folder, config, max_context_tokens)
    try:
        heads = int(config["num_attention_heads"])
        width = int(config["hidden_size"])
        attention_bias = bool(config.get("attention_bias", False))
        shape = Shape(
            family=family,
            vocabulary=int(config["vocab_size"]),
            width=width,
            feed_forward=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or width // heads),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            rope=_read_rope(folder, config),
            context_tokens=int(config.get("max_position_embeddings", 2048)),
            tied=bool(config.get("tie_word_embeddings", False)),
            qkv_bias=family == "qwen2" or attention_bias,
            output_bias=family != "qwen2" and attention_bias,
            feed_forward_bias=bool(config.get("mlp_bias", False)),
            head_norm=family == "qwen3",
        )
    except KeyError as error:
        raise ModelError(f"config.json of {str(folder)!r} lacks {error.args[0]!r}") from None
    if max_context_tokens > shape.context_tokens:
        raise ModelError(
            f"max_context_tokens is {max_context_tokens} but model {str(folder)!r} was made for "
            f"{shape.context_tokens}; lower it"
        )
    return shape


def _refuse_unsupported(folder: Path, config: Mapping[str, Any], max_context_tokens: int) -> None:
    name = str(folder)
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise ModelError(f"model {name!r} uses activation {activation!r}; supported is 'silu'")
    if config.get("quantization_config"):
        raise ModelError(f"model {name!r} is quantised; convert its weights to bfloat16 first")
    window = config.get("sliding_window")
    layers = config.get("layer_types")
    sliding = (
        "sliding_attention" in layers
        if layers is not None
        else bool(config.get("use_sliding_window", config.get("model_type") == "mistral"))
    )
    if sliding and window is not None and int(window) < max_context_tokens:
        raise ModelError(
            f"model {name!r} attends through a sliding window of {window} tokens, less than "
            f"max_context_tokens {max_context_tokens}; lower max_context_tokens to the window"
        )


def _read_rope(folder: Path, config: Mapping[str, Any]) -> Rope:
    # transformers 5 writes `rope_parameters`; older folders `rope_theta` and `rope_scaling`.
    values: dict[str, Any] = {"rope_theta": config.get("rope_theta", 10_000.0)}
    values |= config.get("rope_scaling") or {}
    values |= config.get("rope_parameters") or {}
    kind = str(values.get("rope_type", values.get("type", "default")))
    partial = values.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if kind not in ("default", "linear", "llama3") or partial not in (None, 1, 1.0):
        raise ModelError(
            f"model {str(folder)!r} uses rope {kind!r} (partial factor {partial}); supported are "
            f"default, linear and llama3 over the whole head"
        )
    theta = float(values["rope_theta"])
    if kind == "default":
        return Rope(theta=theta)
    if kind == "linear":
        return Rope(theta=theta, kind=kind, factor=float(values["factor"]))
    return Rope(
        theta=theta,
        kind=kind,
        factor=float(values["factor"]),
        low_frequency_factor=float(values["low_freq_factor"]),
        high_frequency_factor=float(values["high_freq_factor"]),
        trained_context=int(values["original_max_position_embeddings"]),
    )
