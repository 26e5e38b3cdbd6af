"""Log-probabilities under the weights that training is held against: those it began from, or the
model's own. There is no second model: the one there is computes with the other weights meanwhile.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from agentrft.core.sample import Sample
from agentrft.training.parameters import Trainable

_START = "reference.start."
_KEPT = "reference.kept."


class Reference:
    """The reference of one training. What it holds goes into checkpoints.

    Kept logprobs go there too: scored anew beside other samples, they could differ in the last bit,
    and a resumed training would not end where an uninterrupted one does.
    """

    def __init__(self, trainable: Trainable, *, keep: bool) -> None:
        """`keep` logprobs of samples that come again."""
        self._trainable = trainable
        self._keep = keep
        self._start: dict[str, Tensor] = {}
        """Masters that training began from; none if it began from the model as it is."""
        self._kept: dict[str, Tensor] = {}

    def begin_here(self) -> None:
        """Take the masters of this moment for the reference, instead of the model's own weights."""
        self._start = {
            name: master.detach().clone() for name, master in self._trainable.masters.items()
        }

    def logprobs(
        self, samples: Sequence[Sample], score: Callable[[Sequence[Sample]], list[Tensor]]
    ) -> list[Tensor]:
        """Return logprobs of each sample's action tokens; `score` computes them with the model."""
        keys = [_key(sample) for sample in samples]
        missing = {
            key: sample for key, sample in zip(keys, samples, strict=True) if key not in self._kept
        }
        found = dict(self._kept)
        if missing:
            with self._trainable.switched(self._start):
                found |= zip(missing, score([*missing.values()]), strict=True)
            if self._keep:
                self._kept = found
        return [found[key] for key in keys]

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint needs so that training goes on exactly."""
        start = {f"{_START}{name}": value.cpu() for name, value in self._start.items()}
        return start | {f"{_KEPT}{key}": value.cpu() for key, value in self._kept.items()}

    def restore(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Take over what `state` returned."""
        for prefix, target in ((_START, self._start), (_KEPT, self._kept)):
            target |= {
                name.removeprefix(prefix): value.to(device)
                for name, value in state.items()
                if name.startswith(prefix)
            }


def _key(sample: Sample) -> str:
    told = repr((sample.token_ids, sample.action_mask, sample.temperature))
    return hashlib.sha256(told.encode()).hexdigest()
