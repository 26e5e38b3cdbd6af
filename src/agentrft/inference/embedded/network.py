"""A Llama-shaped forward over packed tokens: weights in fused tensors, attention handed in.

Letters: N packed tokens, E width, F feed-forward, H query heads, K key-value heads, D head size,
V vocabulary, O outputs of a projection.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import functional

from agentrft.core.errors import ModelError, SamplerError
from agentrft.inference.embedded.cache import SLACK
from agentrft.inference.embedded.elementwise import FusedElementwise
from agentrft.inference.embedded.elementwise_torch import TorchElementwise
from agentrft.inference.embedded.shape import Shape

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q_NHD, k_NKD, v_NKD) -> output_NHD; whoever calls the network owns the cache."""

Elementwise = FusedElementwise | TorchElementwise

_PACK_ROWS = 64
"""Batch size the packed layout is chosen for; measured as good from 1 to 512 rows."""


def _packed_linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    # With `pack`'s call, what PyTorch's own compiler emits for linear layers on CPUs: no public name.
    return torch.ops.mkldnn._linear_pointwise(x_NI, weight_OI, bias_O, "none", [], "")  # noqa: SLF001


class Projection:
    """A linear layer; bfloat16 weights on a CPU are kept in oneDNN's layout (0.6 of the time)."""

    def __init__(self, outputs: int, inputs: int, *, bias: bool, like: Tensor) -> None:
        self.weight_OI = like.new_empty(outputs, inputs)
        self.bias_O = like.new_zeros(outputs) if bias else None
        on_cpu = like.device.type == "cpu" and like.dtype == torch.bfloat16
        self._packable = on_cpu and torch.backends.mkldnn.is_available()

    def __call__(self, x_NI: Tensor) -> Tensor:
        if self.weight_OI.is_mkldnn:
            return _packed_linear(x_NI, self.weight_OI, self.bias_O)
        return functional.linear(x_NI, self.weight_OI, self.bias_O)

    def unpack(self) -> Tensor:
        """Return the plain weight to write into; `pack` when done."""
        if self.weight_OI.is_mkldnn:
            self.weight_OI = self.weight_OI.to_dense()
        return self.weight_OI

    def pack(self) -> None:
        """Bring the weight into the layout that multiplies fastest; packing twice is free."""
        if self._packable and not self.weight_OI.is_mkldnn:
            pack = torch.ops.mkldnn._reorder_linear_weight  # noqa: SLF001
            self.weight_OI = pack(self.weight_OI, _PACK_ROWS)


@dataclass(slots=True)
class Layer:
    """Weights of one decoder layer."""

    qkv: Projection
    output: Projection
    gate_up: Projection
    down: Projection
    input_norm_E: Tensor
    feed_forward_norm_E: Tensor
    head_norm_HD: Tensor | None
    """Qwen3: the query norm for every query head, then the key norm for every key head."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a checkpoint tensor lives: rows `start` to `stop` of a fused one."""

    owner: Projection | None
    target: Tensor | None
    start: int
    stop: int
    shape: tuple[int, ...]


