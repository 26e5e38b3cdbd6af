import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.config import Methods, ProjectConfig
from agentrft.core.errors import ConfigError, StoreError
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event, Record, RolloutRecord, StepMetrics
from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import (
    Failure,
    FailureKind,
    FinishReason,
    ParseFailure,
    StopReason,
    ToolResult,
    Trajectory,
    Turn,
)
from agentrft.store.codec import from_json, load_config, load_project_config, to_json

FINITE = st.floats(allow_nan=False)
NAMES = st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | FINITE | NAMES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=6,
)


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    logprobs = draw(st.lists(st.floats(max_value=0, allow_nan=False), max_size=4))
    return Turn(
        context=draw(st.integers(0, 3)),
        observation_ids=tuple(draw(st.lists(st.integers(0, 2**31), max_size=4))),
        action_ids=tuple(range(len(logprobs))),
        behavior_logprobs=tuple(logprobs),
        first_version=draw(st.integers(0, 9)),
        last_version=9,
        message=Message(
            role="assistant",
            content=draw(st.text(max_size=20)),
            tool_calls=(ToolCall(id="c1", name=draw(NAMES), arguments=draw(NAMES)),),
        ),
        tool_results=(ToolResult(call_id="c1", name="t", content=draw(NAMES), duration_s=0.5),),
        parse_failures=(ParseFailure(raw=draw(NAMES), reason="why"),),
        finish_reason=draw(st.sampled_from(FinishReason)),
    )


@st.composite
def rollouts(draw: st.DrawFn) -> RolloutRecord:
    failure = Failure(kind=draw(st.sampled_from(FailureKind)), where="x", message=draw(NAMES))
    return RolloutRecord(
        stage=draw(NAMES),
        split=draw(st.sampled_from(["train", "validation", "holdout"])),
        step=draw(st.integers(0, 10**6)),
        family=draw(NAMES),
        graded=GradedTrajectory(
            trajectory=Trajectory(
                id="trace_1",
                task_id=draw(NAMES),
                model="m",
                spec_hash="s",
                seed=draw(st.integers(0, 2**63 - 1)),
                prompt=(Message(role="user", content=draw(NAMES)),),
                turns=tuple(draw(st.lists(turns(), max_size=3))),
                stop_reason=draw(st.sampled_from(StopReason)),
                failure=draw(st.none() | st.just(failure)),
            ),
            grade=draw(
                st.builds(Grade, score=st.floats(0, 1), parts=st.dictionaries(NAMES, FINITE))
                | st.just(Grade(score=None, failure=failure))
            ),
        ),
    )


RECORDS: st.SearchStrategy[Record] = st.one_of(
    rollouts(),
    st.builds(
        Event,
        level=st.sampled_from(["info", "warn", "error"]),
        message=st.text(),
        created_at=FINITE,
        data=st.dictionaries(NAMES, JSON, max_size=3),
        step=st.integers(0, 99),
    ),
    st.builds(StepMetrics, step=st.integers(0, 99), values=st.dictionaries(NAMES, FINITE)),
    st.builds(
        Checkpoint,
        run_id=NAMES,
        step=st.integers(0, 99),
        path=NAMES,
        policy_version=st.integers(0, 99),
        metrics=st.dictionaries(NAMES, FINITE),
    ),
)


@given(RECORDS)
def test_every_record_comes_back_as_it_went(record: Record) -> None:
    assert from_json(type(record), to_json(record)) == record


def test_numbers_that_are_not_finite_come_back() -> None:
    record = StepMetrics(step=1, values={"kl": math.nan, "loss": math.inf})
    back = from_json(StepMetrics, to_json(record))
    assert math.isnan(back.values["kl"])
    assert back.values["loss"] == math.inf


def test_half_a_surrogate_pair_from_a_tool_can_be_stored() -> None:
    event = Event(level="info", message="a\ud800b", created_at=0.0)
    assert from_json(Event, to_json(event)).message == "a\ufffdb"


def test_a_damaged_record_says_what_and_where() -> None:
    with pytest.raises(StoreError, match=r"a stored StepMetrics cannot be read at 'step'"):
        from_json(StepMetrics, b'{"step": "three", "values": {}}')


def test_an_unknown_key_names_its_path_and_the_closest_one() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(
            ProjectConfig,
            {"name": "desk", "methods": {"reinforcement": {"group_sze": 4}}},
            "agent.toml",
        )
    assert str(caught.value) == (
        "agent.toml: unknown key 'methods.reinforcement.group_sze'; did you mean 'group_size'?"
    )


