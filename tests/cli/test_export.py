"""A user trains, exports in every form, and talks to the result: the command line, tiny weights."""

import json
import re
import runpy
from contextlib import chdir
from pathlib import Path

import pytest
from desk_model import a_desk, tiny_families
from typer.testing import CliRunner

from agentrft.cli import app
from agentrft.core.run import RunStatus
from agentrft.store.home import Home

TOML = """
[data]
demonstrations = "demonstrations.jsonl"
[methods.supervised]
steps = 3
batch_size = 1
[methods.supervised.trainer]
dtype = "float32"
threads = 1
[methods.supervised.trainer.optimizer]
learning_rate = 0.01
"""


class Desk:
    """A desk whose model was trained from the command line."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        base = tiny_families._write_chat_model(folder / "base")
        self.project = folder / "desk"
        a_desk(self.project, toml=TOML)
        written = (self.project / "agent.toml").read_text()
        written = written.replace("max_turns = 3", "max_turns = 3\nmax_context_tokens = 512")
        written = written.replace("max_sequences = 4", 'max_sequences = 4\ndtype = "float32"')
        (self.project / "agent.toml").write_text(f'model = "{base}"\n{written}')
        self.run = re.findall(r"run-\S+", self("train", self.project, "supervised"))[0]

    def __call__(self, *arguments: str | Path, says: str = "", fails: bool = False) -> str:
        """Run a command; return what it printed, or how it failed."""
        done = CliRunner(env={"COLUMNS": "400", "TQDM_DISABLE": "1"}).invoke(
            app, [*map(str, arguments), "--home", str(self.folder / "home")], input=says
        )
        if fails:
            assert done.exception is not None
            return str(done.exception)
        assert done.exit_code == 0, done.output
        return done.output


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    return Desk(tmp_path_factory.mktemp("desk"))


@pytest.mark.parametrize("form", ["adapter", "merged", "gguf"])
def test_a_trained_run_is_exported_with_its_card_tools_and_spec(desk: Desk, form: str) -> None:
    to = desk.folder / form
    told = desk("export", desk.run, "--to", to, "--format", form)
    assert f"wrote   {to}" in told
    assert "nats over" in told
    card = (to / "README.md").read_text()
    assert f"Format: {form}, in {'f16' if form == 'gguf' else 'float32'}." in card
    assert "| demonstrations: demonstrations.jsonl |" in card
    assert "after supervised training (3 optimizer steps in the last run" in card
    assert "trainer.adapter.rank" in card
    assert "trainer.loss" not in card  # imitation reads none of it
    (tool,) = json.loads((to / "tools.json").read_text())
    assert tool["function"]["name"] == "lookup"  # as the spec calls it
    assert list(tool["function"]["parameters"]["properties"]) == ["id"]
    assert "Look every order up" in (to / "spec" / "system" / "02-policy.md").read_text()
    if form == "gguf":
        assert "Look every order up" in (to / "Modelfile").read_text()
    elif form == "merged":
        weights, text = (to / name for name in ("model.safetensors", "README.md"))
        assert weights.stat().st_mode == text.stat().st_mode  # for other programs to read


def test_what_the_card_says_to_run_runs(desk: Desk, capsys: pytest.CaptureFixture[str]) -> None:
    to = desk.folder / "to run"
    desk("export", desk.run, "--to", to, "--format", "merged")
    code = (to / "README.md").read_text().split("```python\n")[1].split("```")[0]
    (desk.folder / "use.py").write_text(code)
    capsys.readouterr()
    with chdir(to):
        found = runpy.run_path(str(desk.folder / "use.py"))
    assert "Look every order up" in found["tokenizer"].decode(found["prompt"]["input_ids"][0])
    assert capsys.readouterr().out


def test_one_talks_to_what_was_trained_under_its_spec(desk: Desk) -> None:
    told = desk(
        "chat", desk.project, "--checkpoint", desk.run, says="/tools\nwhere is W1?\n/quit\n"
    )
    assert "lookup: Look an order up." in told
    assert "task    t1 (the first row" in told
    assert "agent> " in told or "call   " in told or "ended by" in told


def test_what_cannot_be_exported_says_why(desk: Desk) -> None:
    link = desk.folder / "link"
    link.symlink_to(desk.folder / "nowhere")
    assert "exists already" in desk("export", desk.run, "--to", link, fails=True)
    assert "run-nobody" in desk("export", "run-nobody", "--to", desk.folder / "none", fails=True)
    (desk.folder / "file").write_text("")
    inside = desk.folder / "file" / "out"
    assert "cannot be written" in desk("export", desk.run, "--to", inside, fails=True)


def test_a_run_notes_what_it_was_made_from_when_it_begins(desk: Desk) -> None:
    home = Home.open(desk.folder / "home")
    run = home.store.run(desk.run)
    assert run.status is RunStatus.SUCCEEDED
    assert set(run.result["files"]) == {"train", "demonstrations", "environment"}
    home.close()
