"""The trainer on one machine: samples in, better weights out. Knows neither what its objective
computes, nor jobs, nor the store.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agentrft.core.allocator import share_arenas
from agentrft.core.errors import ModelError, UserError
from agentrft.core.policy import Canary, Weights
from agentrft.core.sample import Sample
from agentrft.core.training_config import Adapter, TrainerConfig
from agentrft.training.checkpoint import (
    TrainerRecord,
    check_base,
    fingerprint,
    read_record,
    verify_checkpoint,
    write_canaries,
    write_checkpoint,
    write_record,
)
from agentrft.training.credit import LossName
from agentrft.training.files import (
    each_tensor,
    read_state,
    read_weights,
    write_state,
    write_weights,
)
from agentrft.training.lanes import run_in_lanes, torch_settings
from agentrft.training.model import (
    available_bytes,
    compute_device,
    compute_dtype,
    count_weights,
    language_model,
    load_causal,
)
from agentrft.training.objective import objective
from agentrft.training.pack import MicroBatch, pack
from agentrft.training.parameters import FullWeights, Gradients, LowRankAdapter, Trainable
from agentrft.training.reference import Reference


class LocalTrainer:
    """Implements `core.protocols.Trainer` on the local CPU or GPU.

    `resume` continues a checkpoint of the same configuration exactly; `start` begins a new training
    from a checkpoint's weights with a fresh optimizer. Raises ModelError if the model does not load
    or fit, StoreError for a corrupt checkpoint.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainerConfig,
        *,
        loss: LossName,
        canaries: Sequence[Sequence[int]],
        seed: int,
        resume: Path | None = None,
        start: Path | None = None,
    ) -> None:
        share_arenas()
        if resume is not None and start is not None:
            raise UserError("trainer: give either resume or start, not both")
        self._folder = folder
        self._config = config
        self._loss: LossName = loss
        self._objective = objective(loss, config)
        self._canaries = [tuple(ids) for ids in canaries]
        self._seed = seed
        self._device = compute_device(config.device)
        self._threads = config.threads or torch.get_num_threads()
        self.steps_done = 0
        self._proof: tuple[int, tuple[Canary, ...]] = (-1, ())
        """The step whose weights the canaries were scored with last, and what they scored."""
        self.cursor: Mapping[str, int] = {}
        dtype = compute_dtype(config.dtype, self._device)
        check_memory(folder, config, dtype, free_bytes=available_bytes(self._device))
        causal = load_causal(folder, dtype, self._device)
        self.trainable = self._parameters(causal)
        self.model = language_model(causal, self.trainable)
        # Threads inside every small operation mostly wait for each other; lanes meet once a step.
        # Each holds its own gradients, so whole weights stay in one.
        lanes = self.model.decoder is not None and self._device.type == "cpu"
        self._lanes = self._threads if lanes and config.adapter.kind == "lora" else 1
        self._optimizer = torch.optim.AdamW(
            self.trainable.masters.values(),
            lr=config.optimizer.learning_rate,
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            weight_decay=config.optimizer.weight_decay,
            fused=True,
        )
        reads = self._objective.reads_reference
        self._reference = (
            None if reads == "never" else Reference(self.trainable, keep=reads == "once")
        )
        checkpoint = resume or start
        if checkpoint is not None:
            self._load(checkpoint, everything=resume is not None)
        if start is not None and self._reference is not None and config.reference == "start":
            if config.adapter.kind == "full":
                raise UserError(
                    f"trainer: with adapter.kind = 'full', the weights of {start} cannot serve as "
                    "reference without a second model in memory; set reference = 'base', or "
                    "adapter.kind = 'lora'"
                )
            self._reference.begin_here()

    def step(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        """Make one optimizer step; no samples, or gradients that are not finite, change nothing."""
        if not samples:
            return {}
        began = time.perf_counter()
        totals = self._accumulate(samples, learn=True)
        with self._settings():
            gradient_norm, stepped = self._update()
        metrics = self._metrics(totals) | {
            "gradient_norm": gradient_norm,
            "skipped_steps": 0.0 if stepped else 1.0,
            "learning_rate": self._learning_rate(),
        }
        self.steps_done += stepped
        metrics["train_s"] = time.perf_counter() - began
        metrics["tokens_per_s"] = totals["sample_tokens"] / metrics["train_s"]
        return metrics

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        """Return loss and metrics of the samples as one step would, without gradients; none: {}."""
        return self._metrics(self._accumulate(samples, learn=False)) if samples else {}

    def loss_and_gradients(self, samples: Sequence[Sample]) -> tuple[float, Mapping[str, Tensor]]:
        """Return what a step on these samples would use, by name as in the saved file; no step."""
        totals = self._accumulate(samples, learn=True)
        gradients = {
            name: torch.zeros_like(master) if master.grad is None else master.grad
            for name, master in self.trainable.masters.items()
        }
        self._optimizer.zero_grad(set_to_none=True)
        return totals["loss"], gradients

    def weights(self) -> Weights:
        """Return copies of the changed weights and this trainer's own canary logprobs."""
        return Weights(
            version=self.steps_done,
            tensors=self.trainable.merged(),
            canaries=self._prove(),
            write_adapter=self._adapter_writer(),
        )

    def _adapter_writer(self) -> Callable[[Path], None] | None:
        adapter = self._config.adapter
        if adapter.kind == "full":
            return None
        # Copies: the next step may come before an engine asks.
        factors = {name: one.detach().clone() for name, one in self.trainable.masters.items()}
        return partial(write_weights, model_folder=self._folder, masters=factors, adapter=adapter)

    def _prove(self) -> tuple[Canary, ...]:
        scored = self.score(self._canaries)
        canaries = tuple(
            Canary(token_ids=ids, logprobs=tuple(logprobs))
            for ids, logprobs in zip(self._canaries, scored, strict=True)
        )
        self._proof = (self.steps_done, canaries)
        return canaries

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities (temperature 1) of every token after the first, per sequence."""
        if not sequences:
            return []
        samples = [_scored_sample(place, ids) for place, ids in enumerate(sequences)]
        with self._settings():
            return [logprobs.tolist() for logprobs in self._action_logprobs(samples)]

    def save(self, folder: Path, cursor: Mapping[str, int]) -> None:
        """Write a complete checkpoint atomically: weights, optimizer, RNG, cursor, config.

        An adapter is in PEFT's format, full weights in transformers'. Raises StoreError.
        """
        record = TrainerRecord(
            kind=self._config.adapter.kind,
            base=fingerprint(self._folder),
            base_name=self._folder.name,
            steps_done=self.steps_done,
            loss=self._loss,
            seed=self._seed,
            cursor=dict(cursor),
            config=asdict(self._config),
        )

        proven, canaries = self._proof
        if proven != self.steps_done:
            canaries = self._prove()

        def fill(partial: Path) -> None:
            write_canaries(partial, canaries)
            write_weights(partial, self._folder, self.trainable.masters, self._config.adapter)
            reference = self._reference.state() if self._reference else {}
            write_state(partial, self._optimizer, self.trainable.masters, reference)
            write_record(partial, record)

        write_checkpoint(folder, fill)

    def _parameters(self, causal: Any) -> Trainable:
        adapter = self._config.adapter
        match adapter.kind:
            case "lora":
                stored = dict(each_tensor(self._folder))
                return LowRankAdapter(causal, adapter, stored, self._seed)
            case "full":
                return FullWeights(causal, self._folder)

    def _load(self, checkpoint: Path, *, everything: bool) -> None:
        verify_checkpoint(checkpoint)
        record = read_record(checkpoint)
        check_base(record, self._folder, checkpoint)
        if record.kind != self._config.adapter.kind:
            raise ModelError(
                f"checkpoint {checkpoint} holds {record.kind!r} weights but adapter.kind is "
                f"{self._config.adapter.kind!r}; make them equal"
            )
        if record.kind == "lora":
            _check_adapter(record, self._config.adapter, checkpoint)
        read_weights(checkpoint, self.trainable.masters)
        self.trainable.refresh()
        if everything:
            state = read_state(checkpoint, self._optimizer, self.trainable.masters)
            if self._reference is not None:
                self._reference.restore(state, self._device)
            self.steps_done = record.steps_done
            self.cursor = record.cursor

    def _settings(self) -> AbstractContextManager[None]:
        threads = 1 if self._lanes > 1 else self._threads
        return torch_settings(threads=threads, deterministic=self._config.deterministic)

    def _pack(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        return [
            batch.to(self._device)
            for batch in pack(
                samples,
                budget_tokens=self._config.micro_batch_tokens,
                share=self.model.decoder is not None,
                parts=self._lanes,
            )
        ]

    def _accumulate(self, samples: Sequence[Sample], *, learn: bool) -> Counter[str]:
        """Return sums over all samples; if they are to be learned from, add their gradients."""
        normaliser = self._objective.normaliser(samples)

        def work(batch: MicroBatch, gradients: Gradients) -> dict[str, float]:
            with torch.set_grad_enabled(learn):  # this holds for one thread only
                logprobs_A, entropy_A, likeliest_A = self.model.logprobs(
                    batch, gradients if learn else None
                )
                terms = self._objective.terms(logprobs_A, batch, normaliser)
            if learn:
                terms.loss.backward()
            return {
                **terms.sums,
                "loss": terms.loss.item(),
                "entropy": entropy_A.sum().item(),
                "likeliest": likeliest_A.sum().item(),
                "samples": float(len(batch.order)),
                "action_tokens": float(len(entropy_A)),
                "sample_tokens": float(batch.sample_tokens),
                "computed_tokens": float(batch.computed_tokens),
                "micro_batches": 1.0,
            }

        with self._settings():
            batches = self._with_reference(samples, self._pack(samples))
            results = run_in_lanes(batches, work, lanes=self._lanes)
            self.trainable.collect()
        totals: Counter[str] = Counter()
        for sums in results:
            totals.update(sums)
        return totals

    def _with_reference(
        self, samples: Sequence[Sample], batches: list[MicroBatch]
    ) -> list[MicroBatch]:
        """Give the micro-batches what the reference says of them, if the objective reads it."""
        if self._reference is None:
            return batches
        logprobs = self._reference.logprobs(samples, self._action_logprobs)
        return [
            replace(
                batch, reference_logprobs_A=torch.cat([logprobs[place] for place in batch.order])
            )
            for batch in batches
        ]

    def _action_logprobs(self, samples: Sequence[Sample]) -> list[Tensor]:
        """Return the logprobs of each sample's action tokens, without gradients."""

        def work(batch: MicroBatch, _: Gradients) -> list[tuple[int, Tensor]]:
            with torch.no_grad():  # this holds for one thread only
                logprobs_A, _entropy_A, _likeliest_A = self.model.logprobs(batch, None)
            counts = torch.bincount(batch.sample_A, minlength=len(batch.order)).tolist()
            return list(zip(batch.order, logprobs_A.split(counts), strict=True))

        found: dict[int, Tensor] = {}
        for pairs in run_in_lanes(self._pack(samples), work, lanes=self._lanes):
            found |= pairs
        return [found[place] for place in range(len(samples))]

    def _metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        actions = max(1.0, totals["action_tokens"])
        counts = ("samples", "action_tokens", "sample_tokens", "computed_tokens", "micro_batches")
        return {
            "loss": totals["loss"],
            "entropy": totals["entropy"] / actions,
            "token_accuracy": totals["likeliest"] / actions,
            **{name: totals[name] for name in counts},
            "shared_tokens": totals["sample_tokens"] - totals["computed_tokens"],
            **self._objective.metrics(totals),
        }

    def _update(self) -> tuple[float, bool]:
        """Clip and step; return the gradient norm before clipping and whether a step was made."""
        masters = list(self.trainable.masters.values())
        norm = torch.nn.utils.clip_grad_norm_(masters, self._config.optimizer.max_grad_norm).item()
        finite = norm < float("inf")
        if finite:
            for group in self._optimizer.param_groups:
                group["lr"] = self._learning_rate()
            self._optimizer.step()
            self.trainable.refresh()
        self._optimizer.zero_grad(set_to_none=True)
        return norm, finite

    def _learning_rate(self) -> float:
        optimizer = self._config.optimizer
        warm = (self.steps_done + 1) / max(1, optimizer.warmup_steps)
        return optimizer.learning_rate * min(1.0, warm)


def check_memory(
    folder: Path, config: TrainerConfig, dtype: torch.dtype, *, free_bytes: int
) -> None:
    """Raise ModelError with the numbers if weights, gradients and optimizer cannot fit."""
    weights = sum(count_weights(file) for file in folder.glob("model*.safetensors"))
    compute_bytes = weights * dtype.itemsize
    match config.adapter.kind:
        case "full":  # float32: master, gradient and two moments
            training_bytes = weights * 16
        case "lora":  # the stored base beside the merged copy; the factors are small
            training_bytes = sum(file.stat().st_size for file in folder.glob("model*.safetensors"))
    needed_bytes = compute_bytes + training_bytes
    if needed_bytes > free_bytes:
        raise ModelError(
            f"model {folder.name!r} does not fit: training ({config.adapter.kind}) needs about "
            f"{needed_bytes / 1e9:.2g} GB for {weights / 1e6:.4g} million weights, and "
            f"{free_bytes / 1e9:.2g} GB are free; use a smaller model, adapter.kind 'lora', "
            "or a machine with more memory"
        )


def _check_adapter(record: TrainerRecord, adapter: Adapter, checkpoint: Path) -> None:
    """Raise ModelError if factors would be scaled or placed otherwise than they were trained."""
    trained: Mapping[str, Any] = record.config["adapter"]
    for name, own in asdict(adapter).items():
        told = trained.get(name, own)  # a record of before the setting existed
        if told != own and (name != "targets" or set(told) != set(own)):
            raise ModelError(
                f"checkpoint {checkpoint} was trained with adapter.{name} = {told!r}, but it is "
                f"{own!r} here, and its weights would be others; make them equal"
            )


def _scored_sample(place: int, ids: Sequence[int]) -> Sample:
    zeros = (0.0,) * len(ids)
    return Sample(
        token_ids=tuple(ids),
        action_mask=(False, *(True,) * (len(ids) - 1)),
        behavior_logprobs=zeros,
        advantages=zeros,
        trajectory_id=f"canary {place}",
    )
