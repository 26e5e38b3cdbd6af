import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from answers import TASK, a_trajectory

from agentrft.core.errors import ConfigError, GraderError, UserError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment, Grader
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.core.trajectory import Failure, FailureKind, ToolResult, Trajectory
from agentrft.core.usage import TokenUsage
from agentrft.graders.build import build_grader
from agentrft.graders.environment import EnvironmentGrader
from agentrft.graders.fixed import FixedGrader
from agentrft.graders.formula import parse_formula
from agentrft.graders.multi import Multi

FAULT = Failure(kind=FailureKind.GRADER, where="judge", message="no")


@dataclass(frozen=True)
class Says:
    """A grader with one answer."""

    verdict: Grade
    name: str = "says"

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        return self.verdict


def grade(
    grader: Grader, text: str = "", *tool_calls: ToolCall, environment: Environment | None = None
) -> Grade:
    return asyncio.run(grader.grade(TASK, a_trajectory(text, *tool_calls), environment))


def check(operation: str, reference: str = "{{item.reference}}", **more: Any) -> dict[str, Any]:
    return {
        "type": "string_check",
        "name": "city",
        "input": "{{sample.output_text}}",
        "reference": reference,
        "operation": operation,
        **more,
    }


def multi(formula: str = "a", **graders: Mapping[str, object]) -> dict[str, Any]:
    return {"type": "multi", "graders": graders, "calculate_output": formula}


def endpoint(**more: Any) -> dict[str, Any]:
    return {"type": "endpoint", "url": "http://127.0.0.1:1/grade", **more}


@pytest.mark.parametrize(
    ("operation", "text", "score"),
    [
        ("eq", "Paris", 1.0),
        ("eq", "paris", 0.0),
        ("ne", "Rome", 1.0),
        ("neq", "Paris", 0.0),
        ("like", "It is Paris.", 1.0),
        ("like", "It is paris.", 0.0),
        ("ilike", "IT IS PARIS.", 1.0),
        ("ilike", "Rome", 0.0),
    ],
)
def test_string_check_compares(operation: str, text: str, score: float) -> None:
    given = grade(build_grader(check(operation)), text)
    assert (given.score, given.grader) == (score, "city")


def test_a_call_that_the_model_did_not_make_scores_zero_and_is_not_dropped() -> None:
    grader = build_grader(
        check("eq", "get_order", input="{{sample.output_tools[0].function.name}}")
    )
    silent = grade(grader, "no call")
    assert silent.score == 0.0
    assert "sample.output_tools[0]" in silent.explanation
    made = grade(grader, "", ToolCall(id="c", name="get_order", arguments="{}"))
    assert made.score == 1.0


def test_multi_combines_scores_and_shows_its_parts() -> None:
    grader = build_grader(
        {
            "type": "multi",
            "graders": {"exact": check("eq"), "loose": check("ilike")},
            "calculate_output": "0.25 * exact + 0.75 * loose",
        }
    )
    given = grade(grader, "It is paris.")
    assert given.score == 0.75
    assert given.parts == {"exact": 0.0, "loose": 1.0}


def test_what_the_model_did_not_write_is_its_own_fault_with_a_code() -> None:
    missing = grade(build_grader(check("eq", input="{{sample.output_tools[0].id}}")))
    unparsed = grade(build_grader(check("eq", input="{{sample.output_json.city}}")), "Paris")
    assert missing.failure is not None
    assert (missing.failure.kind, missing.failure.code) == (
        FailureKind.MODEL,
        "invalid_variable_error",
    )
    assert unparsed.failure is not None
    assert unparsed.failure.code == "sample_parse_error"
    assert (missing.score, unparsed.score) == (0.0, 0.0)


def test_invalid_grade_stands_for_a_part_that_the_model_gave_nothing_to_look_at() -> None:
    parts = {"a": check("eq", input="{{sample.output_json.city}}"), "b": check("like")}
    plain = build_grader(multi("0.5 * a + 0.5 * b", **parts))
    lenient = build_grader({**multi("0.5 * a + 0.5 * b", **parts), "invalid_grade": -1.0})
    assert grade(plain, "Paris").score == 0.5
    given = grade(lenient, "Paris")
    assert given.score == -1.0
    assert given.failure is not None
    assert given.failure.code == "sample_parse_error"
    assert grade(lenient, '{"city": "Paris"}').score == 1.0


def test_invalid_grade_never_stands_for_a_fault_of_the_row() -> None:
    broken = multi(a=check("eq", "{{item.capital}}"))
    with pytest.raises(GraderError, match="the row has no 'capital'") as caught:
        grade(build_grader({**broken, "invalid_grade": 0.0}))
    assert caught.value.code == "invalid_variable_error"


