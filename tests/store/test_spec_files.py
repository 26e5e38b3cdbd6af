import json
import string
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentrft.core.config import Decoding, Limits
from agentrft.core.errors import ConfigError, DataError, StoreError
from agentrft.core.spec import (
    AgentSpec,
    Exposure,
    Guards,
    Precondition,
    Rendering,
    Section,
    Shown,
    ToolView,
)
from agentrft.core.task import Demonstration, Message, ToolCall, ToolSpec
from agentrft.store.codec import from_json, to_json
from agentrft.store.spec_files import read_spec, spec_diff, spec_files, write_spec

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
WORDS = TEXT.filter(str)
NAMES = st.text(string.ascii_letters + string.digits + "_-", min_size=1, max_size=12)
NAME_LISTS = st.lists(NAMES, max_size=3).map(tuple)
NAME_MAPS = st.dictionaries(NAMES, WORDS, max_size=3)
TEMPERATURES = st.floats(0, 2)
RENDERINGS = st.builds(
    Rendering,
    form=st.sampled_from(["raw", "fields", "key_value", "table"]),
    fields=NAME_LISTS,
    max_characters=st.integers(0, 10_000),
    keep=st.sampled_from(["head", "tail", "both"]),
    shorten_ids=st.booleans(),
    error_hints=st.booleans(),
)
VIEWS = st.builds(
    ToolView,
    exposed=st.booleans(),
    name=NAMES | st.just(""),
    parameters=NAME_MAPS,
    description=TEXT,
    argument_notes=NAME_MAPS,
    schema=st.sampled_from(["as_is", "flat", "strict"]),
    rendering=st.none() | RENDERINGS,
)


@st.composite
def demonstrations(draw: st.DrawFn) -> Demonstration:
    call = ToolCall(id="c1", name=draw(NAMES), arguments=json.dumps(draw(NAME_MAPS)))
    messages = (
        Message(role="user", content=draw(WORDS)),
        Message(role="assistant", content=draw(TEXT), tool_calls=(call,)),
        Message(role="tool", content=draw(TEXT), tool_call_id="c1", name=call.name),
        Message(role="assistant", content=draw(WORDS)),
    )
    tool = ToolSpec(name=draw(NAMES), description=draw(TEXT), parameters={"type": "object"})
    return Demonstration(
        id=draw(NAMES),
        messages=messages,
        family=draw(NAMES | st.just("")),
        tools=draw(st.sampled_from([(), (tool,)])),
        imitated=draw(st.just(()) | st.tuples(st.booleans(), st.booleans())),
    )


SPECS = st.builds(
    AgentSpec,
    sections=st.lists(st.builds(Section, name=TEXT, text=TEXT), max_size=12).map(tuple),
    tools=st.dictionaries(NAMES, VIEWS, max_size=3),
    exposure=st.builds(
        Exposure,
        mode=st.sampled_from(["all", "retrieved"]),
        most=st.integers(0, 9),
        always=NAME_LISTS,
    ),
    rendering=RENDERINGS,
    guards=st.builds(
        Guards,
        coerce=st.booleans(),
        preconditions=st.lists(
            st.builds(
                Precondition, tool=NAMES, after=NAME_LISTS, same_argument=NAMES | st.just("")
            ),
            max_size=2,
        ).map(tuple),
        confirm=NAME_LISTS,
    ),
    limits=st.builds(Limits, max_turns=st.integers(1, 9), timeout_s=st.floats(1, 600)),
    decoding=st.builds(
        Decoding, temperature=TEMPERATURES, grammar=st.sampled_from(["off", "calls", "call_first"])
    ),
    shown=st.builds(
        Shown,
        count=st.integers(0, 8),
        selection=st.sampled_from(["static", "nearest", "covering"]),
        pool=st.lists(demonstrations(), max_size=3).map(tuple),
    ),
)


@settings(max_examples=150, deadline=None)
@given(spec=SPECS, baseline=SPECS, before=SPECS)
def test_a_spec_that_was_written_reads_back_the_same_whatever_was_there(
    spec: AgentSpec, baseline: AgentSpec, before: AgentSpec
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "spec"
        write_spec(folder, before, baseline)
        write_spec(folder, spec, baseline)
        again = read_spec(folder, baseline)
        assert again == spec
        assert again.hash == spec.hash
        assert [path.name for path in Path(name).iterdir()] in ([], ["spec"])


@settings(max_examples=50, deadline=None)
@given(spec=SPECS)
def test_a_stored_spec_reads_back_the_same(spec: AgentSpec) -> None:
    assert from_json(AgentSpec, to_json(spec)) == spec


def test_only_what_differs_is_written(tmp_path: Path) -> None:
    baseline = AgentSpec(
        sections=(Section(name="role", text="You help."),), decoding=Decoding(temperature=0.5)
    )
    write_spec(tmp_path / "spec", baseline, baseline)
    assert not (tmp_path / "spec").exists()
    guarded = replace(baseline, guards=Guards(coerce=True))
    assert dict(spec_files(guarded, baseline)) == {"spec.toml": "[guards]\ncoerce = true\n"}


def test_the_folder_overlays_what_it_names_and_leaves_the_rest(tmp_path: Path) -> None:
    baseline = AgentSpec(
        sections=(Section(name="role", text="You help."),), limits=Limits(max_turns=3)
    )
    (tmp_path / "spec.toml").write_text("[decoding]\ntemperature = 0.25\n")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "get_order.md").write_text("Look an order up.\n")
    spec = read_spec(tmp_path, baseline)
    assert (spec.sections, spec.limits) == (baseline.sections, baseline.limits)
    assert spec.decoding == Decoding(temperature=0.25)
    assert spec.tools == {"get_order": ToolView(description="Look an order up.")}


