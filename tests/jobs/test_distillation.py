"""Prompt distillation: what a short spec would have shown, and what is learned of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from desk_model import (
    POLICY,
    a_desk,
    a_model,
    a_renderer,
    a_training,
    looks_up,
)
from tuning import FakeModel

from agentrft.core.config import Limits
from agentrft.core.errors import ConfigError
from agentrft.core.grade import GradedTrajectory
from agentrft.core.run import Method, RolloutRecord
from agentrft.core.spec import AgentSpec, Guards, Precondition, Rendering, Shown
from agentrft.inference.renderer import ChatRenderer
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.distillation import distillation, short_spec
from agentrft.jobs.project import Project
from agentrft.jobs.retelling import Retelling
from agentrft.jobs.trained import Trained, trained_spec
from agentrft.rollout.dialogue import TokenSpeaker
from agentrft.rollout.episode import run_episode
from agentrft.rollout.harness import Conversation
from agentrft.store.spec_files import read_spec


def test_the_short_spec_is_the_projects_own_without_what_was_added(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    short = short_spec(project)
    assert project.spec.shown.count == 1
    assert short.shown == Shown()
    assert short.system == "Be kind."
    assert short.tools == project.spec.tools
    with pytest.raises(ConfigError, match="nothing to distil"):
        short_spec(replace(project, spec=short))


def test_a_short_spec_may_be_a_folder(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    methods = project.config.methods
    named = replace(methods, distillation=replace(methods.distillation, spec="brief"))
    project = replace(project, config=replace(project.config, methods=named))
    with pytest.raises(ConfigError, match="brief is no folder"):
        short_spec(project)
    (tmp_path / "desk" / "brief").mkdir()
    assert short_spec(project).system == "Be kind."
    assert short_spec(project).tools == {}


def test_the_weights_learn_under_the_short_spec_what_was_done_under_the_long_one(
    tmp_path: Path,
) -> None:
    project, model = a_desk(tmp_path / "desk"), FakeModel()
    job = a_training(tmp_path / "home", Method.DISTILLATION)
    renderer = a_renderer(tmp_path / "family")
    checkpoint = asyncio.run(
        distillation(job, a_model(project, renderer, model.open_trainer), None)
    )
    short = short_spec(project)
    assert checkpoint.spec_hash == short.hash != project.spec.hash
    weights = Trained(folder=Path(checkpoint.path), run=job.run, spec_hash=checkpoint.spec_hash)
    assert trained_spec(job.home, weights) == short
    assert {r.graded.trajectory.spec_hash for r in job.read_all(RolloutRecord)} == {
        project.spec.hash
    }
    assert read_spec(job.folder / "spec", AgentSpec(limits=short.limits)) != AgentSpec()
    result = job.run.result
    assert len(job.read_all(RolloutRecord)) == 12
    assert (result["kept"], result["not_retold"]) == (3, 0)
    assert result["mean_prompt_after"] < result["mean_prompt_before"]
    for sample in (sample for batch in model.batches for sample in batch):
        text = renderer.decode(sample.token_ids)
        assert POLICY not in text
        assert "W90" not in text
        assert "(15 tool calls, 2 turns left)" in text
        acted = [
            i for i, action in zip(sample.token_ids, sample.action_mask, strict=True) if action
        ]
        assert '"lookup", "arguments": {"id": "W' in renderer.decode(acted)
        assert "is sent." in renderer.decode(acted)


def played(project: Project, renderer: ChatRenderer, seed: int = 1) -> GradedTrajectory:
    sampler = ScriptedSampler(looks_up(renderer, lambda seed: True))
    setup = project.setup(TokenSpeaker(sampler, renderer))
    return asyncio.run(run_episode(setup, project.tasks("train")[0], seed=seed))


def told(project: Project, spec: AgentSpec, graded: GradedTrajectory) -> Conversation | None:
    retelling = Retelling(project, spec)
    return asyncio.run(retelling.retold(project.tasks("train")[0], graded.trajectory))


SPECS: Sequence[AgentSpec] = (
    AgentSpec(),
    AgentSpec(rendering=Rendering(form="key_value", max_characters=12)),
    AgentSpec(guards=Guards(coerce=True, block_duplicates=True)),
)


@pytest.mark.parametrize("spec", SPECS, ids=["plain", "rendering", "guards"])
def test_a_retelling_is_what_a_rollout_under_the_spec_would_have_been(
    tmp_path: Path, spec: AgentSpec
) -> None:
    project, renderer = a_desk(tmp_path / "desk"), a_renderer(tmp_path / "family")
    seen = told(project, spec, played(project, renderer))
    assert seen is not None
    other = played(replace(project, spec=spec), renderer, seed=1).trajectory
    ids, _ = renderer.demonstration(seen.messages, seen.tools)
    spoken = (i for turn in other.turns for i in (*turn.observation_ids, *turn.action_ids))
    # Spellings of calls are the family's own, which is what the other seed's spelling is not.
    assert renderer.decode(ids).replace(" ", "") == renderer.decode([*spoken]).replace(" ", "")


def test_what_would_have_gone_otherwise_is_not_retold(tmp_path: Path) -> None:
    project, renderer = a_desk(tmp_path / "desk"), a_renderer(tmp_path / "family")
    graded = played(project, renderer)
    assert told(project, AgentSpec(), graded) is not None
    blocked = Guards(preconditions=(Precondition(tool="get_order", after=("get_order",)),))
    assert told(project, AgentSpec(guards=blocked), graded) is None
    assert told(project, AgentSpec(limits=Limits(max_turns=1)), graded) is None
    held = played(replace(project, spec=replace(project.spec, guards=blocked)), renderer)
    assert told(project, AgentSpec(), held) is None