def test_a_grader_without_a_name_gets_one_that_its_content_decides() -> None:
    first, second = check("eq", name=None), check("like", name=None)
    names = [build_grader(config).name for config in (first, first, second)]
    assert names[0] == names[1] != names[2]
    assert re.fullmatch(r"grader-[0-9a-f]{12}", names[0])
    keys = [build_grader(endpoint(headers={"X-Key": key})).name for key in ("one", "two")]
    assert keys[0] == keys[1]


def test_graders_see_the_whole_conversation() -> None:
    path = "{{sample.messages[1].tool_calls[0].function.name}}"
    silent = build_grader(check("eq", "assistant", input="{{sample.messages[0].role}}"))
    assert grade(silent, "hello").score == 1.0
    assert grade(build_grader(check("eq", "x", input=path)), "hello").score == 0.0


def test_multi_fails_where_its_formula_has_no_value() -> None:
    grader = build_grader(
        {"type": "multi", "graders": {"a": check("eq")}, "calculate_output": "1 / a"}
    )
    assert grade(grader, "Paris").score == 1.0
    with pytest.raises(GraderError, match="character 3"):
        grade(grader, "Rome")


def a_multi(**parts: Grader) -> Multi:
    formula = parse_formula(" + ".join(parts), parts, "here")
    return Multi(name="all", graders=parts, formula=formula)


def test_a_part_that_raises_or_gives_no_score_is_named_and_the_others_are_graded() -> None:
    divides = FixedGrader(lambda task, trajectory: 1 / 0)
    untold = FixedGrader({})
    silent = Says(Grade(score=None, failure=replace(FAULT, code="unresponsive_reward_error")))
    both = a_multi(fine=FixedGrader({"task-1": 1.0}), divides=divides, silent=silent)
    with pytest.raises(GraderError) as caught:
        grade(both)
    assert str(caught.value) == (
        "grader 'all': part 'divides': ZeroDivisionError: division by zero; "
        "grader 'all': part 'silent' gave no score: no"
    )
    assert caught.value.code == "other_error"
    with pytest.raises(GraderError) as caught:
        grade(a_multi(silent=silent, untold=untold))
    assert caught.value.code == "unresponsive_reward_error"


def test_the_tokens_of_all_parts_are_added_up_by_model() -> None:
    def asked(**tokens: int) -> Says:
        usage = {m: TokenUsage(prompt_tokens=count) for m, count in tokens.items()}
        return Says(Grade(score=1.0, usage=usage))

    given = grade(a_multi(a=asked(small=1, large=2), b=asked(large=4), c=Says(Grade(score=1.0))))
    assert given.usage == {
        "small": TokenUsage(prompt_tokens=1),
        "large": TokenUsage(prompt_tokens=6),
    }


def test_tokens_are_added_up_where_a_part_or_the_formula_fails_too() -> None:
    took = {"m": TokenUsage(prompt_tokens=3)}
    fine = Says(Grade(score=0.0, usage=took))
    silent = Says(Grade(score=None, failure=FAULT, usage=took))
    refused = FixedGrader(lambda task, trajectory: refuse(took))
    for failing, total in ((a_multi(a=fine, b=silent, c=refused), 9), (inverse(fine), 3)):
        with pytest.raises(GraderError) as caught:
            grade(failing)
        assert caught.value.usage == {"m": TokenUsage(prompt_tokens=total)}


def refuse(usage: Mapping[str, TokenUsage]) -> float:
    raise GraderError("refused", usage=usage)