def test_a_key_like_no_other_lists_the_valid_ones() -> None:
    with pytest.raises(ConfigError, match=r"'data\.zzz'; valid keys: train, validation, holdout"):
        load_config(ProjectConfig, {"name": "desk", "data": {"zzz": "x"}}, "agent.toml")


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"name": 3}, "'name' is 3; expected a valid string"),
        ({}, "'name' is missing"),
        ({"name": "d", "limits": 3}, "'limits' is 3"),
        ({"name": "d", "limits": {"max_turns": "8"}}, "'limits.max_turns' is '8'; expected"),
        ({"name": "d", "limits": {"max_turns": True}}, "'limits.max_turns' is True; expected"),
        ({"name": "d", "engine": {"dtype": "int8"}}, "'engine.dtype' is 'int8'; expected 'auto'"),
        ({"name": "d", "tools": [{"name": "t"}]}, "'tools[0].server_url' is missing"),
        (
            {"name": "d", "tools": [{"name": "t", "server_url": "u", "header": {}}]},
            "unknown key 'tools[0].header'; did you mean 'headers'?",
        ),
        (
            {"name": "d", "presets": {"quick": {"supervisd": {}}}},
            "unknown key 'presets.quick.supervisd'; did you mean 'supervised'?",
        ),
        (
            {"name": "d", "presets": {"quick": {"supervised": {"step": 1}}}},
            "unknown key 'presets.quick.supervised.step'; did you mean 'steps'?",
        ),
    ],
)
def test_a_wrong_value_is_named_by_path(table: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ProjectConfig, table, "agent.toml")
    assert f"agent.toml: {complaint}" in str(caught.value)


def test_many_mistakes_come_in_one_message_with_a_bound() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(ProjectConfig, {"name": "d", **{f"x{i}": 1 for i in range(9)}}, "agent.toml")
    assert len(str(caught.value).splitlines()) == 6
    assert "and 4 more" in str(caught.value)


def test_a_partial_table_keeps_the_defaults_of_its_field() -> None:
    table = {"supervised": {"trainer": {"micro_batch_tokens": 512}}}
    methods = load_config(Methods, table, "agent.toml")
    assert methods.supervised.trainer.micro_batch_tokens == 512
    # The warm start's own default, not the optimizer type's.
    default = Methods().supervised.trainer.optimizer
    assert methods.supervised.trainer.optimizer == default
    assert default.learning_rate != Methods().reinforcement.trainer.optimizer.learning_rate


def test_a_config_survives_its_own_json() -> None:
    config = load_config(
        ProjectConfig, {"name": "d", "tools": [{"name": "t", "server_url": "http://x"}]}, "t"
    )
    assert from_json(ProjectConfig, to_json(config)) == config
    assert dataclasses.is_dataclass(config.tools[0])


AGENT_TOML = """
name = "desk"
[methods.reinforcement]
steps = 40
group_size = 6
[presets.quick.reinforcement]
steps = 3
[presets.quick.supervised.trainer.optimizer]
weight_decay = 0.1
"""


def test_a_preset_inherits_from_methods(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text(AGENT_TOML)
    plain = load_project_config(tmp_path)
    quick = load_project_config(tmp_path / "agent.toml", "quick")
    assert (plain.methods.reinforcement.steps, quick.methods.reinforcement.steps) == (40, 3)
    assert quick.methods.reinforcement.group_size == 6
    optimizer = quick.methods.supervised.trainer.optimizer
    assert optimizer.weight_decay == 0.1
    assert optimizer.learning_rate == Methods().supervised.trainer.optimizer.learning_rate
    assert plain.presets["quick"] == quick.methods


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (AGENT_TOML, "no preset 'slow'; known presets: quick"),
        ("name = \nmodel = 3", "is not valid TOML: .*line 1"),
        ("name = 'é'".encode("latin-1"), "not UTF-8"),
        ('name = "d"\npresets = 3', "'presets' is 3"),
    ],
)
def test_a_bad_project_file_gets_one_clear_message(
    tmp_path: Path, text: str | bytes, complaint: str
) -> None:
    file = tmp_path / "agent.toml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=complaint):
        load_project_config(file, "slow")


def test_a_folder_without_a_project_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist; a project is a folder"):
        load_project_config(tmp_path)
