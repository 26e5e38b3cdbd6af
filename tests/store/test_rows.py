import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.errors import DataError
from agentrft.store.datasets import read_demonstrations, read_preferences, read_tasks
from agentrft.store.jsonl import MAX_DEPTH, MAX_LINE_BYTES, check_upload
from agentrft.store.rows import RowKind, check_rows

USER = {"role": "user", "content": "Where is W1?"}
ANSWER = {"role": "assistant", "content": "Sent."}
TOOL = {"type": "function", "function": {"name": "get", "description": "d", "parameters": {}}}
CALL = {"id": "c1", "type": "function", "function": {"name": "get", "arguments": '{"id": "W1"}'}}
CALLING = {"role": "assistant", "content": None, "tool_calls": [CALL]}
RESULT = {"role": "tool", "tool_call_id": "c1", "content": "{}"}

GOOD: dict[RowKind, dict[str, Any]] = {
    "supervised": {
        "messages": [USER, CALLING, RESULT, ANSWER | {"weight": 1}],
        "tools": [TOOL],
        "parallel_tool_calls": True,
    },
    "dpo": {
        "input": {"messages": [USER], "tools": [TOOL], "parallel_tool_calls": True},
        "preferred_output": [ANSWER],
        "non_preferred_output": [{"role": "assistant", "content": "No."}],
    },
    "reinforcement": {"messages": [USER], "tools": [TOOL], "order": "W1", "id": 3, "family": {}},
}
KINDS = get_args(RowKind)


def written(folder: Path, *rows: Any) -> Path:
    file = folder / "rows.jsonl"
    with file.open("wb") as out:
        for row in rows:
            text = row if isinstance(row, bytes) else json.dumps(row).encode()
            out.write(text + b"\n")
    return file


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_file_passes_and_is_counted(tmp_path: Path, kind: RowKind) -> None:
    bare = json.loads(json.dumps(GOOD[kind]))
    (bare["input"] if kind == "dpo" else bare).pop("tools")
    count = check_rows(written(tmp_path, *[GOOD[kind]] * 9, b"", bare), kind)
    assert (count.rows, count.with_tools, count.tools) == (10, 9, {"get": 9})
    assert check_upload(tmp_path / "rows.jsonl") == 10


def test_what_passes_the_check_can_be_read_for_training(tmp_path: Path) -> None:
    reading = {
        "supervised": read_demonstrations,
        "dpo": read_preferences,
        "reinforcement": read_tasks,
    }
    for kind, read in reading.items():
        file = written(tmp_path, *[GOOD[cast(RowKind, kind)]] * 10)
        assert check_rows(file, cast(RowKind, kind)).rows == len(read(file, numbered=True))


