"""What trains: float32 masters for the optimizer, and the weights the model computes with.

The model always computes with merged weights in the compute type, rounded exactly as a sampler rounds
them, so both describe the same policy. Shapes: I inputs, O outputs, K rank, N tokens.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from agentrft.core.errors import ModelError
from agentrft.core.training_config import Adapter
from agentrft.training.files import ADAPTER_PREFIX, each_tensor


class Gradients:
    """Float32 sums of one lane, so that lanes running side by side never add to the same tensor."""

    def __init__(self) -> None:
        self._sums: dict[nn.Parameter, Tensor] = {}

    def of(self, master: nn.Parameter) -> Tensor:
        """Return the sum of one master, zeros at first."""
        if master not in self._sums:
            self._sums[master] = torch.zeros_like(master, requires_grad=False)
        return self._sums[master]

    def hand_over(self) -> None:
        """Add the sums to the masters' `grad`."""
        for master, total in self._sums.items():
            master.grad = total if master.grad is None else master.grad.add_(total)


class Linear(Protocol):
    """A linear layer as a hand-written pass sees it."""

    weight_OI: Tensor
    """In the compute type."""

    def apply(self, input_NI: Tensor) -> Tensor:
        """Return input @ weight, plus the bias if there is one."""
        ...

    def add_gradient(self, input_NI: Tensor, gradient_NO: Tensor, sums: Gradients) -> None:
        """Add what this input and output gradient mean for the masters."""
        ...


class Vector:
    """A weight that is no linear layer's, e.g. a norm's or the embedding's."""

    def __init__(self, weight: Tensor, master: nn.Parameter | None) -> None:
        self.weight = weight
        self._master = master

    @property
    def trains(self) -> bool:
        """Whether gradients are wanted."""
        return self._master is not None

    def sum(self, sums: Gradients) -> Tensor | None:
        """Return the master's gradient so far, to be added to; None if it does not train."""
        return None if self._master is None else sums.of(self._master)

    def add_rows(self, places_N: Tensor, gradient_NI: Tensor, sums: Gradients) -> None:
        """Add rows of a gradient to the master's, as an embedding needs it."""
        if self._master is not None:
            sums.of(self._master).index_add_(0, places_N, gradient_NI)


