"""Our store with many trajectories in it: a step's records appended, and a page of them read."""

import itertools
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from worker import Handler, serve

from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.run import Method, RolloutRecord, Run, RunStatus
from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import StopReason, ToolResult, Trajectory, Turn
from agentrft.store.home import Home

RUN = "run-1"
STEP_ROLLOUTS = 64
PAGE = 100
TURNS, OBSERVED, SAMPLED = 4, 60, 30


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    folder = Path(settings["folder"])
    shutil.rmtree(folder, ignore_errors=True)
    home = Home.open(folder)
    home.store.put_run(
        Run(id=RUN, project="bench", method=Method.REINFORCEMENT, status=RunStatus.RUNNING)
    )
    numbers = itertools.count()

    def step() -> list[RolloutRecord]:
        return [_record(next(numbers)) for _ in range(STEP_ROLLOUTS)]

    def fill(records: int) -> Mapping[str, Any]:
        for _ in range(0, records, STEP_ROLLOUTS):
            home.store.append(RUN, step())
        return {"bytes": sum(file.stat().st_size for file in folder.glob("agentrft.db*"))}

    def measure() -> Mapping[str, Any]:
        records = step()
        # A new home counts its records from 1.
        last = records[-1].graded.trajectory.seed + 1 - PAGE
        seconds = dict(
            _timed(
                append=lambda: home.store.append(RUN, records),
                page_of_summaries=lambda: home.store.trajectories(RUN, after=last, limit=PAGE),
                page_of_records=lambda: home.store.read(RUN, RolloutRecord, after=last, limit=PAGE),
            )
        )
        return {
            "append_s": seconds["append"] / STEP_ROLLOUTS,
            "summary_s": seconds["page_of_summaries"] / PAGE,
            "record_s": seconds["page_of_records"] / PAGE,
        }

    return {"fill": fill, "measure": measure}


def _timed(**work: Any) -> Iterator[tuple[str, float]]:
    for name, call in work.items():
        began = time.perf_counter()
        call()
        yield name, time.perf_counter() - began


def _record(number: int) -> RolloutRecord:
    """Return a rollout of four turns and 360 tokens that shares none of them with another."""
    turns = tuple(_turn(number * TURNS + turn, last=turn == TURNS - 1) for turn in range(TURNS))
    trajectory = Trajectory(
        id=f"trace_{number:032x}",
        task_id=f"task-{number % 300}",
        model="smollm2-135m",
        spec_hash="0123456789abcdef",
        seed=number,
        prompt=(Message(role="user", content=f"Where is order W{number}?"),),
        turns=turns,
        stop_reason=StopReason.FINISHED,
    )
    graded = GradedTrajectory(trajectory=trajectory, grade=Grade(score=number % 2))
    return RolloutRecord(
        stage="reinforcement",
        split="train",
        step=number // STEP_ROLLOUTS,
        family="status",
        graded=graded,
    )


def _turn(number: int, *, last: bool) -> Turn:
    call = ToolCall(id=f"call_{number}", name="get_order", arguments=f'{{"order_id": "W{number}"}}')
    result = ToolResult(
        call_id=call.id, name=call.name, content=f"order W{number}: delivered, 25.20"
    )
    return Turn(
        observation_ids=tuple((number * 7919 + i * 104_729) % 49_152 for i in range(OBSERVED)),
        action_ids=tuple((number * 6271 + i * 15_485_863) % 49_152 for i in range(SAMPLED)),
        behavior_logprobs=tuple(-1 / (1 + (number + i * 31) % 97) for i in range(SAMPLED)),
        first_version=1,
        last_version=1,
        message=Message(
            role="assistant",
            content="It is on its way." if last else "",
            tool_calls=() if last else (call,),
        ),
        tool_results=() if last else (result,),
    )


serve(prepare)
