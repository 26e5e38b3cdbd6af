"""GEPA itself runs here, with a scripted model behind it and rollouts that know what helps.

Each trap of version 0.1.4 that this proposer steps around has a test.
"""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from zlib import crc32

import pytest
from fabricated import FakeTrials, Situation, cancelled, rollout, tasks

from agentrft.core.grade import GradedTrajectory
from agentrft.core.spec import AgentSpec, Section, ToolView, system_sections
from agentrft.optimize.gepa_proposer import PATIENCE, GepaProposer
from agentrft.optimize.trials import TrialRequest

GOOD = "Look the order up, then cancel it."
BASELINE = AgentSpec(sections=system_sections("Help."))
FEEDBACK = tasks(18)
FAILED = [(one, rollout(one, score=0.0, answer="No.")) for one in FEEDBACK]


def rule(request: TrialRequest) -> GradedTrajectory:
    """The good text solves nine tasks of ten, any other one of ten."""
    luck = (sum(map(ord, request.task.id)) + request.sample) % 10
    solved = luck < (9 if GOOD in request.spec.system else 1)
    if solved:
        return cancelled(request.task, spec=request.spec)
    return rollout(
        request.task, score=0.0, answer="No.", spec=request.spec, explanation="not cancelled"
    )


@dataclass
class ScriptedReflect:
    """Answers by a rule, and keeps what it was asked."""

    answers: Callable[[str], str] = lambda prompt: f"Thinking.\n```\n{GOOD}\n```"
    prompts: list[str] = field(default_factory=list[str])

    async def __call__(self, prompt: str) -> str:
        await asyncio.sleep(0)
        self.prompts.append(prompt)
        return self.answers(prompt)


def varied(prompt: str) -> str:
    """One of many good texts, always the same one for the same question."""
    return f"```\n{GOOD} Mind case {chr(ord('a') + crc32(prompt.encode()) % 26)}.\n```"


def situation(trials: FakeTrials | None = None, baseline: AgentSpec = BASELINE) -> Situation:
    return Situation(FAILED, baseline=baseline, trials=trials or FakeTrials(rule=rule), tools=())


def proposer(reflect: ScriptedReflect, *, rollouts: int = 400) -> GepaProposer:
    return GepaProposer(reflect=reflect, rollouts=rollouts)


def test_a_better_text_becomes_a_level_that_races_like_any_other() -> None:
    told, reflect = situation(), ScriptedReflect()
    (knob,) = told.knobs(proposer(reflect)).values()
    level = knob.levels[0]
    assert (knob.name, knob.source, level.name) == ("gepa", "gepa", "candidate 1")
    assert level.change(BASELINE).system == GOOD
    assert "section system" in level.why
    assert "dev tasks that also chose it" in level.why
    assert "not cancelled" in reflect.prompts[0]


def test_a_level_changes_nothing_but_the_texts_that_were_rewritten() -> None:
    (knob,) = situation().knobs(proposer(ScriptedReflect())).values()
    other = AgentSpec(
        sections=(*BASELINE.sections, Section(name="plan", text="First look.")),
        tools={"refund": ToolView(exposed=False)},
    )
    changed = knob.levels[0].change(other)
    assert [section.text for section in changed.sections] == [GOOD, "First look."]
    assert changed.tools == other.tools


def test_descriptions_of_tools_are_rewritten_where_tools_go_wrong() -> None:
    def wrong(request: TrialRequest) -> GradedTrajectory:
        good = "By its number" in request.spec.tools.get("cancel_order", ToolView()).description
        if good:
            return cancelled(request.task, spec=request.spec)
        call = ("cancel_order", {"order_id": "ten"}, "!no such order")
        return rollout(request.task, call, score=0.0, answer="No.", spec=request.spec)

    def answers(prompt: str) -> str:
        return "```\nCancel an order. By its number.\n```" if "tool cancel_order" in prompt else ""

    failed = [
        (one, wrong(TrialRequest(spec=BASELINE, split="feedback", task=one, sample=0, purpose="")))
        for one in FEEDBACK
    ]
    told = Situation(failed, baseline=BASELINE, trials=FakeTrials(rule=wrong))
    (knob,) = told.knobs(proposer(ScriptedReflect(answers))).values()
    views = knob.levels[0].change(BASELINE).tools
    assert views == {"cancel_order": ToolView(description="Cancel an order. By its number.")}


