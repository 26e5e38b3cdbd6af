import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.errors import DataError
from agentrft.core.task import ToolSpec
from agentrft.store.datasets import read_demonstrations, read_tasks

USER = {"role": "user", "content": "Where is W1?"}
TOOL = {"type": "function", "function": {"name": "get", "description": "d", "parameters": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"id": "W1"}'}}


def written(tmp_path: Path, *rows: Any) -> Path:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return file


def asking(call: Any) -> dict[str, Any]:
    answer = {"role": "tool", "tool_call_id": "c1", "content": "{}"}
    closing = {"role": "assistant", "content": "Sent."}
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}, answer, closing]}


def test_a_task_keeps_its_whole_row(tmp_path: Path) -> None:
    row = {"id": "t1", "family": "lookup", "messages": [USER], "tools": [TOOL], "shop": {"W1": 1}}
    (task,) = read_tasks(written(tmp_path, row))
    assert (task.id, task.family, task["shop"]) == ("t1", "lookup", {"W1": 1})
    assert task.row == row
    assert task.tools == (ToolSpec(name="get", description="d", parameters={}),)
    assert task.messages[0].content == "Where is W1?"


def test_a_row_without_id_gets_the_same_one_every_time(tmp_path: Path) -> None:
    first, second = (read_tasks(written(tmp_path, {"messages": [USER]}))[0].id for _ in range(2))
    assert first == second
    assert first != ""


def test_text_parts_are_joined_and_blank_lines_skipped(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Where "}, {"type": "text", "text": "is W1?"}]
    row = {"messages": [{"role": "user", "content": parts}]}
    (task,) = read_tasks(written(tmp_path, "", row, "  "))
    assert task.messages[0].content == "Where is W1?"


def test_a_demonstration_links_results_to_calls(tmp_path: Path) -> None:
    (demonstration,) = read_demonstrations(written(tmp_path, asking(CALL)))
    call, result = demonstration.messages[1].tool_calls[0], demonstration.messages[2]
    assert (call.id, call.name, call.arguments) == ("c1", "get", '{"id": "W1"}')
    assert (result.tool_call_id, result.name) == ("c1", "get")


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ('{"messages": [}', "line 1: column 15: not valid JSON"),
        ("[]", "line 1: is a list; each line must be a JSON object"),
        ('{"messages": NaN}', "line 1: NaN is not JSON"),
        ("[" * 100_000, "line 1: nested deeper than 64"),
        (r'{"messages": [], "x": "\ud800"}', "half of a surrogate pair"),
        ({}, "line 1: field 'messages': missing or empty"),
        ({"messages": []}, "field 'messages': missing or empty"),
        ({"messages": "hi"}, "field 'messages': is text; expected a list"),
        ({"messages": ["hi"]}, r"field 'messages\[0\]': is text; expected an object"),
        ({"messages": [{"role": "robot"}]}, r"field 'messages\[0\].role': 'robot' is not one of"),
        ({"messages": [{"role": []}]}, r"field 'messages\[0\].role'"),
        ({"messages": [{"role": "user"}]}, r"field 'messages\[0\].content': missing or empty"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "must be the user's"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            r"field 'messages\[0\].content\[0\]': only text parts",
        ),
        ({"messages": [{"role": "user", "content": 3}]}, "is a number; expected text"),
        ({"messages": [USER | {"tool_calls": [CALL]}]}, "only assistant messages may call"),
        ({"id": 3, "messages": [USER]}, "field 'id': is a number; expected text"),
        ({"family": {}, "messages": [USER]}, "field 'family': is an object; expected text"),
        ({"messages": [USER], "tools": [{}]}, r"field 'tools\[0\].function': missing"),
        (
            {"messages": [USER], "tools": [{"function": {"description": "d"}}]},
            r"field 'tools\[0\].function.name': missing",
        ),
        ({"messages": [USER], "tools": [TOOL, TOOL]}, "'get' appears twice"),
        (
            {"messages": [USER], "tools": [{"function": {"name": "g", "parameters": []}}]},
            "parameters': expected a JSON schema object",
        ),
    ],
)
def test_a_bad_task_is_named_by_line_and_field(tmp_path: Path, row: Any, complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read_tasks(written(tmp_path, row))


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"messages": [USER]}, "last message of a demonstration must be the assistant's"),
        (asking({"id": "c1"}), r"messages\[1\].tool_calls\[0\].function': missing"),
        (asking(CALL | {"id": ""}), r"tool_calls\[0\].id': expected text, got empty text"),
        (asking(CALL | {"function": {"name": "get"}}), "arguments': expected text, got missing"),
        (
            asking(CALL | {"function": {"name": "get", "arguments": {"id": 1}}}),
            "arguments': expected text, got an object",
        ),
        (
            asking(CALL | {"function": {"name": "get", "arguments": "{"}}),
            "arguments': column 2: not valid JSON",
        ),
        (asking(CALL | {"function": {"name": "get", "arguments": "3"}}), "JSON of an object"),
        (asking(CALL | {"id": "c9"}), r"messages\[2\].tool_call_id': 'c1' answers no earlier"),
    ],
)
def test_a_bad_demonstration_is_named_by_line_and_field(
    tmp_path: Path, row: Any, complaint: str
) -> None:
    with pytest.raises(DataError, match=complaint):
        read_demonstrations(written(tmp_path, row))


