"""Part e: what the agent loop costs beside the model, with 2,000 rollouts at once.

Scripted answers, four turns and three tool calls a rollout, tools and grader in Python, groups as a
training step collects them: with characters for tokens, or with the model's own chat format, each
without and with the step's records stored. Answers come after about a second, or at once, which asks
most of the event loop: all rollouts are always ready.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from contender import Contender, Taken
from rounds import in_turn, spread
from setting import Setting, present

ROLLOUTS = 2000
ANSWERS_S = (1.0, 0.0)
CPU_MS_PER_TURN, PEAK_BYTES = 1.0, 2e9
"""What is aimed at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """How much of a step takes part."""

    renderer: str
    stored: bool

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.renderer}, stored" if self.stored else self.renderer


VARIANTS = [
    Variant(renderer=renderer, stored=stored)
    for renderer in ("characters", "SmolLM2 chat")
    for stored in (False, True)
]


def measure(setting: Setting) -> None:
    """Run the part and write `speed-orchestration.json`."""
    rollouts = 200 if setting.quick else ROLLOUTS
    contenders = present(
        [
            setting.contender(
                variant.name,
                "ours_orchestration.py",
                {
                    "renderer": variant.renderer,
                    "store": str(setting.home / "bench" / variant.name) if variant.stored else "",
                },
            )
            for variant in VARIANTS
        ]
    )
    results = [
        line
        for answer_s in ANSWERS_S
        for line in _measured(setting, contenders, rollouts, answer_s)
    ]
    for contender in contenders:
        contender.close()
    aim = {"cpu_ms_per_turn": CPU_MS_PER_TURN, "peak_bytes": PEAK_BYTES}
    setting.write("orchestration", {"rollouts": rollouts, "aim": aim, "results": results})


def _measured(
    setting: Setting, contenders: Sequence[Contender], rollouts: int, answer_s: float
) -> list[dict[str, Any]]:
    def ask(contender: Contender, number: int) -> Taken:
        return contender.ask("play", rollouts=rollouts, seed=number, answer_s=answer_s)

    taken = in_turn(contenders, ask, rounds=setting.rounds, tell=_tell)
    return [
        {
            "renderer": variant.renderer,
            "stored": variant.stored,
            "answer_s": answer_s,
            "turns": taken[variant.name][0].answer["turns"],
            "tokens": taken[variant.name][0].answer["tokens"],
            "cpu_ms_per_turn": spread([_cpu_ms_per_turn(one) for one in taken[variant.name]]),
            "seconds": spread([one.seconds for one in taken[variant.name]]),
            "peak_bytes": max(one.peak_bytes for one in taken[variant.name]),
            **{
                f"lag_{place}_ms": spread(
                    [1e3 * one.answer[f"lag_{place}_s"] for one in taken[variant.name]]
                )
                for place in ("p50", "p99", "max")
            },
        }
        for variant in VARIANTS
    ]


def _cpu_ms_per_turn(one: Taken) -> float:
    return 1e3 * one.cpu_s / one.answer["turns"]


def _tell(name: str, number: int, one: Taken) -> None:
    made = one.answer
    if made["full_marks"] != made["rollouts"]:
        raise SystemExit(
            f"{name}: {made['full_marks']} of {made['rollouts']} did what was scripted"
        )
    print(
        f"  round {number}: {name}: {_cpu_ms_per_turn(one):.2f} ms of CPU a turn, "
        f"{one.peak_bytes / 1e9:.2f} GB, lag p99 {1e3 * made['lag_p99_s']:.0f} ms",
        flush=True,
    )
