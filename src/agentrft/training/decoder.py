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
from agentrft.training.elementwise import elementwise
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
    raw_query_THD: Tensor | None
    raw_key_TGD: Tensor | None
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
        self.small = elementwise(backbone.embed_tokens.weight.device, config.rms_norm_eps)
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
        rotation = self._rotation(tree)
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
        has_norms = layer.query_norm is not None
        raw_query_THD = input_TE.new_empty(T, heads, D) if has_norms else None
        raw_key_TGD = input_TE.new_empty(T, groups, D) if has_norms else None
        for chunk in _chunks(T):
            normed_CE = self.small.norm(input_TE[chunk], layer.input_norm.weight)
            for linear, norm, raw, target, scale in (
                (layer.query, layer.query_norm, raw_query_THD, query_HTD, self.scaling),
                (layer.key, layer.key_norm, raw_key_TGD, key_GTD, 1.0),
            ):
                states_CHD = linear.apply(normed_CE).view(len(normed_CE), -1, D)
                if norm is not None and raw is not None:
                    raw[chunk] = states_CHD
                    states_CHD = self._head_norm(states_CHD, norm)
                self.small.rotate(states_CHD, rotation, chunk.start, scale, target)
            value_GTD[:, chunk] = _by_head(layer.value.apply(normed_CE), D)
        attended = attend(query_HTD, key_GTD, value_GTD, tree)
        middle_TE = torch.empty_like(input_TE)
        output_TE = torch.empty_like(input_TE)
        gate_TF = input_TE.new_empty(T, layer.gate.weight_OI.shape[0])
        up_TF = torch.empty_like(gate_TF)
        for chunk in _chunks(T):
            joined_CE = attended.out_HTD[:, chunk].transpose(0, 1).reshape(-1, heads * D)
            torch.add(input_TE[chunk], layer.output.apply(joined_CE), out=middle_TE[chunk])
            normed_CE = self.small.norm(middle_TE[chunk], layer.feed_norm.weight)
            gate_TF[chunk] = layer.gate.apply(normed_CE)
            up_TF[chunk] = layer.up.apply(normed_CE)
            product_CF = self.small.gate(gate_TF[chunk], up_TF[chunk])
            torch.add(middle_TE[chunk], layer.down.apply(product_CF), out=output_TE[chunk])
        if saved is not None:
            saved.append(
                _Saved(
                    input_TE=input_TE,
                    query_HTD=query_HTD,
                    key_GTD=key_GTD,
                    value_GTD=value_GTD,
                    raw_query_THD=raw_query_THD,
                    raw_key_TGD=raw_key_TGD,
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
        last_gradient_TE, gradient_TE = gradient_TE.contiguous(), torch.zeros_like(last_TE)
        for chunk in _chunks(len(gradient_TE)):
            self._norm_backward(
                last_gradient_TE[chunk], last_TE[chunk], self.norm, sums, gradient_TE[chunk]
            )
        rotation = self._rotation(tree)
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
        for chunk in _chunks(T):
            normed_CE = self.small.norm(saved.input_TE[chunk], layer.input_norm.weight)
            normed_gradient_CE = torch.zeros_like(normed_CE)
            for linear, norm, raw, states_HTD, scale in (
                (layer.query, layer.query_norm, saved.raw_query_THD, query_HTD, self.scaling),
                (layer.key, layer.key_norm, saved.raw_key_TGD, key_GTD, 1.0),
                (layer.value, None, None, value_GTD, 1.0),
            ):
                if linear is layer.value:
                    part_CHD = states_HTD[:, chunk].transpose(0, 1)
                else:
                    part_CHD = self.small.rotate_back(states_HTD, rotation, chunk, scale)
                if norm is not None and raw is not None:
                    part_CHD = self._head_norm_backward(part_CHD, raw[chunk], norm, sums)
                joined_CO = part_CHD.reshape(len(normed_CE), -1)
                linear.add_gradient(normed_CE, joined_CO, sums)
                normed_gradient_CE.addmm_(joined_CO, linear.weight_OI)
            self._norm_backward(
                normed_gradient_CE,
                saved.input_TE[chunk],
                layer.input_norm,
                sums,
                gradient_TE[chunk],
            )
        return gradient_TE

    def _feed_backward(
        self, layer: _Layer, gradient_CE: Tensor, saved: _Saved, chunk: slice, sums: Gradients
    ) -> None:
        """Add the feed-forward's gradient to `gradient_CE` in place."""
        gate_CF, up_CF = saved.gate_TF[chunk], saved.up_TF[chunk]
        product_CF, gate_gradient_CF, up_gradient_CF = self.small.gate_backward(
            gradient_CE @ layer.down.weight_OI, gate_CF, up_CF
        )
        layer.down.add_gradient(product_CF, gradient_CE, sums)
        normed_CE = self.small.norm(saved.middle_TE[chunk], layer.feed_norm.weight)
        layer.gate.add_gradient(normed_CE, gate_gradient_CF, sums)
        layer.up.add_gradient(normed_CE, up_gradient_CF, sums)
        normed_gradient_CE = gate_gradient_CF @ layer.gate.weight_OI
        normed_gradient_CE.addmm_(up_gradient_CF, layer.up.weight_OI)
        self._norm_backward(
            normed_gradient_CE, saved.middle_TE[chunk], layer.feed_norm, sums, gradient_CE
        )

    def _rotation(self, tree: MicroBatch) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of every token's position in float32, (T, D) each."""
        like = self.embedding.new_empty(0, dtype=torch.float32)
        cos_1TD, sin_1TD = self.rotary(like, tree.position_ids_T[None])
        return cos_1TD[0], sin_1TD[0]

    def _head_norm(self, states_CHD: Tensor, norm: Vector) -> Tensor:
        return self.small.norm(states_CHD.flatten(0, 1), norm.weight).view_as(states_CHD)

    def _head_norm_backward(
        self, gradient_CHD: Tensor, raw_CHD: Tensor, norm: Vector, sums: Gradients
    ) -> Tensor:
        total_CHD = torch.zeros_like(gradient_CHD)
        self._norm_backward(
            gradient_CHD.flatten(0, 1), raw_CHD.flatten(0, 1), norm, sums, total_CHD.flatten(0, 1)
        )
        return total_CHD

    def _norm_backward(
        self, gradient_CE: Tensor, input_CE: Tensor, norm: Vector, sums: Gradients, total_CE: Tensor
    ) -> None:
        """Add the gradient of what entered a norm to `total_CE`, and that of its weight to `sums`."""
        self.small.norm_backward(gradient_CE, input_CE, norm.weight, total_CE, norm.sum(sums))


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
            hidden_TE[chunk] = decoder.small.norm(last_TE[chunk], decoder.norm.weight)
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
