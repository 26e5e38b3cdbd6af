"""Part b: rollouts per second on the support desk, with tools that take 0, 50 and 500 ms.

Ours against the method by which TRL's GRPOTrainer generates, calls tools and scores, without the
step that follows: the same warm-started weights in bfloat16, tasks, tools, grader, prompts token by
token, bounds on turns and tokens, and temperature. What is sampled differs, so tokens, turns and
calls of both are told beside the rates. TRL waits for one rollout's tools after the other's.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from contender import Contender, Taken
from rounds import in_turn, ratios, spread
from setting import Setting, present
from warm_start import desk_path, desk_settings, warm_start

DELAYS_S = (0.0, 0.05, 0.5)
GROUP_SIZE = 8
OURS, TRL = "AgentRFT rollouts", "TRL rollouts"


def measure(setting: Setting) -> None:
    """Run the part and write `speed-rollouts.json`."""
    tasks, group_size = (2, 4) if setting.quick else (8, GROUP_SIZE)
    folder = warm_start(setting)
    shared = desk_settings(setting, folder, tasks_per_step=tasks, group_size=group_size)
    contenders = present(
        [
            setting.contender(OURS, "ours_rollouts.py", shared, variables=desk_path()),
            setting.contender(
                TRL, "trl_rollouts.py", shared, environment="trl", variables=desk_path()
            ),
        ]
    )
    _same_prompts(contenders)
    results = [_measured(setting, contenders, tasks, delay_s) for delay_s in DELAYS_S]
    for contender in contenders:
        contender.close()
    setting.write(
        "rollouts",
        {
            "tasks": tasks,
            "group_size": group_size,
            "turns": shared["turns"],
            "turn_tokens": shared["turn_tokens"],
            "results": results,
        },
    )


def _same_prompts(contenders: Sequence[Contender]) -> None:
    """Raise SystemExit unless all models read the same tokens first."""
    found = {one.name: one.ask("first_prompt").answer["ids"] for one in contenders}
    if any(ids != found[OURS] for ids in found.values()):
        sys.exit(f"the prompts differ, so nothing can be compared: {found}")


def _measured(
    setting: Setting, contenders: Sequence[Contender], tasks: int, delay_s: float
) -> dict[str, Any]:
    def ask(contender: Contender, number: int) -> Taken:
        return contender.ask(
            "collect", first=number * tasks, tasks=tasks, delay_s=delay_s, seed=number
        )

    taken = in_turn(contenders, ask, rounds=setting.rounds, tell=_tell)
    rates = {unit: _rates(taken, unit) for unit in ("rollouts", "turns", "tokens")}
    return {
        "tool_delay_s": delay_s,
        **{
            f"{unit}_per_s": {name: spread(values) for name, values in of_unit.items()}
            for unit, of_unit in rates.items()
        },
        **{
            f"ours_to_theirs_{unit}": {
                name: ratios(of_unit[OURS], values)
                for name, values in of_unit.items()
                if name != OURS
            }
            for unit, of_unit in rates.items()
        },
        "per_rollout": {name: _per_rollout(of_name) for name, of_name in taken.items()},
    }


def _rates(taken: Mapping[str, Sequence[Taken]], unit: str) -> dict[str, list[float]]:
    return {
        name: [one.answer[unit] / one.seconds for one in of_name] for name, of_name in taken.items()
    }


def _per_rollout(taken: Sequence[Taken]) -> dict[str, float]:
    rollouts = sum(one.answer["rollouts"] for one in taken)
    units = ("turns", "tool_calls", "tokens")
    means = {unit: sum(one.answer[unit] for one in taken) / rollouts for unit in units}
    scored = sum(one.answer["score"] * one.answer["rollouts"] for one in taken)
    return {
        **means,
        "score": scored / rollouts,
        "cpu_s": sum(one.cpu_s for one in taken) / rollouts,
    }


def _tell(name: str, number: int, one: Taken) -> None:
    made = one.answer
    print(
        f"  round {number}: {name}: {made['rollouts'] / one.seconds:.2f} rollouts/s, "
        f"{made['turns']} turns, {made['tokens']} tokens, score {made['score']:.2f}",
        flush=True,
    )
