"""What trains: float32 masters for the optimizer, and the weights the model computes with.

The model always computes with merged weights in the compute type, rounded exactly as a sampler rounds
them, so both describe the same policy. Shapes: I inputs, O outputs, K rank, N tokens.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentrft.core.config import Adapter
from agentrft.core.errors import ModelError


class Trainable(Protocol):
    """The parameters of one kind of training."""

    masters: dict[str, nn.Parameter]
    """Name as in the saved file to the float32 parameter the optimizer steps."""

    def collect(self) -> None:
        """Move gradients of the last backward into the masters' `grad`, adding."""
        ...

    def refresh(self) -> None:
        """Let the model compute with the masters' new values."""
        ...

    def merged(self) -> dict[str, Tensor]:
        """Return copies of every weight that training changes, by checkpoint name."""
        ...


class LowRankLinear(nn.Module):
    """A linear layer with weight W + scale * B A, of which A and B train (LoRA, arXiv 2106.09685).

    The forward uses the merged weight; only the gradients know about the factors.
    """

    def __init__(
        self, linear: nn.Linear, base_OI: Tensor, rank: int, scale: float, seed: torch.Generator
    ) -> None:
        super().__init__()
        outputs, inputs = linear.weight.shape
        self.scale = scale
        self.base_OI = base_OI
        self.weight_OI = linear.weight.detach().clone()
        self.bias_O = None if linear.bias is None else linear.bias.detach()
        bound = 1.0 / math.sqrt(inputs)
        values_KI = torch.empty(rank, inputs).uniform_(-bound, bound, generator=seed)
        device = linear.weight.device
        self.a_KI = nn.Parameter(values_KI.to(device))
        self.b_OK = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.compute_a_KI = self.a_KI.detach().to(self.weight_OI.dtype)
        self.compute_b_OK = self.b_OK.detach().to(self.weight_OI.dtype)

    def forward(self, input_NI: Tensor) -> Tensor:
        """Return input @ merged weight, plus the frozen bias."""
        return _LowRankProduct.apply(
            input_NI,
            self.a_KI,
            self.b_OK,
            self.weight_OI,
            self.compute_a_KI,
            self.compute_b_OK,
            self.bias_O,
            self.scale,
        )

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge anew, from the stored base, so that roundings do not pile up."""
        merged_OI = merge(self.base_OI, self.a_KI, self.b_OK, self.scale)
        self.weight_OI.copy_(merged_OI)
        self.compute_a_KI.copy_(self.a_KI)
        self.compute_b_OK.copy_(self.b_OK)


def merge(base_OI: Tensor, a_KI: Tensor, b_OK: Tensor, scale: float) -> Tensor:
    """Return W + scale * B A in float32."""
    return torch.addmm(base_OI.float(), b_OK.float(), a_KI.float(), alpha=scale)


class _LowRankProduct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input_NI: Tensor,
        a_KI: Tensor,
        b_OK: Tensor,
        weight_OI: Tensor,
        compute_a_KI: Tensor,
        compute_b_OK: Tensor,
        bias_O: Tensor | None,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(input_NI, weight_OI, compute_a_KI, compute_b_OK)
        ctx.scale = scale
        return F.linear(input_NI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | float | None, ...]:
        input_NI, weight_OI, a_KI, b_OK = ctx.saved_tensors
        gradient_NO = gradients[0].flatten(0, -2)
        flat_NI = input_NI.flatten(0, -2)
        input_gradient = None
        if ctx.needs_input_grad[0]:
            input_gradient = (gradient_NO @ weight_OI).view_as(input_NI)
        a_gradient_KI = (gradient_NO @ b_OK).T @ flat_NI
        b_gradient_OK = gradient_NO.T @ (flat_NI @ a_KI.T)
        return (
            input_gradient,
            a_gradient_KI.float() * ctx.scale,
            b_gradient_OK.float() * ctx.scale,
            *(None,) * 5,
        )


class LowRankAdapter:
    """LoRA on the linear layers whose name is in `adapter.targets`; everything else is frozen."""

    def __init__(
        self, model: nn.Module, adapter: Adapter, stored: Mapping[str, Tensor], seed: int
    ) -> None:
        """`stored` holds base weights as the model folder has them, unrounded."""
        generator = torch.Generator().manual_seed(seed)
        model.requires_grad_(False)
        self.layers: dict[str, LowRankLinear] = {}
        linears = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear) and name.rpartition(".")[2] in adapter.targets
        ]
        if not linears:
            known = {
                name.rpartition(".")[2]
                for name, module in model.named_modules()
                if isinstance(module, nn.Linear)
            }
            raise ModelError(
                f"adapter: no linear layer is named {', '.join(adapter.targets)}; "
                f"set adapter.targets to some of {', '.join(sorted(known))}"
            )
        for name, linear in linears:
            base_OI = stored.get(f"{name}.weight", linear.weight.detach())
            layer = LowRankLinear(
                linear, base_OI, adapter.rank, adapter.alpha / adapter.rank, generator
            )
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, layer)
            self.layers[name] = layer
        self.masters: dict[str, nn.Parameter] = {}
        for name, layer in self.layers.items():
            self.masters[f"base_model.model.{name}.lora_A.weight"] = layer.a_KI
            self.masters[f"base_model.model.{name}.lora_B.weight"] = layer.b_OK

    def collect(self) -> None:
        """Nothing to do: gradients arrive at the masters in float32."""

    def refresh(self) -> None:
        """Merge every layer anew."""
        for layer in self.layers.values():
            layer.refresh()

    def merged(self) -> dict[str, Tensor]:
        """Return copies of the merged weights, as the model computes with them."""
        return {f"{name}.weight": layer.weight_OI.clone() for name, layer in self.layers.items()}


class FullWeights:
    """Every weight trains; masters in float32 beside the compute copies."""

    def __init__(self, model: nn.Module, stored: Mapping[str, Tensor]) -> None:
        """`stored` holds weights as the model folder has them, unrounded."""
        self.copies = dict(model.named_parameters())
        for copy in self.copies.values():
            copy.requires_grad_(True)
        self.masters = {
            name: copy
            if copy.dtype is torch.float32
            else nn.Parameter(stored.get(name, copy.detach()).float().to(copy.device))
            for name, copy in self.copies.items()
        }

    @torch.no_grad()
    def collect(self) -> None:
        """Add the compute copies' gradients to the masters' in float32."""
        for name, copy in self.copies.items():
            master = self.masters[name]
            if master is copy or copy.grad is None:
                continue
            if master.grad is None:
                master.grad = copy.grad.float()
            else:
                master.grad += copy.grad
            copy.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters into the compute copies."""
        for name, copy in self.copies.items():
            if self.masters[name] is not copy:
                copy.copy_(self.masters[name])

    def merged(self) -> dict[str, Tensor]:
        """Return copies of all weights, as the model computes with them."""
        return {name: copy.detach().clone() for name, copy in self.copies.items()}
