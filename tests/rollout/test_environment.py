import asyncio
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Any, Literal

import pytest
from byte_chat import a_task

from agentrft.core.call_thread import in_thread
from agentrft.core.errors import ToolError, UserError
from agentrft.core.task import Task, ToolCall
from agentrft.core.trajectory import ToolResult
from agentrft.rollout.environment import Environment, python_environment, tool_specs
from agentrft.rollout.tools import ToolRefusal, output_text, split_docstring, tool


class Size(Enum):
    SMALL = "small"
    LARGE = "large"


@dataclass
class Address:
    street: str
    number: int = 1


class Everything(Environment):
    @tool
    def everything(  # noqa: PLR0917
        self,
        text: str,
        count: int,
        share: float,
        sure: bool,
        way: Literal["air", "sea"],
        size: Size,
        tags: list[str],
        more: dict[str, int],
        where: Address,
        note: str | None = None,
        limit: int = 3,
    ) -> dict[str, Any]:
        """Take one of each.

        Args:
            text: any words,
                over two lines
            count (int): how many
            note: optional remark

        Returns:
            all of it
        """
        return {"size": size is Size.SMALL, "street": where.street, "limit": limit, "note": note}


FULL = (
    '{"text": "a", "count": "2", "share": 0.5, "sure": true, "way": "air", "size": "small", '
    '"tags": ["x"], "more": {"a": 1}, "where": {"street": "Elm"}}'
)


def call(environment: Environment, name: str, arguments: str = "{}") -> ToolResult:
    return asyncio.run(environment.call_tool(ToolCall(id="c1", name=name, arguments=arguments)))


def test_type_hints_and_docstring_become_the_schema() -> None:
    (spec,) = tool_specs(Everything)
    assert spec.name == "everything"
    assert spec.description == "Take one of each."
    assert spec.parameters == {
        "type": "object",
        "properties": {
            "text": {"type": "string", "description": "any words, over two lines"},
            "count": {"type": "integer", "description": "how many"},
            "share": {"type": "number"},
            "sure": {"type": "boolean"},
            "way": {"enum": ["air", "sea"], "type": "string"},
            "size": {"enum": ["small", "large"], "type": "string"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "more": {"type": "object", "additionalProperties": {"type": "integer"}},
            "where": {
                "type": "object",
                "properties": {
                    "street": {"type": "string"},
                    "number": {"type": "integer", "default": 1},
                },
                "required": ["street"],
            },
            "note": {"type": "string", "description": "optional remark"},
            "limit": {"type": "integer"},
        },
        "required": [
            "text",
            "count",
            "share",
            "sure",
            "way",
            "size",
            "tags",
            "more",
            "where",
        ],
    }


def test_arguments_arrive_as_the_types_that_the_hints_promise() -> None:
    result = call(Everything(a_task()), "everything", FULL)
    assert not result.is_error, result.content
    assert result.content == '{"size": true, "street": "Elm", "limit": 3, "note": null}'


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must be a JSON object"),
        ("[" * 100_000, "not valid JSON"),
        ('{"text": NaN}', "not valid JSON (NaN is not a number)"),
        ('{"text": "\\ud800"}', "not valid JSON"),
        ('{"count": ' + "1" * 5000 + "}", "not valid JSON"),
        (FULL.replace("0.5", '"nan"'), "argument 'share'"),
        (FULL.replace("0.5", "1e999"), "argument 'share'"),
        ("{}", "argument 'text' is missing; expected {text: string, count: integer"),
        (
            FULL.replace('"air"', '"road"'),
            "argument 'way': Input should be 'air' or 'sea', got \"road\"",
        ),
        (FULL.replace('"Elm"', "5"), "argument 'where.street'"),
        (FULL.replace('{"text"', '{"texts": 1, "text"'), "everything has no argument 'texts'"),
    ],
)
def test_wrong_arguments_say_what_is_expected(arguments: str, shown: str) -> None:
    result = call(Everything(a_task()), "everything", arguments)
    assert result.is_error
    assert shown in result.content