def test_the_proposals_hook_is_declared_so_that_proposals_do_not_fail_silently() -> None:
    reflect = ScriptedReflect()
    told = situation()
    told.knobs(proposer(reflect))
    # Without the declaration the engine would log an error and ask nobody.
    assert reflect.prompts
    assert not told.lines[-1].startswith("gepa: 0 proposals")


@pytest.mark.parametrize("reply", ["just talk", "```\n\n```", "```\n" + "long " * 900 + "\n```"])
def test_it_is_stopped_where_no_proposal_arrives_in_the_first_iterations(reply: str) -> None:
    told = situation()
    assert told.knobs(proposer(ScriptedReflect(lambda prompt: reply))) == {}
    assert any(f"no proposal in {PATIENCE} iterations" in line for line in told.lines)
    comparison, minibatches = 10 * 2, PATIENCE * 4 * 6 * 2
    assert len(told.trials.kept) <= comparison + minibatches


def test_a_reflection_model_that_fails_is_told_and_ends_nothing_else() -> None:
    def fail(prompt: str) -> str:
        raise ConnectionError("no route to host")

    told, reflect = situation(), ScriptedReflect(fail)
    assert told.knobs(proposer(reflect)) == {}
    assert "gepa: the reflection model failed: ConnectionError: no route to host" in told.lines
    # The engine hides exceptions and asks again; failures as values are asked for once.
    assert len(reflect.prompts) == PATIENCE * 4


def test_dev_tasks_are_rolled_out_themselves_and_not_answered_from_feedback() -> None:
    told = situation()
    told.knobs(proposer(ScriptedReflect()))
    found = {key for key in told.trials.kept if key[1] == "dev"}
    specs = {spec for spec, *_ in found}
    compared = {spec: {task for of, _, task, _ in found if of == spec} for spec in specs}
    # The engine's own cache knows list positions only and mixes the two lists up.
    assert len(specs) >= 2
    assert {len(of_spec) for of_spec in compared.values()} == {10}


@pytest.mark.parametrize("budget", [250, 300, 333])
def test_repeats_count_and_the_budget_is_never_exceeded(budget: int) -> None:
    told = situation()
    told.knobs(proposer(ScriptedReflect(varied), rollouts=budget))
    # The engine counts a validated task once however often it is repeated, and looks at its budget
    # between iterations only.
    assert budget / 2 < len(told.trials.kept) <= budget
    assert {sample for *_, sample in told.trials.kept} == {0, 1}
    assert f"gepa: its {budget} rollouts are spent" in told.lines


def test_a_later_round_has_what_the_earlier_one_left_and_offers_levels_of_its_own() -> None:
    trials = FakeTrials(rule=rule)
    asked = proposer(ScriptedReflect(), rollouts=900)
    told = situation(trials=trials)
    names = [*told.knobs(asked), *told.knobs(asked), *told.knobs(asked), *told.knobs(asked)]
    assert names[:2] == ["gepa", "gepa 2"]
    assert len(asked.requested) <= 900


def test_a_run_that_is_repeated_finds_its_past_and_rolls_nothing_out() -> None:
    trials = FakeTrials(rule=rule)
    first = situation(trials=trials).knobs(proposer(ScriptedReflect(varied)))["gepa"]
    executed = len(trials.kept)
    second = situation(trials=trials).knobs(proposer(ScriptedReflect(varied)))["gepa"]
    assert len(trials.kept) == executed
    assert [level.why for level in first.levels] == [level.why for level in second.levels]