def test_a_pair_is_two_conversations_of_which_only_the_outputs_count(tmp_path: Path) -> None:
    row = GOOD["dpo"] | {"input": {"messages": [USER, CALLING, RESULT]}, "id": "p", "family": "f"}
    (pair,) = read_preferences(written(tmp_path, row))
    assert (pair.id, pair.family) == ("p", "f")
    preferred, rejected = pair.ways
    assert [message.content for message in preferred.messages[-2:]] == ["{}", "Sent."]
    assert rejected.messages[-1].content == "No."
    assert preferred.messages[:-1] == rejected.messages[:-1]
    assert preferred.imitated == rejected.imitated == (False, True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_file_has_ten_rows_and_a_validation_file_one(
    tmp_path: Path, kind: RowKind
) -> None:
    nine = written(tmp_path, *[GOOD[kind]] * 9)
    with pytest.raises(DataError, match="has 9 rows; a training file needs at least 10"):
        check_rows(nine, kind)
    assert check_rows(nine, kind, validation=True).rows == 9
    with pytest.raises(DataError, match="has 0 rows; a validation file needs at least 1"):
        check_rows(written(tmp_path, b""), kind, validation=True)


def test_a_file_of_tasks_has_a_most(tmp_path: Path) -> None:
    row = json.dumps({"messages": [USER]}).encode()
    file = written(tmp_path, *[row] * 1001)
    with pytest.raises(DataError, match="more than 1000 rows, the most of a validation file"):
        check_rows(file, "reinforcement", validation=True)
    assert check_rows(file, "reinforcement").rows == 1001
    with pytest.raises(DataError, match="more than 50000 rows, the most of a training file"):
        check_rows(written(tmp_path, *[row] * 50_001), "reinforcement")


def test_rows_list_only_tools_that_the_job_has(tmp_path: Path) -> None:
    file = written(tmp_path, *[GOOD["reinforcement"]] * 10)
    assert check_rows(file, "reinforcement", tools=frozenset({"get", "put"})).rows == 10
    with pytest.raises(
        DataError,
        match=r"line 1: field 'tools\[0\].function.name': the job has no tool 'get'; "
        "its tools: find, put",
    ):
        check_rows(file, "reinforcement", tools=frozenset({"put", "find"}))


def test_five_problems_are_shown_and_the_others_counted(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        check_rows(written(tmp_path, *[{}] * 4, GOOD["supervised"], *[{}] * 8), "supervised")
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines[:5]] == [f"line {n}" for n in (1, 2, 3, 4, 6)]
    assert lines[5:] == ["and 7 more lines with problems"]


def test_what_the_official_client_writes_for_nothing_may_stand(tmp_path: Path) -> None:
    nothing = {"refusal": None, "annotations": [], "audio": None, "function_call": None}
    row = {"messages": [USER, ANSWER | nothing], "tools": None, "parallel_tool_calls": None}
    assert check_rows(written(tmp_path, *[row] * 10), "supervised").rows == 10


def nested(depth: int) -> bytes:
    """A good task with something nested in it, `depth` in all."""
    inner = b"[" * (depth - 1) + b"]" * (depth - 1)
    return b'{"messages": [{"role": "user", "content": "["}], "x": ' + inner + b"}"


def long(length: int) -> bytes:
    frame = b'{"messages": [{"role": "user", "content": ""}]}'
    return frame.replace(b'""', b'"' + b"x" * (length - len(frame)) + b'"')


def test_rows_at_the_limits_pass(tmp_path: Path) -> None:
    digits = b'{"messages": [{"role": "user", "content": "?"}], "n": ' + b"9" * 4299 + b"}"
    rows = [nested(MAX_DEPTH), long(MAX_LINE_BYTES), long(MAX_LINE_BYTES) + b"\r", digits]
    brackets = {"messages": [{"role": "user", "content": '[{"\\' * 100}], "n": [[]] * 100}
    pair = rb'{"messages": [{"role": "user", "content": "\ud83d\ude00"}]}'
    count = check_rows(written(tmp_path, *rows, brackets, pair), "reinforcement", validation=True)
    assert count.rows == 6


NOT_JSON_LINES: list[tuple[bytes, str]] = [
    (b"{", "column 2: not valid JSON"),
    (b"}", "column 1: not valid JSON"),
    (b"{}{}", "column 3: not valid JSON: Extra data"),
    (b'{"a": 1,}', "column 9: not valid JSON"),
    (b"{'a': 1}", "column 2: not valid JSON"),
    (b'{"a": 01}', "column 8: not valid JSON"),
    (b'{"a": +1}', "column 7: not valid JSON"),
    (b'{"a": .5}', "column 7: not valid JSON"),
    (b'{"a": 0x10}', "column 8: not valid JSON"),
    (b'{"a": True}', "column 7: not valid JSON"),
    (b'{"a": undefined}', "column 7: not valid JSON"),
    (b'{"a": 1} // comment', "column 10: not valid JSON"),
    (b'{"a": "\x00"}', "not valid JSON: Invalid control character"),
    (b'{"a": "\x1b[31m"}', "not valid JSON: Invalid control character"),
    (b'{"a": "\\x41"}', "not valid JSON: Invalid \\\\escape"),
    (b'{"a": "\\ud8"}', "not valid JSON: Invalid \\\\uXXXX escape"),
    (b'{"a": "unended}', "not valid JSON: Unterminated string"),
    (b"\x00", "not valid JSON"),
    (b"\x0b{}", "column 1: not valid JSON"),
    ("\u00a0{}".encode(), "column 1: not valid JSON"),
    ("{}\ufeff".encode(), "column 3: not valid JSON"),
    (b"---\na: 1", "column 1: not valid JSON"),
    (b"null", "is missing or null; each line must be a JSON object"),
    (b"true", "is a boolean; each line"),
    (b"0", "is a number; each line"),
    (b'"{}"', "is text; each line"),
    (b"[{}]", "is a list; each line"),
    (b'{"a": NaN}', "NaN is not JSON"),
    (b'{"a": [-Infinity]}', "-Infinity is not JSON"),
    (b'{"a": 1e999}', "the number 1e999 is too large"),
    (b'{"a": -1e999}', "the number -1e999 is too large"),
    (b'{"a": 1' + b"0" * 4299 + b"}", "has a number of 4300 digits"),
    (b'{"a": -1' + b"0" * 200_000 + b"}", "has a number of 200002 digits"),
    (b'{"a": 1' + b"0" * 400_000 + b".0}", "the number 10{19} is too large"),
    (b'{"a": 1, "a": 2}', "key 'a' appears twice in one object"),
    (b'{"x": [{"messages": [], "messages": []}]}', "key 'messages' appears twice"),
    (b'{"a": 1, "\\u0061": 2}', "key 'a' appears twice"),
    (b'{"a": "\\ud800"}', "half of a surrogate pair"),
    (b'{"\\uDFFF": 1}', "half of a surrogate pair"),
    (b'{"a": "\\ude00\\ud83d"}', "half of a surrogate pair"),
    (b'{"a": "\xff"}', "column 8: not UTF-8"),
    (b'{"a": "\xed\xa0\x80"}', "column 8: not UTF-8"),
    (b'{"a": "\xc0\xaf"}', "column 8: not UTF-8"),
    (b'{"a": "\xf4\x90\x80\x80"}', "column 8: not UTF-8"),
    (b'{"a": "\xe2\x82"}', "column 8: not UTF-8"),
    (b"\x80", "column 1: not UTF-8"),
    (b"\x1f\x8b\x08\x00", "column 2: not UTF-8"),
    (nested(MAX_DEPTH + 1), "nested deeper than 64"),
    (b"[" * 500_000, "nested deeper than 64"),
    (b'{"a":' * 100_000, "nested deeper than 64"),
    (b'{"a":' * 65 + b"1" + b"}" * 65, "nested deeper than 64"),
    (long(MAX_LINE_BYTES + 1), "is longer than 1 MiB"),
    (b" " * (MAX_LINE_BYTES + 1) + b"{}", "is longer than 1 MiB"),
    (b"{}" + b"x" * 5_000_000, "is longer than 1 MiB"),
]


@pytest.mark.parametrize("line", range(len(NOT_JSON_LINES)))
def test_a_line_that_is_no_object_within_the_limits_is_refused_with_its_number(
    tmp_path: Path, line: int
) -> None:
    text, complaint = NOT_JSON_LINES[line]
    file = written(tmp_path, GOOD["reinforcement"], b"", text, GOOD["reinforcement"])
    with pytest.raises(DataError, match=f"^line 3: .*{complaint}"):
        check_upload(file)
    for kind in KINDS:
        with pytest.raises(DataError, match=f"line 3: .*{complaint}"):
            check_rows(file, kind, validation=True)


def test_lines_are_not_read_without_end(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2000001: a file has at most 2000000 lines"):
        check_upload(written(tmp_path, b"{}", b"\n" * 3_000_000))


def test_an_object_of_many_keys_with_one_twice_is_found_quickly(tmp_path: Path) -> None:
    pairs = b",".join(b'"%d":1' % number for number in range(90_000))
    with pytest.raises(DataError, match="key '89999' appears twice"):
        check_upload(written(tmp_path, b"{" + pairs + b',"89999":1}'))


def asking(arguments: Any = "{}", **extra: Any) -> dict[str, Any]:
    function = {"name": "get", "arguments": arguments}
    call = {"id": "c1", "type": "function", "function": function} | extra
    return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}


def tooled(**function: Any) -> dict[str, Any]:
    tool = {"type": "function", "function": {"name": "get"} | function}
    return {"messages": [USER, ANSWER], "tools": [tool]}


WRONG_ROWS: list[tuple[RowKind, Any, str]] = [
    ("supervised", {}, "messages': missing or empty"),
    ("supervised", {"messages": [USER]}, "must be the assistant's"),
    ("supervised", {"messages": [ANSWER | {"content": ""}]}, "content': missing or empty"),
    ("supervised", {"messages": [ANSWER | {"role": "function"}]}, "'function' is not one of"),
    ("supervised", {"messages": [ANSWER | {"role": "x" * 9999}]}, r"x\.\.\.$"),
    ("supervised", {"messages": [ANSWER | {"weight": 2}]}, "weight': 2 must be 0 or 1"),
    ("supervised", {"messages": [ANSWER | {"weight": True}]}, "weight': True must be 0 or 1"),
    ("supervised", {"messages": [ANSWER | {"weight": "1"}]}, "weight': '1' must be 0 or 1"),
    ("supervised", {"messages": [USER | {"weight": 1}, ANSWER]}, "only assistant messages have"),
    ("supervised", {"messages": [USER | {"name": 1}, ANSWER]}, "name': is a number; expected text"),
    ("supervised", {"messages": [ANSWER | {"audio": {"id": "a"}}]}, "audio': not supported"),
    (
        "supervised",
        {"messages": [ANSWER | {"function_call": {"name": "get"}}]},
        "function_call': not supported; a message has role",
    ),
    (
        "supervised",
        {"messages": [ANSWER | {"content": [{"type": "refusal", "refusal": "no"}]}]},
        r"content\[0\]': only text parts",
    ),
    (
        "supervised",
        {"messages": [USER, ANSWER], "functions": [{"name": "get"}]},
        "'functions': not supported; write them as 'tools'",
    ),
    (
        "supervised",
        {"messages": [USER, ANSWER], "parallel_tool_calls": "yes"},
        "parallel_tool_calls': is text; expected true or false",
    ),
    (
        "supervised",
        {
            "messages": [USER, CALLING | {"tool_calls": [CALL, CALL | {"id": "c2"}]}],
            "parallel_tool_calls": False,
        },
        r"messages\[1\].tool_calls': several calls at once",
    ),
    ("supervised", asking("["), "arguments': column 2: not valid JSON"),
    ("supervised", asking("[]"), "arguments': must be the JSON of an object"),
    ("supervised", asking('{"a": NaN}'), "arguments': NaN is not JSON"),
    ("supervised", asking('{"a": 1, "a": 2}'), "arguments': key 'a' appears twice"),
    ("supervised", asking('{"a":' * 50_000), "arguments': nested deeper than 64"),
    ("supervised", asking('{"a": ' + "9" * 5000 + "}"), "arguments': has a number of 5000"),
    ("supervised", asking('{"a": "\\ud800"}'), "arguments': has half of a surrogate"),
    ("supervised", asking({}), "arguments': expected text, got an object"),
    ("supervised", asking(type="code"), r"tool_calls\[0\].type': 'code' is not supported"),
    ("supervised", asking(function=None), r"tool_calls\[0\].function': missing"),
    ("supervised", {"messages": [USER, RESULT, ANSWER]}, "'c1' answers no earlier tool call"),
    ("supervised", tooled(name=""), "every tool needs a name"),
    ("supervised", tooled(name="a b"), "'a b' is not 1 to 64 letters, digits"),
    ("supervised", tooled(name="x" * 65), "is not 1 to 64 letters, digits"),
    ("supervised", tooled(name="get\n"), "is not 1 to 64 letters, digits"),
    ("supervised", tooled(parameters=[]), "parameters': expected a JSON schema object"),
    ("supervised", tooled(description=1), "description': is a number; expected text"),
    ("supervised", {"messages": [USER, ANSWER], "tools": {}}, "'tools': is an object"),
    (
        "supervised",
        {"messages": [USER, ANSWER], "tools": [TOOL | {"type": "web_search"}]},
        r"tools\[0\].type': 'web_search' is not supported",
    ),
    ("reinforcement", {"messages": [USER, ANSWER]}, "must be the user's, not 'assistant'"),
    ("reinforcement", {"prompt": "hi"}, "messages': missing or empty"),
    (
        "reinforcement",
        {"messages": [USER | {"content": [{"type": "input_audio"}]}]},
        r"messages\[0\].content\[0\]': only text parts",
    ),
    ("reinforcement", {"messages": [USER], "tools": [TOOL, TOOL]}, "'get' appears twice"),
    ("dpo", {}, "input': is missing or null"),
    ("dpo", GOOD["supervised"], "input': is missing or null"),
    ("dpo", GOOD["dpo"] | {"input": {}}, "input.messages': missing or empty"),
    ("dpo", GOOD["dpo"] | {"tools": [TOOL]}, "'tools': a pair has it in 'input'"),
    (
        "dpo",
        GOOD["dpo"] | {"input": {"messages": [USER, ANSWER]}},
        r"input.messages\[1\].role': the input must end before",
    ),
    (
        "dpo",
        GOOD["dpo"] | {"input": {"messages": [USER], "tools": [1]}},
        r"input.tools\[0\]': is a number",
    ),
    (
        "dpo",
        GOOD["dpo"] | {"input": {"messages": [USER], "parallel_tool_calls": 1}},
        "input.parallel_tool_calls': is a number",
    ),
    ("dpo", GOOD["dpo"] | {"preferred_output": []}, "'preferred_output': missing or empty"),
    ("dpo", GOOD["dpo"] | {"preferred_output": "yes"}, "'preferred_output': is text"),
    (
        "dpo",
        GOOD["dpo"] | {"non_preferred_output": [USER]},
        r"non_preferred_output\[0\].role': 'user' cannot be in an output",
    ),
    (
        "dpo",
        GOOD["dpo"] | {"preferred_output": [CALLING, RESULT]},
        "'preferred_output': must end with the assistant's message",
    ),
    (
        "dpo",
        GOOD["dpo"] | {"preferred_output": [ANSWER | {"content": [{"type": "image_url"}]}]},
        r"preferred_output\[0\].content\[0\]': only text parts",
    ),
    (
        "dpo",
        GOOD["dpo"] | {"non_preferred_output": [ANSWER | {"weight": 0}]},
        r"non_preferred_output\[0\].weight': outputs of a pair are compared as a whole",
    ),
    (
        "dpo",
        GOOD["dpo"]
        | {
            "input": {"messages": [USER], "parallel_tool_calls": False},
            "preferred_output": [CALLING | {"tool_calls": [CALL, CALL | {"id": "c2"}]}],
        },
        r"'preferred_output\[0\].tool_calls': several calls at once",
    ),
]


@pytest.mark.parametrize("number", range(len(WRONG_ROWS)))
def test_a_row_of_the_wrong_form_is_named_by_line_and_field(tmp_path: Path, number: int) -> None:
    kind, row, complaint = WRONG_ROWS[number]
    file = written(tmp_path, GOOD[kind], row)
    with pytest.raises(DataError, match=f"^(?=line 2: field ').*{complaint}"):
        check_rows(file, kind, validation=True)
    assert check_upload(file) == 2


def test_too_many_tool_names_are_refused_before_they_fill_the_memory(tmp_path: Path) -> None:
    rows = [tooled(name=f"tool_{number}") for number in range(1001)]
    with pytest.raises(DataError, match="line 1001: field 'tools': more than 1000 different"):
        check_rows(written(tmp_path, *rows), "supervised")


CHECK_AND_MEASURE = """
import resource, sys
from pathlib import Path
from agentrft.core.errors import DataError
from agentrft.store.jsonl import check_upload
from agentrft.store.rows import check_rows
path, kind = Path(sys.argv[1]), sys.argv[2]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    check_rows(path, kind) if kind else check_upload(path)
except DataError as error:
    print(len(str(error)) < 10_000)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (json.dumps(GOOD["supervised"] | {"note": "n" * 60_000}).encode() + b"\n", "supervised"),
        (json.dumps({"messages": "x" * 60_000}).encode() + b"\n", "supervised"),
        (long(MAX_LINE_BYTES) + b"\n", ""),
        (b"x" * MAX_LINE_BYTES, ""),
    ],
    ids=["good rows", "bad rows", "longest lines", "one endless line"],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, line: bytes, kind: str) -> None:
    file = tmp_path / "rows.jsonl"
    with file.open("wb") as out:
        for _ in range((64 << 20) // len(line)):
            out.write(line)
    said = subprocess.run(
        [sys.executable, "-c", CHECK_AND_MEASURE, str(file), kind],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert int(said[-1]) < 24 << 10, "KiB that a file of 64 MiB added"
    assert said[:-1] in ([], ["True"])


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
ITEM = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
CONTENT = TEXT | TEXT.map(lambda text: [{"type": "text", "text": text}])
TOOLS = st.lists(
    st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), max_size=3, unique=True
).map(lambda names: [{"type": "function", "function": {"name": name}} for name in names])
ASSISTANT = st.fixed_dictionaries(
    {"role": st.just("assistant"), "content": CONTENT},
    optional={"weight": st.sampled_from([0, 1]), "refusal": st.none()},
)
UNWEIGHTED = ASSISTANT.filter(lambda message: message.get("weight") != 0)
ASKING = st.fixed_dictionaries(
    {
        "role": st.just("assistant"),
        "tool_calls": st.dictionaries(TEXT, ITEM, max_size=2).map(
            lambda arguments: [
                {"id": "c1", "function": {"name": "get", "arguments": json.dumps(arguments)}}
            ]
        ),
    }
)
OTHER = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user"]), "content": CONTENT}
)
HISTORY = st.lists(OTHER | ASSISTANT | ASKING, max_size=4)
USERS = st.fixed_dictionaries({"role": st.just("user"), "content": CONTENT})


def ending(last: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    return st.tuples(HISTORY, last).map(lambda parts: [*parts[0], parts[1]])


ROWS: dict[RowKind, st.SearchStrategy[dict[str, Any]]] = {
    "supervised": st.fixed_dictionaries(
        {"messages": ending(ASSISTANT | ASKING)},
        optional={"tools": TOOLS, "parallel_tool_calls": st.booleans()},
    ),
    "reinforcement": st.tuples(
        st.dictionaries(TEXT, ITEM, max_size=3),
        st.fixed_dictionaries({"messages": ending(USERS)}, optional={"tools": TOOLS}),
    ).map(lambda parts: parts[0] | parts[1]),
    "dpo": st.fixed_dictionaries(
        {
            "input": st.fixed_dictionaries({"messages": ending(USERS)}, optional={"tools": TOOLS}),
            "preferred_output": st.lists(UNWEIGHTED, min_size=1, max_size=2),
            "non_preferred_output": st.lists(UNWEIGHTED, min_size=1, max_size=2),
        }
    ),
}


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_valid_rows_always_pass(
    tmp_path_factory: pytest.TempPathFactory, kind: RowKind, data: st.DataObject
) -> None:
    row = data.draw(ROWS[kind])
    ascii_only = data.draw(st.booleans())
    text = json.dumps(row, ensure_ascii=ascii_only).encode()
    file = written(tmp_path_factory.mktemp("rows"), *[text] * 10)
    assert check_rows(file, kind).rows == 10
    if kind != "dpo":
        read = read_demonstrations if kind == "supervised" else read_tasks
        assert len(read(file, numbered=True)) == 10


def check_all(folder: Path, content: bytes) -> None:
    """Whatever is in a file, a check passes or raises DataError with a line or a count."""
    file = folder / "rows.jsonl"
    file.write_bytes(content)
    for kind in KINDS:
        complaint = "line "
        try:
            check_rows(file, kind, validation=True)
        except DataError as error:
            complaint = str(error)
        assert complaint.startswith(("line ", "the file has "))


@given(content=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_pass(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    check_all(tmp_path_factory.mktemp("rows"), content)


@given(kind=st.sampled_from(KINDS), data=st.data())
def test_a_good_row_with_broken_bytes_is_refused_or_passes(
    tmp_path_factory: pytest.TempPathFactory, kind: RowKind, data: st.DataObject
) -> None:
    text = json.dumps(GOOD[kind]).encode()
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 20, len(text))))
    patch = data.draw(
        st.binary(max_size=6)
        | st.sampled_from([b"null", b"[]", b"{}", b'""', b"NaN", b"1e999", b"\\ud800", b"\n", b"]"])
    )
    check_all(tmp_path_factory.mktemp("rows"), text[:start] + patch + text[end:])