def test_an_unknown_tool_names_the_nearest() -> None:
    result = call(Everything(a_task()), "everthing")
    assert result.content == (
        "Error: there is no tool 'everthing'; did you mean 'everything'? tools: everything"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Look up. a: one, e.g. W1. b: two.", ("Look up.", {"a": "one, e.g. W1.", "b": "two."})),
        ("a: only a note", ("", {"a": "only a note"})),
        ("Ratio a:b is fine. c: not ours", ("Ratio a:b is fine. c: not ours", {})),
        ("Do it.\n\n    a: indented text\n", ("Do it.", {"a": "indented text"})),
        (
            "Do it.\n\nArgs:\n    a: x\n    other: y\n\nAfter all.",
            ("Do it. After all.", {"a": "x"}),
        ),
    ],
)
def test_argument_notes_are_taken_out_of_the_description(
    text: str, expected: tuple[str, dict[str, str]]
) -> None:
    assert split_docstring(text, ["a", "b"]) == expected


def no_hint() -> type[Environment]:
    class NoHint(Environment):
        @tool
        def look(self, order_id) -> str:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
            """Look."""
            return ""

    return NoHint


def no_docstring() -> type[Environment]:
    class NoDocstring(Environment):
        @tool
        def look(self) -> str:
            return ""

    return NoDocstring


def only_notes() -> type[Environment]:
    class OnlyNotes(Environment):
        @tool
        def look(self, a: str) -> str:
            """a: something"""
            return ""

    return OnlyNotes


def no_json() -> type[Environment]:
    class NoJson(Environment):
        @tool
        def look(self, thing: Callable[[], int]) -> str:
            """Look."""
            return ""

    return NoJson


def star() -> type[Environment]:
    class Star(Environment):
        @tool
        def look(self, **what: str) -> str:
            """Look."""
            return ""

    return Star


def same_name() -> type[Environment]:
    class SameName(Environment):
        @tool
        def look(self) -> str:
            """Look."""
            return ""

        @tool(name="look")
        def see(self) -> str:
            """See."""
            return ""

    return SameName


def same_method() -> type[Environment]:
    class SameMethod(Environment):
        @tool
        def look(self) -> str:  # pyright: ignore[reportRedeclaration]
            """Look."""
            return ""

        @tool
        def look(self) -> str:  # noqa: F811
            """Look again."""
            return ""

    return SameMethod


def reserved() -> type[Environment]:
    class Reserved(Environment):
        @tool
        def close(self) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
            """Close the case."""
            return ""

    return Reserved


@dataclass
class Node:
    below: "list[Node]"


def recursive() -> type[Environment]:
    class Recursive(Environment):
        @tool
        def look(self, node: Node) -> str:
            """Look."""
            return ""

    return Recursive


@pytest.mark.parametrize(
    ("define", "shown"),
    [
        (no_hint, "tool 'look' of NoHint: parameter 'order_id' has no type hint; write"),
        (no_docstring, "tool 'look' of NoDocstring has no description; write a docstring"),
        (only_notes, "tool 'look' of OnlyNotes has no description"),
        (no_json, "parameter 'thing' has type .* no JSON form"),
        (star, r"'\*what' has no schema"),
        (same_name, "SameName has two tools named 'look'; rename"),
        (same_method, "SameMethod defines tool 'look' twice; rename"),
        (reserved, r"cannot be called 'close'.*@tool\(name='close'\)"),
        (recursive, "contains itself"),
    ],
)
def test_a_wrong_tool_definition_is_one_clear_message(
    define: Callable[[], type[Environment]], shown: str
) -> None:
    with pytest.raises(UserError, match=shown):
        python_environment(define())


def test_a_subclass_inherits_replaces_and_hides_tools() -> None:
    class Base(Environment):
        @tool
        def one(self) -> str:
            """One."""
            return "base"

        @tool
        def two(self) -> str:
            """Two."""
            return "base"

    class Child(Base):
        two = None  # pyright: ignore[reportAssignmentType]

        @tool
        def one(self) -> str:
            """Uno."""
            return "child"

        @tool(name="close")
        def close_case(self) -> str:
            """Close the case."""
            return self.one()

    assert [(s.name, s.description) for s in tool_specs(Child)] == [
        ("one", "Uno."),
        ("close", "Close the case."),
    ]
    assert call(Child(a_task()), "close").content == "child"


