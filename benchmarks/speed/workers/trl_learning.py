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
    """Looks at the clock whenever a step is done, and keeps the adapter every few steps."""

    def __init__(self, trainer: GRPOTrainer, reward: Reward, folder: Path, every: int) -> None:
        self._trainer, self._reward, self._folder, self._every = trainer, reward, folder, every
        self.steps: list[dict[str, Any]] = []
        self._began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        seconds, step = time.perf_counter() - self._began, state.global_step
        adapter = ""
        if step % self._every == 0:
            adapter = str(self._folder / f"step-{step}")
            self._trainer.save_model(adapter)
        reward = sum(self._reward.scores) / len(self._reward.scores)
        self._reward.clear()
        self.steps.append({"step": step, "seconds": seconds, "reward": reward, "adapter": adapter})


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    def learn(folder: str, seed: int) -> Mapping[str, Any]:
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
        watch = _Watch(trainer, reward, Path(folder), settings["every"])
        trainer.add_callback(watch)
        trainer.train()
        return {"steps": watch.steps}

    return {"learn": learn}


serve(prepare)