def test_sections_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "system").mkdir()
    for name, text in (("10-stop.md", "b"), ("9-role.md", "a"), ("100-format.md", "c")):
        (tmp_path / "system" / name).write_text(text)
    assert [s.name for s in read_spec(tmp_path, AgentSpec()).sections] == ["role", "stop", "format"]


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("spec.toml", "[guards]\ncoerc = true\n", r"spec\.toml.*guards\.coerc.*'coerce'"),
        (
            "spec.toml",
            "[tools.get.rendering]\nfrom = 'raw'\n",
            r"tools\.get\.rendering\.from.*'form'",
        ),
        ("spec.toml", "[limits]\nmax_turns = 'two'\n", r"limits\.max_turns"),
        ("spec.toml", "[limits\n", r"not valid TOML"),
        ("spec.tml", "", r"spec\.tml: not a part of a spec; did you mean spec\.toml"),
        ("system/role.md", "x", r"role\.md.*NN-name\.md"),
        ("tools/get.txt", "x", r"get\.txt.*NAME\.md"),
    ],
)
def test_what_nobody_knows_is_named(tmp_path: Path, file: str, text: str, message: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_spec(tmp_path, AgentSpec())


def test_a_broken_demonstration_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "demonstrations.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(DataError, match=r"demonstrations\.jsonl line 1.*messages"):
        read_spec(tmp_path, AgentSpec())


def test_what_is_said_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text("[tools.get]\ndescription = 'Get.'\n")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "get.md").write_text("Fetch.")
    with pytest.raises(ConfigError, match=r"tools\.get\.description.*keep one"):
        read_spec(tmp_path, AgentSpec())


def test_names_of_tools_and_sections_lead_nowhere_else(tmp_path: Path) -> None:
    names = ("../x", "..", "a/b", ".hidden", "C:\\x", "CON", "50%")
    spec = AgentSpec(
        sections=tuple(Section(name=name, text=name) for name in names),
        tools={name: ToolView(description=name) for name in names},
    )
    folder = tmp_path / "project" / "spec"
    write_spec(folder, spec, AgentSpec())
    assert read_spec(folder, AgentSpec()) == spec
    assert [path.name for path in tmp_path.iterdir()] == ["project"]
    assert {path.name for path in folder.iterdir()} == {"system", "tools"}


def test_a_write_that_fails_leaves_the_folder_as_it_was_and_nothing_beside_it(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "spec"
    fine = AgentSpec(sections=(Section(name="role", text="Help."),))
    write_spec(folder, fine, AgentSpec())
    long = AgentSpec(sections=(Section(name="x" * 300, text="Help."),))
    with pytest.raises(StoreError, match="cannot be written"):
        write_spec(folder, long, AgentSpec())
    assert read_spec(folder, AgentSpec()) == fine
    assert [path.name for path in tmp_path.iterdir()] == ["spec"]


def test_a_write_that_was_cut_short_is_not_taken_for_no_spec(tmp_path: Path) -> None:
    (tmp_path / ".spec.old").mkdir()
    with pytest.raises(ConfigError, match="rename it back"):
        read_spec(tmp_path / "spec", AgentSpec())


def test_a_demonstration_that_no_row_can_hold_is_refused_before_anything_changes(
    tmp_path: Path,
) -> None:
    stray = Demonstration(
        id="d1",
        messages=(
            Message(role="user", content="hi"),
            Message(role="tool", content="x", tool_call_id="unreadable_1_0", name=""),
            Message(role="assistant", content="yes"),
        ),
    )
    with pytest.raises(ConfigError, match="d1.*tool_call_id"):
        write_spec(tmp_path / "spec", AgentSpec(shown=Shown(pool=(stray,))), AgentSpec())
    assert not list(tmp_path.iterdir())


def test_a_diff_shows_the_lines_that_change() -> None:
    first = AgentSpec(sections=(Section(name="role", text="You help.\nBe brief."),))
    second = AgentSpec(
        sections=(Section(name="role", text="You help.\nBe exact."),),
        tools={"get": ToolView(description="Fetch.")},
    )
    shown = spec_diff(first, second)
    assert "-Be brief.\n+Be exact." in shown
    assert "+++ tools/get.md\n" in shown
    assert spec_diff(first, first) == ""