def inverse(part: Grader) -> Multi:
    return Multi(name="all", graders={"a": part}, formula=parse_formula("1 / a", ["a"], "here"))


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        ({"type": "python"}, "grader.source is missing; it must be a text"),
        ({"type": "lambda"}, "host it behind an endpoint and use"),
        (
            {"type": "magic"},
            "grader.type is 'magic'; supported types: string_check, text_similarity",
        ),
        ({**multi(a=check("eq")), "invalid_grade": "low"}, "grader.invalid_grade is 'low'"),
        (endpoint(rate_limit=0), "grader.rate_limit is 0; it is calls per second, above 0"),
        (endpoint(pass_threshold="x"), "grader.pass_threshold is 'x'; it must be a finite number"),
        (endpoint(headers=["x"]), "grader.headers must be an object of texts"),
        (endpoint(headers={"X-Key": "a\n"}), "grader.headers: header 'X-Key' must be printable"),
        (endpoint(url="ftp://x"), "grader.url must begin with http:// or https://"),
        (multi(a=endpoint(url="http://127.1/")), "grader.graders.a.url names '127.1'"),
        (endpoint(timeout=3), "grader.timeout is unknown; endpoint has type, name, url"),
        ({"name": "x"}, "grader.type is missing; supported types: string_check, text_similarity"),
        (check("eq", extra=1), "grader.extra is unknown; string_check has type, name, input"),
        (check("equals"), "grader.operation is 'equals'; one of: eq, ne, neq, like, ilike"),
        ({**check("eq"), "input": 3}, "grader.input is 3; it must be a text"),
        ({"type": "string_check", "input": "x"}, "grader.operation is missing"),
        (check("eq", "{{item}"), ""),
        (check("eq", "{{foo.bar}}"), "grader.reference: {{ foo.bar }} must begin with"),
        ({"type": "multi", "graders": {}}, "grader.graders must be an object of named graders"),
        ({"type": "multi", "graders": {"a": 3}}, "grader.graders.a must be a grader object"),
        (
            {"type": "multi", "graders": {"max": check("eq")}},
            "grader.graders.max: the name is used",
        ),
        (
            {"type": "multi", "graders": {"a-b": check("eq")}},
            "grader.graders.a-b: the name is used",
        ),
        (
            {"type": "multi", "graders": {"a": {"type": "multi"}}},
            "grader.graders.a: a multi grader cannot hold another one",
        ),
        (
            {"type": "multi", "graders": {"a": check("eq", operation_="x")}},
            "grader.graders.a.operation_ is unknown",
        ),
        ({"type": "multi", "graders": {"a": check("eq")}}, "grader.calculate_output is missing"),
        (
            {"type": "multi", "graders": {"a": check("eq")}, "calculate_output": "a + b"},
            "grader.calculate_output: 'a + b', character 5: unknown name 'b'; graders: a",
        ),
    ],
)
def test_a_wrong_grader_object_names_the_path(config: Mapping[str, object], shown: str) -> None:
    if not shown:
        assert grade(build_grader(config), "{{item}").score == 1.0
        return
    with pytest.raises(ConfigError) as caught:
        build_grader(config)
    assert shown in str(caught.value)


def test_no_grader_object_means_the_environments_own_grade() -> None:
    assert isinstance(build_grader({}), EnvironmentGrader)


@dataclass
class Judges:
    """An environment that grades as it is told."""

    verdict: object

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        return ()

    async def call_tool(self, call: ToolCall) -> ToolResult:
        raise NotImplementedError

    async def run_grade(self, trajectory: Trajectory) -> object:
        if isinstance(self.verdict, BaseException):
            raise self.verdict
        if isinstance(self.verdict, asyncio.Event):
            await self.verdict.wait()
        return self.verdict

    async def close(self) -> None: ...


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (0.5, Grade(score=0.5, grader="environment")),
        (True, Grade(score=1.0, grader="environment")),
        (
            {"score": 1, "found": 0.5},
            Grade(score=1.0, parts={"found": 0.5}, grader="environment"),
        ),
        (Grade(score=0.25), Grade(score=0.25, grader="environment")),
        (Grade(score=0.25, grader="mine"), Grade(score=0.25, grader="mine")),
        (
            Grade(score=None, failure=FAULT, grader="x"),
            Grade(score=None, failure=FAULT, grader="x"),
        ),
    ],
)
def test_what_an_environment_says_becomes_a_grade(verdict: object, expected: Grade) -> None:
    assert grade(EnvironmentGrader(), environment=Judges(verdict)) == expected


@pytest.mark.parametrize(
    ("verdict", "shown"),
    [
        (KeyError("shop"), "grade of Judges on task 'task-1': KeyError: 'shop'"),
        (float("nan"), "a score must be finite"),
        (float("inf"), "a score must be finite"),
        (None, "return a number, a Grade or a mapping"),
        ("0.5", "return a number, a Grade or a mapping"),
        ({"found": 1.0}, "it needs the key 'score'"),
        ({"score": "high"}, "'high' for 'score'; it must be a number"),
        ({"score": 1.0, "found": float("nan")}, "nan for 'found'; it must be a finite number"),
        (TimeoutError(), "TimeoutError"),
    ],
)
def test_a_grade_that_raises_or_makes_no_sense_is_a_grader_error(
    verdict: object, shown: str
) -> None:
    with pytest.raises(GraderError) as caught:
        grade(EnvironmentGrader(), environment=Judges(verdict))
    assert shown in str(caught.value)


def test_a_grade_that_hangs_is_named_with_its_limit() -> None:
    with pytest.raises(GraderError, match=r"task 'task-1': no grade within 0\.01 s"):
        grade(EnvironmentGrader(timeout_s=0.01), environment=Judges(asyncio.Event()))


def test_an_environment_without_a_grade_is_the_users_mistake() -> None:
    with pytest.raises(UserError, match="no grade of its own; set a grader"):
        grade(EnvironmentGrader(), environment=None)


def test_a_fixed_grader_says_what_it_was_told() -> None:
    assert grade(FixedGrader({"task-1": 0.5})).score == 0.5
    assert grade(FixedGrader(lambda task, trajectory: len(task.id))).score == 6
    with pytest.raises(GraderError, match="no score for task 'task-1'"):
        grade(FixedGrader({}))