class Network:
    """Weights and forward of one model on one device."""

    def __init__(self, shape: Shape, *, device: torch.device, dtype: torch.dtype) -> None:
        self.shape = shape
        like = torch.empty(0, device=device, dtype=dtype)
        self._like = like
        self.embedding_VE = like.new_empty(shape.vocabulary, shape.width)
        self.layers = [self._empty_layer() for _ in range(shape.layers)]
        self.final_norm_E = self._empty_norm(shape.width)
        self.head = Projection(shape.vocabulary, shape.width, bias=False, like=like)
        self._places = dict(self._name_places())
        self._cos_PD, self._sin_PD = self._rope_tables()
        on_cpu = device.type == "cpu"
        self.elementwise = FusedElementwise(shape) if on_cpu else TorchElementwise(shape)

    @property
    def device(self) -> torch.device:
        return self._like.device

    @property
    def dtype(self) -> torch.dtype:
        return self._like.dtype

    def _empty_layer(self) -> Layer:
        shape, like = self.shape, self._like
        heads = shape.heads + 2 * shape.kv_heads
        return Layer(
            qkv=Projection(heads * shape.head_dim, shape.width, bias=shape.qkv_bias, like=like),
            output=Projection(
                shape.width, shape.heads * shape.head_dim, bias=shape.output_bias, like=like
            ),
            gate_up=Projection(
                2 * shape.feed_forward, shape.width, bias=shape.feed_forward_bias, like=like
            ),
            down=Projection(
                shape.width, shape.feed_forward, bias=shape.feed_forward_bias, like=like
            ),
            input_norm_E=self._empty_norm(shape.width),
            feed_forward_norm_E=self._empty_norm(shape.width),
            head_norm_HD=(
                self._empty_norm(shape.heads + shape.kv_heads, shape.head_dim)
                if shape.head_norm
                else None
            ),
        )

    def _empty_norm(self, *size: int) -> Tensor:
        return torch.empty(size, device=self.device)

    def _name_places(self) -> Iterator[tuple[str, _Place]]:
        shape = self.shape
        yield "model.embed_tokens.weight", _whole(self.embedding_VE)
        yield "model.norm.weight", _whole(self.final_norm_E)
        if not shape.tied:
            yield from _split("", self.head, {"lm_head": shape.vocabulary})
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        for number, layer in enumerate(self.layers):
            prefix = f"model.layers.{number}."
            attention, feed_forward = prefix + "self_attn.", prefix + "mlp."
            yield prefix + "input_layernorm.weight", _whole(layer.input_norm_E)
            yield prefix + "post_attention_layernorm.weight", _whole(layer.feed_forward_norm_E)
            yield from _split(attention, layer.qkv, {"q_proj": query, "k_proj": key, "v_proj": key})
            yield from _split(attention, layer.output, {"o_proj": shape.width})
            yield from _split(
                feed_forward,
                layer.gate_up,
                {"gate_proj": shape.feed_forward, "up_proj": shape.feed_forward},
            )
            yield from _split(feed_forward, layer.down, {"down_proj": shape.width})
            if layer.head_norm_HD is not None:
                for name, start, stop in (
                    ("q_norm", 0, shape.heads),
                    ("k_norm", shape.heads, shape.heads + shape.kv_heads),
                ):
                    yield (
                        f"{attention}{name}.weight",
                        _Place(None, layer.head_norm_HD, start, stop, (shape.head_dim,)),
                    )

    def _rope_tables(self) -> tuple[Tensor, Tensor]:
        shape = self.shape
        frequency_D = torch.tensor(shape.rope.inverse_frequencies(shape.head_dim))
        angle_PD = torch.arange(shape.context_tokens + SLACK)[:, None] * frequency_D.float()
        cos_PD, sin_PD = angle_PD.cos(), angle_PD.sin()
        # Signs of rotate_half folded in: rotated = x * cos + roll(x, D/2) * sin.
        cos_PD = torch.cat([cos_PD, cos_PD], -1)
        sin_PD = torch.cat([-sin_PD, sin_PD], -1)
        return cos_PD.to(self.device), sin_PD.to(self.device)

    def forward(self, token_N: Tensor, position_N: Tensor, attend: Attend) -> Tensor:
        """Return hidden_NE before the final norm, float32."""
        # The residual stream, norms and rotations are float32: in bfloat16 their rounding, not
        # that of the products, is most of the distance to exact log-probabilities.
        x_NE = self.embedding_VE[token_N].float()
        fused = self.elementwise
        for number, layer in enumerate(self.layers):
            qkv_NO = layer.qkv(fused.norm(x_NE, layer.input_norm_E, self.dtype))
            q_NHD, k_NKD, v_NKD = fused.split_heads(
                qkv_NO, position_N, self._cos_PD, self._sin_PD, layer.head_norm_HD
            )
            mixed_NHD = attend(number, q_NHD, k_NKD, v_NKD)
            fused.add(x_NE, layer.output(mixed_NHD.flatten(1)))
            normed_NE = fused.norm(x_NE, layer.feed_forward_norm_E, self.dtype)
            fused.add(x_NE, layer.down(fused.gate(layer.gate_up(normed_NE))))
        return x_NE

    def logits(self, hidden_NE: Tensor) -> Tensor:
        """Return logits_NV of the hidden states that need them."""
        return self.head(self.elementwise.norm(hidden_NE, self.final_norm_E, self.dtype))

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy checkpoint tensors into place; raises SamplerError before anything changed."""
        tensors = {n: t for n, t in tensors.items() if not self._is_tied_head(n)}
        for name, tensor in tensors.items():
            place = self._places.get(name)
            if place is None:
                raise SamplerError(
                    f"weights hold {name!r}, which the {self.shape.family} model lacks"
                )
            if tuple(tensor.shape) != place.shape:
                raise SamplerError(
                    f"weights {name!r} have shape {tuple(tensor.shape)}, the model {place.shape}"
                )
        touched: dict[int, Projection] = {}
        for name, tensor in tensors.items():
            place = self._places[name]
            target = place.target
            if place.owner is not None:
                touched[id(place.owner)] = place.owner
                target = place.owner.unpack()
            assert target is not None
            target[place.start : place.stop].copy_(tensor)
        if self.shape.tied and "model.embed_tokens.weight" in tensors:
            self.head.weight_OI = self.embedding_VE
            touched[id(self.head)] = self.head
        for projection in touched.values():
            projection.pack()

    def _is_tied_head(self, name: str) -> bool:
        # Checkpoints of tied models may carry the head a second time.
        return self.shape.tied and name == "lm_head.weight"

    @property
    def parameter_names(self) -> frozenset[str]:
        """Every tensor a complete checkpoint holds."""
        return frozenset(self._places)


def _whole(tensor: Tensor) -> _Place:
    return _Place(None, tensor, 0, tensor.shape[0], tuple(tensor.shape))


def _split(
    prefix: str, projection: Projection, parts: Mapping[str, int]
) -> Iterator[tuple[str, _Place]]:
    inputs, start = projection.weight_OI.shape[1], 0
    for name, outputs in parts.items():
        stop = start + outputs
        yield (
            f"{prefix}{name}.weight",
            _Place(projection, None, start, stop, (outputs, inputs)),
        )
        if projection.bias_O is not None:
            yield (
                f"{prefix}{name}.bias",
                _Place(None, projection.bias_O, start, stop, (outputs,)),
            )
        start = stop


def open_network(
    folder: Path, shape: Shape, *, device: torch.device, dtype: torch.dtype
) -> Network:
    """Read safetensors into a network; raises ModelError for missing or broken files."""
    network = Network(shape, device=device, dtype=dtype)
    missing = set(network.parameter_names)
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, OSError) as error:
            raise ModelError(f"cannot read weights {str(path)!r}: {error}") from error
        # Old checkpoints carry the rotary frequencies, which follow from the config.
        tensors = {n: t for n, t in tensors.items() if not n.endswith("rotary_emb.inv_freq")}
        try:
            network.load(tensors)
        except SamplerError as error:
            raise ModelError(f"{str(path)!r} does not fit its config.json: {error}") from error
        missing -= tensors.keys()
    if missing:
        raise ModelError(
            f"weights in {str(folder)!r} lack {len(missing)} tensors, e.g. {min(missing)!r}"
        )
    return network


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        return [folder / name for name in sorted(set(names.values()))]
    single = folder / "model.safetensors"
    if not single.exists():
        raise ModelError(f"model folder {str(folder)!r} has no model.safetensors")
    return [single]