class Trainable(Protocol):
    """The parameters of one kind of training."""

    masters: dict[str, nn.Parameter]
    """Name as in the saved file to the float32 parameter the optimizer steps."""

    def linear(self, name: str) -> Linear:
        """Return the linear layer of that name."""
        ...

    def vector(self, name: str) -> Vector:
        """Return the other weight of that name."""
        ...

    def collect(self) -> None:
        """Move what autograd left at the compute copies into the masters' `grad`, adding."""
        ...

    def refresh(self) -> None:
        """Let the model compute with the masters' new values."""
        ...

    def switched(self, masters: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Let the model compute with these masters meanwhile; with its own weights if there are none.

        No other thread may compute with it then, and no gradient may be wanted.
        """
        ...

    def merged(self) -> dict[str, Tensor]:
        """Return copies of every weight that training changes, by checkpoint name."""
        ...


def _bias_of(linear: nn.Linear) -> Tensor | None:
    bias = cast(Tensor | None, linear.bias)  # torch's own types forget that it may be missing
    return None if bias is None else bias.detach()


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
        self.base_OI = base_OI.to(linear.weight.device)
        self.weight_OI = linear.weight.detach().clone()
        self.bias_O = _bias_of(linear)
        bound = 1.0 / math.sqrt(inputs)
        values_KI = torch.empty(rank, inputs).uniform_(-bound, bound, generator=seed)
        device = linear.weight.device
        self.a_KI = nn.Parameter(values_KI.to(device))
        self.b_OK = nn.Parameter(torch.zeros(outputs, rank, device=device))
        self.compute_a_KI = self.a_KI.detach().to(self.weight_OI.dtype, copy=True)
        self.compute_b_OK = self.b_OK.detach().to(self.weight_OI.dtype, copy=True)

    def forward(self, input_NI: Tensor) -> Tensor:
        """Return `apply`, with gradients for autograd."""
        return _LowRankProduct.apply(input_NI, self.a_KI, self.b_OK, self)

    def apply(self, input_NI: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Return input @ merged weight, plus the frozen bias."""
        return F.linear(input_NI, self.weight_OI, self.bias_O)

    def add_gradient(self, input_NI: Tensor, gradient_NO: Tensor, sums: Gradients) -> None:
        """Add the factors' gradients."""
        a_gradient_KI, b_gradient_OK = self.factor_gradients(input_NI, gradient_NO)
        sums.of(self.a_KI).add_(a_gradient_KI, alpha=self.scale)
        sums.of(self.b_OK).add_(b_gradient_OK, alpha=self.scale)

    def factor_gradients(self, input_NI: Tensor, gradient_NO: Tensor) -> tuple[Tensor, Tensor]:
        """Return gradients of A and B, yet to be multiplied by the scale, in the compute type."""
        a_gradient_KI = (gradient_NO @ self.compute_b_OK).T @ input_NI
        b_gradient_OK = gradient_NO.T @ (input_NI @ self.compute_a_KI.T)
        return a_gradient_KI, b_gradient_OK

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge anew, from the stored base, so that roundings do not pile up."""
        self.weight_OI.copy_(merge(self.base_OI, self.a_KI, self.b_OK, self.scale))
        self.compute_a_KI.copy_(self.a_KI)
        self.compute_b_OK.copy_(self.b_OK)


def merge(base_OI: Tensor, a_KI: Tensor, b_OK: Tensor, scale: float) -> Tensor:
    """Return W + scale * B A in float32."""
    return torch.addmm(base_OI.float(), b_OK.float(), a_KI.float(), alpha=scale)


class _LowRankProduct(torch.autograd.Function):
    """`LowRankLinear` inside an autograd graph."""

    @staticmethod
    def forward(
        ctx: Any, input_NI: Tensor, a_KI: Tensor, b_OK: Tensor, layer: LowRankLinear
    ) -> Tensor:
        ctx.save_for_backward(input_NI)
        ctx.layer = layer
        return layer.apply(input_NI)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None]:
        (input_NI,) = ctx.saved_tensors
        layer: LowRankLinear = ctx.layer
        gradient_NO = gradients[0].flatten(0, -2)
        a_KI, b_OK = layer.factor_gradients(input_NI.flatten(0, -2), gradient_NO)
        input_gradient = None
        if ctx.needs_input_grad[0]:
            input_gradient = (gradient_NO @ layer.weight_OI).view_as(input_NI)
        return input_gradient, a_KI.float() * layer.scale, b_OK.float() * layer.scale, None


class _PlainLinear:
    """A linear layer that is frozen, or trains whole."""

    def __init__(
        self, linear: nn.Linear, weight: nn.Parameter | None, bias: nn.Parameter | None
    ) -> None:
        """`weight` and `bias` are the masters; None freezes."""
        self.weight_OI: Tensor = linear.weight.detach()
        self._bias_O = _bias_of(linear)
        self._weight, self._bias = weight, bias

    def apply(self, input_NI: Tensor) -> Tensor:
        return F.linear(input_NI, self.weight_OI, self._bias_O)

    def add_gradient(self, input_NI: Tensor, gradient_NO: Tensor, sums: Gradients) -> None:
        if self._weight is not None:
            sums.of(self._weight).add_(gradient_NO.T @ input_NI)
        if self._bias is not None:
            sums.of(self._bias).add_(gradient_NO.sum(0, dtype=torch.float32))


class LowRankAdapter:
    """LoRA on the linear layers whose name is in `adapter.targets`; everything else is frozen."""

    def __init__(
        self, model: Any, adapter: Adapter, stored: Mapping[str, Tensor], seed: int
    ) -> None:
        """`stored` holds base weights as the model folder has them, unrounded."""
        generator = torch.Generator().manual_seed(seed)
        model.requires_grad_(False)
        self._model: nn.Module = model
        head = model.get_output_embeddings()
        self.layers: dict[str, LowRankLinear] = {}
        linears = {
            name: module
            for name, module in self._model.named_modules()
            if isinstance(module, nn.Linear) and module is not head
        }
        for name, linear in linears.items():
            parent, _, child = name.rpartition(".")
            if child not in adapter.targets:
                continue
            base_OI = stored.get(f"{name}.weight", linear.weight.detach())
            layer = LowRankLinear(
                linear, base_OI, adapter.rank, adapter.alpha / adapter.rank, generator
            )
            setattr(self._model.get_submodule(parent), child, layer)
            self.layers[name] = layer
        if not self.layers:
            known = ", ".join(sorted({name.rpartition(".")[2] for name in linears}))
            raise ModelError(
                f"adapter: no linear layer is named {', '.join(adapter.targets)}; "
                f"set adapter.targets to some of {known}"
            )
        self.masters: dict[str, nn.Parameter] = {}
        for name, layer in self.layers.items():
            self.masters[f"{ADAPTER_PREFIX}{name}.lora_A.weight"] = layer.a_KI
            self.masters[f"{ADAPTER_PREFIX}{name}.lora_B.weight"] = layer.b_OK

    def linear(self, name: str) -> Linear:
        """Return the adapted layer, or the frozen one."""
        if name in self.layers:
            return self.layers[name]
        module = self._model.get_submodule(name)
        assert isinstance(module, nn.Linear), name
        return _PlainLinear(module, None, None)

    def vector(self, name: str) -> Vector:
        """Return a frozen weight."""
        return Vector(self._model.get_parameter(name).detach(), None)

    def collect(self) -> None:
        """Nothing to do: gradients arrive at the masters."""

    def refresh(self) -> None:
        """Merge every layer anew."""
        for layer in self.layers.values():
            layer.refresh()

    @contextmanager
    def switched(self, masters: Mapping[str, Tensor]) -> Iterator[None]:
        """Merge other factors, or none."""
        try:
            for name, layer in self.layers.items():
                factor = f"{ADAPTER_PREFIX}{name}"
                weight = layer.base_OI
                if masters:
                    a_KI, b_OK = (
                        masters[f"{factor}.lora_A.weight"],
                        masters[f"{factor}.lora_B.weight"],
                    )
                    weight = merge(layer.base_OI, a_KI, b_OK, layer.scale)
                layer.weight_OI.copy_(weight)
            yield
        finally:
            self.refresh()

    def merged(self) -> dict[str, Tensor]:
        """Return copies of the merged weights, as the model computes with them."""
        return {f"{name}.weight": layer.weight_OI.clone() for name, layer in self.layers.items()}


class FullWeights:
    """Every weight trains; masters in float32 beside the compute copies."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        """`folder` has the weights unrounded."""
        stored = dict(each_tensor(folder))
        model.requires_grad_(True)
        self._model = model
        self._folder = folder
        self._copies = dict(model.named_parameters())
        self.masters = {
            name: nn.Parameter(
                stored.get(name, copy.detach()).to(copy.device, torch.float32, copy=True)
            )
            for name, copy in self._copies.items()
        }

    def linear(self, name: str) -> Linear:
        """Return a layer that trains whole."""
        module = self._model.get_submodule(name)
        assert isinstance(module, nn.Linear), name
        return _PlainLinear(
            module, self.masters[f"{name}.weight"], self.masters.get(f"{name}.bias")
        )

    def vector(self, name: str) -> Vector:
        """Return a weight that trains."""
        return Vector(self._copies[name].detach(), self.masters[name])

    @torch.no_grad()
    def collect(self) -> None:
        """Add the compute copies' gradients to the masters' in float32."""
        for name, copy in self._copies.items():
            master = self.masters[name]
            if copy.grad is not None:
                gradient = copy.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                copy.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the masters into the compute copies."""
        for name, copy in self._copies.items():
            copy.copy_(self.masters[name])

    @contextmanager
    def switched(self, masters: Mapping[str, Tensor]) -> Iterator[None]:
        """Read the model's own weights once more; others would be a second model in memory."""
        assert not masters
        try:
            with torch.no_grad():
                for name, tensor in each_tensor(self._folder):
                    if name in self._copies:
                        self._copies[name].copy_(tensor)
            yield
        finally:
            self.refresh()

    def merged(self) -> dict[str, Tensor]:
        """Return copies of all weights, as the model computes with them."""
        return {name: copy.detach().clone() for name, copy in self._copies.items()}
