import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import StopReason, Trajectory, Turn
from agentrft.graders.template import AbsentFromOutput, parse_template, sample_of

ITEM = {
    "reference": "42",
    "deep": {"list": [{"x": "first"}, "second"], "odd key": 1},
    "count": 3,
    "sure": True,
    "nothing": None,
}


def a_trajectory(text: str, *tool_calls: ToolCall) -> Trajectory:
    def turn(message: Message) -> Turn:
        return Turn(
            observation_ids=(1,),
            action_ids=(2,),
            behavior_logprobs=(-0.1,),
            first_version=0,
            last_version=0,
            message=message,
        )

    turns = [turn(Message(role="assistant", content=text))]
    if tool_calls:
        turns.insert(0, turn(Message(role="assistant", tool_calls=tool_calls)))
    return Trajectory(
        id="trace_1",
        task_id="task-1",
        model="m",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=tuple(turns),
        stop_reason=StopReason.FINISHED,
    )


SAMPLE = sample_of(a_trajectory('{"answer": [1, 2]}', ToolCall(id="c", name="get", arguments="{}")))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{{item.reference}}", "42"),
        ("<{{ item.reference }}|{{item.count}}>", "<42|3>"),
        ("{{ item.deep.list[0].x }} {{ item.deep.list[1] }}", "first second"),
        ('{{ item.deep["odd key"] }}', "1"),
        ("{{item.sure}} {{item.nothing}}", "true null"),
        ("{{ item.deep.list[0] }}", '{"x": "first"}'),
        ("{{sample.output_tools[0].function.name}}", "get"),
        ("{{sample.output_tools[0].function.arguments}}", "{}"),
        ("{{ sample.output_json.answer[1] }}", "2"),
        ("{{sample.choices[0].message.content}}", '{"answer": [1, 2]}'),
        ("{single} {{{item.count}}}", None),
        ("{{ item }", "{{ item }"),
    ],
)
def test_placeholders_are_filled(text: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(ConfigError):
            parse_template(text, "here")
        return
    assert parse_template(text, "here").fill(ITEM, SAMPLE) == expected


@given(st.text(), st.text())
def test_what_is_filled_in_is_never_read_again(given_text: str, output: str) -> None:
    row = {"x": f"{{{{item.y}}}}{given_text}", "y": "LEAK"}
    sample = sample_of(a_trajectory(f"{{{{item.y}}}}{output}"))
    filled = parse_template("{{item.x}}|{{sample.output_text}}", "here").fill(row, sample)
    assert filled == f"{{{{item.y}}}}{given_text}|{{{{item.y}}}}{output}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("{{ row.x }}", "must begin with `item.` (the row) or `sample.`"),
        ("{{ items.x }}", "must begin with"),
        ("{{}}", "must begin with"),
        ("{{ item.x | upper }}", "cannot read ' | upper'"),
        ("{{ item.x[-1] }}", "cannot read '[-1]'"),
        ("{{ item.x[" + "9" * 5000 + "] }}", "cannot read '[999"),
        ("{{ item..x }}", "cannot read '..x'"),
        ("{{ sample.text }}", "sample has output_text, output_json"),
        ("{{ sample }}", "sample has output_text"),
    ],
)
def test_a_path_that_can_never_exist_is_refused_before_grading(text: str, shown: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_template(text, "grader.input")
    assert shown in str(caught.value)
    assert str(caught.value).startswith("grader.input: ")


@pytest.mark.parametrize(
    "path", ["missing", "reference.x", "deep.list[9]", "deep.list.x", "count[0]"]
)
def test_a_path_that_the_row_lacks_is_a_fault_of_the_grader(path: str) -> None:
    with pytest.raises(GraderError, match="the row has no"):
        parse_template(f"{{{{item.{path}}}}}", "here").fill(ITEM, SAMPLE)


@pytest.mark.parametrize("path", ["output_json.x", "output_tools[0].function.name"])
def test_a_path_that_the_model_did_not_write_is_no_fault(path: str) -> None:
    silent = sample_of(a_trajectory("just words"))
    with pytest.raises(AbsentFromOutput):
        parse_template(f"{{{{sample.{path}}}}}", "here").fill(ITEM, silent)


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", '{"a": -Infinity}', "1e999", '{"a": -1e999}']
)
def test_numbers_that_are_none_make_no_json(text: str) -> None:
    assert "output_json" not in sample_of(a_trajectory(text))


@pytest.mark.parametrize(("depth", "is_json"), [(100, True), (101, False), (982, False)])
def test_only_what_can_be_written_again_is_json(depth: int, is_json: bool) -> None:
    for text in ("[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth):
        assert ("output_json" in sample_of(a_trajectory(text))) == is_json


@pytest.mark.parametrize("text", ["{{" * 200_000, "{{ item" + " " * 200_000, "}}" * 200_000])
def test_a_text_of_openings_is_read_in_one_pass(text: str) -> None:
    assert parse_template(text, "here").fill(ITEM, SAMPLE) == text


def test_what_this_service_never_writes_is_null() -> None:
    assert parse_template("{{ sample.output_audio }}", "here").fill(ITEM, SAMPLE) == "null"