def test_repeated_ids_name_both_lines(tmp_path: Path) -> None:
    row = {"id": "t1", "messages": [USER]}
    with pytest.raises(DataError, match=r"line 3: field 'id': 't1' is already the id of line 1"):
        read_tasks(written(tmp_path, row, "", row))


def test_numbered_rows_may_repeat_and_their_ids_mean_nothing(tmp_path: Path) -> None:
    row = {"id": 3, "family": {}, "messages": [USER]}
    file = written(tmp_path, row, "", row)
    assert [(task.id, task.family) for task in read_tasks(file, numbered=True)] == [
        ("row-1", ""),
        ("row-3", ""),
    ]
    ids = [row.id for row in read_demonstrations(written(tmp_path, asking(CALL)), numbered=True)]
    assert ids == ["row-1"]


def test_a_weight_of_zero_keeps_a_message_from_being_imitated(tmp_path: Path) -> None:
    messages = [
        USER,
        {"role": "assistant", "content": "a", "weight": 0},
        USER,
        {"role": "assistant", "content": "b", "weight": 1},
        USER,
        {"role": "assistant", "content": "c"},
    ]
    (demonstration,) = read_demonstrations(written(tmp_path, {"messages": messages}))
    assert demonstration.imitated == (False, True, True)


@pytest.mark.parametrize("key", ["id", "family"])
def test_a_label_that_a_database_could_not_hold_is_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(DataError, match=f"field '{key}': has control characters"):
        read_tasks(written(tmp_path, {"messages": [USER], key: "a\0b"}))


def test_the_first_five_problems_come_in_one_message(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_tasks(written(tmp_path, *[{} for _ in range(9)]))
    lines = str(caught.value).splitlines()
    assert [f"line {n}" in line for n, line in enumerate(lines[:5], start=1)] == [True] * 5
    assert lines[5] == "and 4 more lines with problems"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b'\xef\xbb\xbf{"messages": []}', "line 1: starts with a byte order mark"),
        ("{}".encode("utf-16"), "line 1: starts with a byte order mark"),
        (b'{"a": "\xe9"}', "line 1: column 8: not UTF-8"),
    ],
)
def test_a_file_that_is_no_utf8_jsonl_says_so(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        read_tasks(file)


def test_a_missing_file_and_a_folder_are_no_datasets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl does not exist"):
        read_tasks(tmp_path / "gone.jsonl")
    with pytest.raises(DataError, match="cannot be read"):
        read_tasks(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "messages", "tools", "function", "name", "id"]),
            inner,
            max_size=4,
        )
    ),
)


@given(row=JSON)
def test_any_json_is_read_or_refused_with_a_line(
    tmp_path_factory: pytest.TempPathFactory, row: Any
) -> None:
    file = written(tmp_path_factory.mktemp("rows"), json.dumps({"messages": row, "tools": row}))
    for read in (read_tasks, read_demonstrations):
        complaint = ""
        try:
            read(file)
        except DataError as error:
            complaint = str(error)
        assert not complaint or complaint.startswith(f"{file} line 1: field '")
