"""Forward and backward of Llama-shaped decoders over a token tree, written out by hand.

Chunks of tokens pass through all the small operations of a layer while they are in a core's cache,
and gradients of weights go where they belong without intermediate copies; autograd would do neither.
Held to transformers' own forward and backward by the parity tests. Shapes: as in `attention.py`, and
C tokens of a chunk, E hidden width, F width inside the feed-forward.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentrft.training.attention import Attended, attend, attend_backward
from agentrft.training.pack import MicroBatch
from agentrft.training.parameters import Gradients, Linear, Trainable, Vector

FAMILIES = ("llama", "qwen2", "qwen3")
CHUNK_TOKENS = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layer:
    input_norm: Vector
    query: Linear
    key: Linear
    value: Linear
    query_norm: Vector | None
    key_norm: Vector | None
    output: Linear
    feed_norm: Vector
    gate: Linear
    up: Linear
    down: Linear


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """What the backward of one layer needs."""

    input_TE: Tensor
    query_HTD: Tensor
    key_GTD: Tensor
    value_GTD: Tensor
    raw_query_HTD: Tensor | None
    raw_key_GTD: Tensor | None
    """Before their norms, where the family has them."""
    attended: Attended
    middle_TE: Tensor
    """After attention, before the feed-forward."""
    gate_TF: Tensor
    up_TF: Tensor


class Decoder:
    """The layers of a Llama-, Qwen2- or Qwen3-shaped model."""

    def __init__(self, causal: Any, trainable: Trainable) -> None:
        backbone = causal.model
        config = causal.config
        self.epsilon: float = config.rms_norm_eps
        self.head_width: int = backbone.layers[0].self_attn.head_dim
        self.scaling: float = backbone.layers[0].self_attn.scaling
        self.rotary: nn.Module = backbone.rotary_emb
        self.embedding: Tensor = backbone.embed_tokens.weight
        self.embedding_gradient = trainable.vector("model.embed_tokens.weight")
        self.norm = trainable.vector("model.norm.weight")
        self.layers = [
            self._layer(trainable, f"model.layers.{place}", head_norms=config.model_type == "qwen3")
            for place in range(config.num_hidden_layers)
        ]

    @staticmethod
    def supports(causal: Any) -> bool:
        """Whether the model is one whose forward is written here."""
        config = causal.config
        kinds = set(config.to_dict().get("layer_types") or ["full_attention"])
        return (
            config.model_type in FAMILIES
            and config.hidden_act == "silu"
            and kinds == {"full_attention"}
        )

    def hidden(self, tree: MicroBatch, sums: Gradients | None) -> Tensor:
        """Return final hidden states (T, E); their backward adds to `sums`. None: no backward."""
        anchor = torch.zeros(0, requires_grad=sums is not None)
        hidden_TE: Tensor = _DecoderFunction.apply(anchor, self, tree, sums)
        return hidden_TE

    def forward(self, tree: MicroBatch, saved: list[_Saved] | None) -> Tensor:
        """Run all layers and the last norm, appending to `saved` what the backward needs."""
        hidden_TE = F.embedding(tree.token_ids_T, self.embedding)
        cos_TD, sin_TD = self.rotary(hidden_TE, tree.position_ids_T[None])
        rotation = cos_TD[0], sin_TD[0]
        for layer in self.layers:
            hidden_TE = self._layer_forward(layer, hidden_TE, rotation, tree, saved)
        return hidden_TE

    @staticmethod
    def _layer(trainable: Trainable, name: str, *, head_norms: bool) -> _Layer:
        attention, feed = f"{name}.self_attn", f"{name}.mlp"
        return _Layer(
            input_norm=trainable.vector(f"{name}.input_layernorm.weight"),
            query=trainable.linear(f"{attention}.q_proj"),
            key=trainable.linear(f"{attention}.k_proj"),
            value=trainable.linear(f"{attention}.v_proj"),
            query_norm=trainable.vector(f"{attention}.q_norm.weight") if head_norms else None,
            key_norm=trainable.vector(f"{attention}.k_norm.weight") if head_norms else None,
            output=trainable.linear(f"{attention}.o_proj"),
            feed_norm=trainable.vector(f"{name}.post_attention_layernorm.weight"),
            gate=trainable.linear(f"{feed}.gate_proj"),
            up=trainable.linear(f"{feed}.up_proj"),
            down=trainable.linear(f"{feed}.down_proj"),
        )

    def _layer_forward(
        self,
        layer: _Layer,
        input_TE: Tensor,
        rotation: tuple[Tensor, Tensor],
        tree: MicroBatch,
        saved: list[_Saved] | None,
    ) -> Tensor:
        T, D = len(input_TE), self.head_width
        heads, groups = layer.query.weight_OI.shape[0] // D, layer.key.weight_OI.shape[0] // D
        query_HTD = input_TE.new_empty(heads, T, D)
        key_GTD = input_TE.new_empty(groups, T, D)
        value_GTD = input_TE.new_empty(groups, T, D)
        raw_query_HTD = None if layer.query_norm is None else torch.empty_like(query_HTD)
        raw_key_GTD = None if layer.key_norm is None else torch.empty_like(key_GTD)
        for chunk in _chunks(T):
            normed_CE, _, _ = self.normed(input_TE[chunk], layer.input_norm)
            turn = rotation[0][chunk], rotation[1][chunk]
            for linear, norm, raw, target in (
                (layer.query, layer.query_norm, raw_query_HTD, query_HTD),
                (layer.key, layer.key_norm, raw_key_GTD, key_GTD),
            ):
                states = _by_head(linear.apply(normed_CE), D)
                if norm is not None and raw is not None:
                    raw[:, chunk] = states
                    states, _, _ = self.normed(raw[:, chunk], norm)
                _rotate(states, *turn, out=target[:, chunk])
            query_HTD[:, chunk] *= self.scaling
            value_GTD[:, chunk] = _by_head(layer.value.apply(normed_CE), D)
        attended = attend(query_HTD, key_GTD, value_GTD, tree)
        middle_TE = torch.empty_like(input_TE)
        output_TE = torch.empty_like(input_TE)
        gate_TF = input_TE.new_empty(T, layer.gate.weight_OI.shape[0])
        up_TF = torch.empty_like(gate_TF)
        for chunk in _chunks(T):
            joined_CE = attended.out_HTD[:, chunk].transpose(0, 1).reshape(-1, heads * D)
            torch.add(input_TE[chunk], layer.output.apply(joined_CE), out=middle_TE[chunk])
            normed_CE, _, _ = self.normed(middle_TE[chunk], layer.feed_norm)
            gate_TF[chunk] = layer.gate.apply(normed_CE)
            up_TF[chunk] = layer.up.apply(normed_CE)
            product_CF = F.silu(gate_TF[chunk]).mul_(up_TF[chunk])
            torch.add(middle_TE[chunk], layer.down.apply(product_CF), out=output_TE[chunk])
        if saved is not None:
            saved.append(
                _Saved(
                    input_TE=input_TE,
                    query_HTD=query_HTD,
                    key_GTD=key_GTD,
                    value_GTD=value_GTD,
                    raw_query_HTD=raw_query_HTD,
                    raw_key_GTD=raw_key_GTD,
                    attended=attended,
                    middle_TE=middle_TE,
                    gate_TF=gate_TF,
                    up_TF=up_TF,
                )
            )
        return output_TE

    def backward(
        self,
        gradient_TE: Tensor,
        last_TE: Tensor,
        tree: MicroBatch,
        saved: list[_Saved],
        sums: Gradients,
    ) -> None:
        """Add the gradients of all weights; `last_TE` is what entered the final norm."""
        gradient_TE = gradient_TE.clone()
        for chunk in _chunks(len(gradient_TE)):
            gradient_TE[chunk] = self._norm_backward(
                gradient_TE[chunk], last_TE[chunk], self.norm, sums
            )
        cos_TD, sin_TD = self.rotary(last_TE, tree.position_ids_T[None])
        rotation = cos_TD[0], sin_TD[0]
        for layer in reversed(self.layers):
            gradient_TE = self._layer_backward(
                layer, gradient_TE, rotation, tree, saved.pop(), sums
            )
        if self.embedding_gradient.trains:
            self.embedding_gradient.add_rows(tree.token_ids_T, gradient_TE.float(), sums)

    def _layer_backward(
        self,
        layer: _Layer,
        gradient_TE: Tensor,
        rotation: tuple[Tensor, Tensor],
        tree: MicroBatch,
        saved: _Saved,
        sums: Gradients,
    ) -> Tensor:
        T, D = len(gradient_TE), self.head_width
        heads = layer.query.weight_OI.shape[0] // D
        attended_gradient_HTD = torch.empty_like(saved.query_HTD)
        for chunk in _chunks(T):
            self._feed_backward(layer, gradient_TE[chunk], saved, chunk, sums)
            joined_CE = saved.attended.out_HTD[:, chunk].transpose(0, 1).reshape(-1, heads * D)
            layer.output.add_gradient(joined_CE, gradient_TE[chunk], sums)
            joined_gradient_CE = gradient_TE[chunk] @ layer.output.weight_OI
            attended_gradient_HTD[:, chunk] = _by_head(joined_gradient_CE, D)
        query_HTD, key_GTD, value_GTD = attend_backward(
            attended_gradient_HTD,
            saved.query_HTD,
            saved.key_GTD,
            saved.value_GTD,
            saved.attended,
            tree,
        )
        query_HTD *= self.scaling
        for chunk in _chunks(T):
            normed_CE, _, _ = self.normed(saved.input_TE[chunk], layer.input_norm)
            cos_CD, sin_CD = rotation[0][chunk], rotation[1][chunk]
            normed_gradient_CE = torch.zeros_like(normed_CE)
            for linear, norm, raw, states in (
                (layer.query, layer.query_norm, saved.raw_query_HTD, query_HTD),
                (layer.key, layer.key_norm, saved.raw_key_GTD, key_GTD),
                (layer.value, None, None, value_GTD),
            ):
                part = states[:, chunk]
                if linear is not layer.value:
                    # Turning back is turning by the negative angle.
                    part = _rotate(part, cos_CD, -sin_CD, out=torch.empty_like(part))
                if norm is not None and raw is not None:
                    part = self._norm_backward(part, raw[:, chunk], norm, sums)
                joined = part.transpose(0, 1).reshape(len(normed_CE), -1)
                linear.add_gradient(normed_CE, joined, sums)
                normed_gradient_CE.addmm_(joined, linear.weight_OI)
            gradient_TE[chunk] += self._norm_backward(
                normed_gradient_CE, saved.input_TE[chunk], layer.input_norm, sums
            )
        return gradient_TE

    def _feed_backward(
        self, layer: _Layer, gradient_CE: Tensor, saved: _Saved, chunk: slice, sums: Gradients
    ) -> None:
        """Add the feed-forward's gradient to `gradient_CE` in place."""
        gate_CF, up_CF = saved.gate_TF[chunk], saved.up_TF[chunk]
        active_CF = F.silu(gate_CF)
        layer.down.add_gradient(active_CF * up_CF, gradient_CE, sums)
        product_gradient_CF = gradient_CE @ layer.down.weight_OI
        up_gradient_CF = active_CF.mul_(product_gradient_CF)
        gate_gradient_CF = torch.ops.aten.silu_backward(product_gradient_CF.mul_(up_CF), gate_CF)
        normed_CE, _, _ = self.normed(saved.middle_TE[chunk], layer.feed_norm)
        layer.gate.add_gradient(normed_CE, gate_gradient_CF, sums)
        layer.up.add_gradient(normed_CE, up_gradient_CF, sums)
        normed_gradient_CE = gate_gradient_CF @ layer.gate.weight_OI
        normed_gradient_CE.addmm_(up_gradient_CF, layer.up.weight_OI)
        gradient_CE += self._norm_backward(
            normed_gradient_CE, saved.middle_TE[chunk], layer.feed_norm, sums
        )

    def normed(self, input_CE: Tensor, norm: Vector) -> tuple[Tensor, Tensor, Tensor]:
        """Return the normed states, and in float32 what they are without weight, and 1 / RMS."""
        unit_CE = input_CE.to(torch.float32, copy=True)
        length_C1 = torch.linalg.vector_norm(unit_CE, dim=-1, keepdim=True)
        inverse_C1 = length_C1.square_().div_(input_CE.shape[-1]).add_(self.epsilon).rsqrt_()
        unit_CE.mul_(inverse_C1)
        return unit_CE.to(input_CE.dtype) * norm.weight, unit_CE, inverse_C1

    def _norm_backward(
        self, gradient_CE: Tensor, input_CE: Tensor, norm: Vector, sums: Gradients
    ) -> Tensor:
        _, unit_CE, inverse_C1 = self.normed(input_CE, norm)
        if norm.trains:
            norm.add_gradient((gradient_CE.float() * unit_CE).flatten(0, -2).sum(0), sums)
        weighted_CE = (gradient_CE * norm.weight).float()
        mean_C1 = torch.linalg.vecdot(weighted_CE, unit_CE)[..., None] / input_CE.shape[-1]
        return (
            weighted_CE.addcmul_(unit_CE, mean_C1, value=-1.0).mul_(inverse_C1).to(input_CE.dtype)
        )


