"""TRL's GRPOTrainer on the desk, its own loop and its own loss."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from trl import GRPOTrainer
from trl_desk import Reward, desk_trainer
from worker import Handler, serve


class _Watch(TrainerCallback):
    """Looks at the clock whenever a step is done, keeps the adapter every few steps, ends in time."""

    def __init__(
        self, trainer: GRPOTrainer, reward: Reward, folder: Path, *, every: int, most_seconds: float
    ) -> None:
        self._trainer, self._reward, self._folder = trainer, reward, folder
        self._every, self._most_seconds = every, most_seconds
        self.steps: list[dict[str, Any]] = []
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds, step = time.perf_counter() - self._began, state.global_step
        adapter = ""
        control.should_training_stop |= seconds >= self._most_seconds
        if step % self._every == 0 or control.should_training_stop:
            adapter = str(self._folder / f"step-{step}")
            self._trainer.save_model(adapter)
        reward = sum(self._reward.scores) / len(self._reward.scores)
        self._reward.clear()
        self.steps.append({"step": step, "seconds": seconds, "reward": reward, "adapter": adapter})


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    def learn(folder: str, seed: int, most_seconds: float) -> Mapping[str, Any]:
        trainer, reward = desk_trainer(
            settings,
            lora=True,
            bf16=True,
            output_dir=folder,
            seed=seed,
            max_steps=settings["steps"],
            learning_rate=settings["learning_rate"],
            lr_scheduler_type="constant",  # its warm-up begins at 0, which would lose a step
            logging_steps=1,
        )
        watch = _Watch(
            trainer, reward, Path(folder), every=settings["every"], most_seconds=most_seconds
        )
        trainer.add_callback(watch)
        trainer.train()
        return {"steps": watch.steps}

    return {"learn": learn}


serve(prepare)