def test_an_interrupted_run_ends_where_an_uninterrupted_one_ends() -> None:
    whole = situation().knobs(proposer(ScriptedReflect(varied)))["gepa"]
    trials = FakeTrials(rule=rule, budget=150)
    situation(trials=trials).knobs(proposer(ScriptedReflect(varied)))
    assert len(trials.kept) <= 150
    trials.budget = 100_000
    resumed = situation(trials=trials).knobs(proposer(ScriptedReflect(varied)))["gepa"]
    assert [level.why for level in resumed.levels] == [level.why for level in whole.levels]


def test_a_spent_budget_keeps_the_candidates_that_were_compared() -> None:
    told = situation(trials=FakeTrials(rule=rule, budget=200))
    knobs = told.knobs(proposer(ScriptedReflect(varied)))
    assert knobs["gepa"].levels[0].change(BASELINE).system.startswith(GOOD)
    assert "gepa: the budget is spent" in told.lines


def test_more_than_the_luckiest_candidate_is_handed_on() -> None:
    (knob,) = situation().knobs(proposer(ScriptedReflect(varied), rollouts=800)).values()
    assert len(knob.levels) == 3
    assert len({level.change(BASELINE).system for level in knob.levels}) == 3


def test_a_text_that_was_proposed_before_is_not_paid_for_again() -> None:
    told = situation()
    told.knobs(proposer(ScriptedReflect()))
    assert told.lines[-1].startswith("gepa: 1 proposals, 1 kept")


def test_reflection_reads_feedback_tasks_only() -> None:
    reflect = ScriptedReflect()
    told = situation()
    told.knobs(proposer(reflect))
    asked = "\n".join(reflect.prompts)
    withheld = (*told.known.problem.splits.dev, *told.known.problem.splits.holdout)
    assert not [one.id for one in withheld if one.messages[-1].content in asked]
    assert {split for _, split, *_ in told.trials.kept} == {"feedback", "dev"}


def test_a_text_that_holds_data_of_a_task_is_refused() -> None:
    told = situation()
    reflect = ScriptedReflect(lambda prompt: "```\nCancel W00501 at once.\n```")
    assert told.knobs(proposer(reflect)) == {}
    assert any("it holds 'w00501' of a task" in line for line in told.lines)


def test_a_budget_too_small_to_compare_anything_asks_nobody() -> None:
    told, reflect = situation(), ScriptedReflect()
    assert told.knobs(proposer(reflect, rollouts=100)) == {}
    assert (told.trials.requests, reflect.prompts) == ([], [])
    assert "raise reflection_rollouts" in told.lines[0]


def test_a_search_that_is_cancelled_leaves_no_thread_behind() -> None:
    async def run() -> list[str]:
        reached = asyncio.Event()

        def first(request: TrialRequest) -> GradedTrajectory:
            reached.set()
            return rule(request)

        told = situation(trials=FakeTrials(rule=first))
        work = asyncio.create_task(proposer(ScriptedReflect()).knobs(told.known))
        await asyncio.wait_for(reached.wait(), timeout=60)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        for _ in range(2000):
            if not _threads():
                break
            await asyncio.sleep(0.005)
        return _threads()

    assert asyncio.run(run()) == []


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "gepa"]


def test_without_the_package_the_error_names_what_to_install() -> None:
    code = (
        "import sys; sys.modules['gepa'] = None\n"
        "from agentrft.optimize.gepa_proposer import GepaProposer\n"
        "GepaProposer(reflect=None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigError: a reflection model is set, but GEPA is not installed" in done.stderr
    assert 'pip install "agentrft[gepa]"' in done.stderr


def test_the_proposers_module_loads_no_gepa() -> None:
    code = (
        "import sys, agentrft.optimize.proposers, agentrft.optimize.gepa_proposer\n"
        "print('gepa' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_an_agent_without_system_text_gets_a_section() -> None:
    told = situation(baseline=AgentSpec())
    (knob,) = told.knobs(proposer(ScriptedReflect())).values()
    assert knob.levels[0].change(AgentSpec()).system == GOOD