class _DecoderFunction(torch.autograd.Function):
    """Hooks the hand-written pass into autograd; the anchor only makes it take part."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, decoder: Decoder, tree: MicroBatch, sums: Gradients | None
    ) -> Tensor:
        saved: list[_Saved] | None = None if sums is None else []
        last_TE = decoder.forward(tree, saved)
        ctx.decoder, ctx.tree, ctx.sums = decoder, tree, sums
        ctx.saved, ctx.last_TE = saved, last_TE
        hidden_TE = torch.empty_like(last_TE)
        for chunk in _chunks(len(last_TE)):
            hidden_TE[chunk], _, _ = decoder.normed(last_TE[chunk], decoder.norm)
        return hidden_TE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        ctx.decoder.backward(gradients[0], ctx.last_TE, ctx.tree, ctx.saved, ctx.sums)
        return None, None, None, None


def _chunks(tokens: int) -> Iterator[slice]:
    for first in range(0, tokens, CHUNK_TOKENS):
        yield slice(first, min(first + CHUNK_TOKENS, tokens))


def _by_head(states_CE: Tensor, head_width: int) -> Tensor:
    return states_CE.view(len(states_CE), -1, head_width).transpose(0, 1)


def _rotate(states_HCD: Tensor, cos_CD: Tensor, sin_CD: Tensor, *, out: Tensor) -> Tensor:
    """Rotate pairs of a head's halves (RoPE, arXiv 2104.09864, in transformers' layout)."""
    half = states_HCD.shape[-1] // 2
    left, right = states_HCD[..., :half], states_HCD[..., half:]
    cos, sin = cos_CD[:, :half], sin_CD[:, :half]
    torch.mul(left, cos, out=out[..., :half]).addcmul_(right, sin, value=-1.0)
    torch.mul(right, cos, out=out[..., half:]).addcmul_(left, sin)
    return out