def test_return_values_are_text_or_compact_json() -> None:
    assert output_text("as is: é") == "as is: é"
    assert output_text({"a": [1, None], "é": Address("Elm")}) == (
        '{"a": [1, null], "é": {"street": "Elm", "number": 1}}'
    )


def test_refusals_are_results_and_other_exceptions_are_faults() -> None:
    class Moody(Environment):
        @tool
        def refuse(self) -> str:
            """Refuse."""
            raise ToolRefusal("not today")

        @tool
        def endless(self) -> float:
            """Return what JSON lacks."""
            return float("nan")

        @tool
        def late(self) -> str:
            """Run out of time by itself."""
            raise TimeoutError

    refused = call(Moody(a_task()), "refuse")
    assert (refused.content, refused.is_error) == ("Error: not today", True)
    with pytest.raises(ToolError, match="tool 'endless'"):
        call(Moody(a_task()), "endless")
    with pytest.raises(ToolError, match="tool 'late': TimeoutError"):
        call(Moody(a_task()), "late")


def test_objects_bound_to_a_thread_work_in_every_method() -> None:
    class Shop(Environment):
        def __init__(self, task: Task) -> None:
            self.database = sqlite3.connect(":memory:")

        @tool
        def one(self) -> int:
            """Count to one."""
            return self.database.execute("select 1").fetchone()[0]

        def teardown(self) -> None:
            self.database.close()

    async def scenario() -> str:
        environment = python_environment(Shop)(a_task(), "trace_1")
        result = await environment.call_tool(ToolCall(id="c", name="one", arguments=""))
        await environment.close()
        return result.content

    assert asyncio.run(scenario()) == "1"


def test_the_thread_that_opens_an_environment_is_its_own_and_ends_with_it() -> None:
    threads: list[threading.Thread] = []

    class Picky(Environment):
        def __init__(self, task: Task) -> None:
            threads.append(threading.current_thread())
            if task.id == "wrong":
                raise LookupError

        def teardown(self) -> None:
            threads.append(threading.current_thread())

    async def scenario() -> None:
        opener = python_environment(Picky)
        environment = await in_thread(partial(opener, a_task(), "trace_1"), name="right")
        await environment.close()
        with pytest.raises(LookupError):
            await in_thread(partial(opener, replace(a_task(), id="wrong"), "trace_2"), name="wrong")

    asyncio.run(scenario())
    assert [thread.name for thread in threads] == ["right", "right", "wrong"]
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


def test_calls_left_behind_do_not_hold_up_the_close_and_teardown_comes_after_them() -> None:
    begun, release, torn_down = threading.Event(), threading.Event(), threading.Event()

    class Slow(Environment):
        @tool
        def wait(self) -> str:
            """Wait."""
            begun.set()
            release.wait()
            return ""

        def teardown(self) -> None:
            torn_down.set()

    async def scenario() -> None:
        environment = python_environment(Slow)(a_task(), "trace_1")
        call = ToolCall(id="c", name="wait", arguments="{}")
        both = asyncio.gather(environment.call_tool(call), environment.call_tool(call))
        await asyncio.to_thread(begun.wait, 30)
        both.cancel()
        with pytest.raises(asyncio.CancelledError):
            await both
        try:
            await asyncio.wait_for(environment.close(), 30)
            assert not torn_down.is_set()
        finally:
            release.set()

    asyncio.run(scenario())
    assert torn_down.wait(30)


HANGING_PROGRAM = """
import asyncio, threading
from agentrft.core.task import Task, ToolCall
from agentrft.rollout.environment import Environment, python_environment
from agentrft.rollout.tools import tool

class Hangs(Environment):
    @tool
    def hang(self) -> str:
        "Hang."
        threading.Event().wait()
        return ""

async def main():
    environment = python_environment(Hangs)(Task(id="t", messages=()), "trace")
    try:
        async with asyncio.timeout(0.05):
            await environment.call_tool(ToolCall(id="c", name="hang", arguments="{}"))
    except TimeoutError:
        await environment.close()
        print("left")

asyncio.run(main())
"""


def test_a_hung_tool_does_not_keep_the_process_alive() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGING_PROGRAM],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("left\n", 0), done.stderr
