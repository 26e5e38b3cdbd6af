"""Trained weights handed to other programs, loaded back, and shown to be the same; real parts, tiny."""

import asyncio
import importlib.util
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import a_job
from safetensors.torch import load_file, save_file
from tuning import PROJECT, REINFORCEMENT, SUPERVISED, FakeModel, a_home, finished, submitted

from agentrft.core.config import HttpTool, Methods
from agentrft.core.errors import UserError
from agentrft.core.job import REDACTED
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Method, RunStatus
from agentrft.core.training_config import Adapter, Optimizer, SupervisedConfig, TrainerConfig
from agentrft.inference.renderer import load_renderer
from agentrft.inference.templates import chat_template
from agentrft.jobs.export import (
    Exported,
    ExportError,
    Format,
    Probe,
    export,
    read_back,
    require,
    writes_alike,
)
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.serving import ServedModel, served_model
from agentrft.jobs.starter import write_starter
from agentrft.jobs.trained import UnchangedError, find_trained
from agentrft.jobs.training_stage import train
from agentrft.measure.model_card import Check
from agentrft.store.home import Home
from agentrft.training.change import write_merged
from agentrft.training.credit import imitation
from agentrft.training.read_back import read_model
from agentrft.training.trainer import LocalTrainer

_path = Path(__file__).parents[1] / "inference" / "conftest.py"
_spec = importlib.util.spec_from_file_location("inference_conftest", _path)
assert _spec is not None
assert _spec.loader is not None
_inference: Any = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_inference)


def a_trained_run(
    folder: Path, *, steps: int = 3, kind: Any = "lora", learning_rate: float = 2e-2
) -> Home:
    """A home with the run `run-1`, which trained a tiny model of the family SmolLM2."""
    base = folder / "base"
    if not base.exists():
        _inference._write_chat_model(base)
    job = a_job(folder / "home", Method.SUPERVISED, config={"model": str(base)})
    trainer = LocalTrainer(
        base,
        TrainerConfig(
            adapter=Adapter(kind=kind, rank=4, alpha=8.0),
            optimizer=Optimizer(learning_rate=learning_rate, warmup_steps=0),
            dtype="float32",
            device="cpu",
            threads=1,
        ),
        loss="cross_entropy",
        canaries=[[5, 6, 7, 8, 9]],
        seed=1,
    )
    sample = imitation(list(range(10, 40)), [False] * 10 + [True] * 20, "a row")
    for _ in range(steps):
        trainer.step([sample])
    weights = job.home.checkpoints(job.run.id) / "step-000003"
    trainer.save(weights, {"step": steps})
    job.append([Checkpoint(run_id=job.run.id, step=steps, path=str(weights), policy_version=steps)])
    job.home.store.put_run(replace(job.run, status=RunStatus.SUCCEEDED))
    return job.home


def exported(home: Home, to: Path, form: Format) -> Exported:
    return asyncio.run(export(home, "run-1", to, form))


@pytest.mark.parametrize("form", ["adapter", "merged", "gguf"])
def test_an_export_reads_back_as_what_was_trained(tmp_path: Path, form: Format) -> None:
    home, to = a_trained_run(tmp_path), tmp_path / "out"
    done = exported(home, to, form)
    assert done.checks
    assert all(check.difference <= check.bound / 2 for check in done.checks)
    assert all(check.arrived == pytest.approx(1.0, abs=0.05) for check in done.checks)
    assert done.identity is not None
    assert done.identity < 0.01
    files = {file.name for file in to.iterdir()}
    expected = {
        "adapter": {"adapter_model.safetensors", "adapter_config.json", "chat_template.jinja"},
        "merged": {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"},
        "gguf": {"model.gguf", "Modelfile"},
    }[form]
    assert expected | {"README.md"} <= files
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_bfloat16_model_that_does_not_say_so_is_merged_as_it_is_stored(tmp_path: Path) -> None:
    base = _inference._write_chat_model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(rounded, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((base / "config.json").read_text())
    config = {key: config[key] for key in config if "dtype" not in key}
    (base / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/me/secret"}))
    done = exported(a_trained_run(tmp_path), tmp_path / "out", "merged")
    (check,) = done.checks
    assert check.bound == 0.3
    assert check.difference > 0.005, "rounding is seen"
    assert "merged, in bfloat16" in (tmp_path / "out" / "README.md").read_text()
    assert "secret" not in (tmp_path / "out" / "config.json").read_text()


def test_an_export_that_lacks_what_was_trained_is_refused_however_little_that_is(
    tmp_path: Path,
) -> None:
    home = a_trained_run(tmp_path, steps=1, learning_rate=2.5e-3)
    base, weights = tmp_path / "base", find_trained(home, "run-1").folder
    merged, twice = tmp_path / "merged", tmp_path / "twice"
    louder = tmp_path / "louder"
    shutil.copytree(weights, louder)
    settings = json.loads((weights / "adapter_config.json").read_text())
    settings["lora_alpha"] *= 2
    (louder / "adapter_config.json").write_text(json.dumps(settings))
    for checkpoint, folder in ((weights, merged), (louder, twice)):
        folder.mkdir()
        write_merged(checkpoint, base, folder)
    ids = tuple(range(10, 40))
    (trained,), (untrained,) = (read_model(folder, [ids]) for folder in (merged, base))
    probe = Probe(
        ids=ids, prompt_tokens=10, logprobs=trained.logprobs, untrained=untrained.logprobs
    )
    right, none, double = (
        read_back([probe], "transformers", "q8_0", folder) for folder in (merged, base, twice)
    )
    assert right.arrived == pytest.approx(1.0)
    for wrong, share in ((none, 0.0), (double, 2.0)):
        assert wrong.difference < wrong.bound, "what is allowed for q8_0 hides it"
        assert wrong.arrived == pytest.approx(share, abs=0.4)
        with pytest.raises(ExportError, match="of what training changed on the probes arrives"):
            require(replace(wrong, shortfall=0.0))


def test_an_export_that_writes_prompts_in_other_tokens_is_refused(tmp_path: Path) -> None:
    base = _inference._write_chat_model(tmp_path / "base")
    renderer = load_renderer(base)
    assert renderer.template is not None
    (base / "chat_template.jinja").write_text(chat_template(renderer.template, "jinja"))
    assert writes_alike(base, base, renderer)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    (other / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(ExportError, match="in other tokens"):
        writes_alike(other, base, renderer)
    shutil.copyfile(base / "chat_template.jinja", other / "chat_template.jinja")
    described = json.loads((base / "tokenizer.json").read_text())
    tokens = described["added_tokens"]
    described["added_tokens"] = [token for token in tokens if token["content"] != "<|im_end|>"]
    (other / "tokenizer.json").write_text(json.dumps(described))
    with pytest.raises(ExportError, match="in other tokens"):
        writes_alike(other, base, renderer)


def test_an_adapter_names_its_base_and_holds_no_config_of_a_whole_model(tmp_path: Path) -> None:
    home, to = a_trained_run(tmp_path), tmp_path / "out"
    exported(home, to, "adapter")
    settings = json.loads((to / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "base"
    assert not (to / "config.json").exists()


def test_the_card_tells_what_was_measured_on_held_out_tasks_and_of_no_others(
    tmp_path: Path,
) -> None:
    home, to = a_trained_run(tmp_path), tmp_path / "out"
    weights = str(find_trained(home, "run-1").folder)
    figures = dict.fromkeys(("value", "low", "high"), 0.5)
    counted = ("pass_at_1", "score", "tool_calls", "sampled_tokens")
    for split in ("holdout", "train"):
        job = a_job(tmp_path / "home", Method.EVALUATION, run_id=f"run-{split}")
        job.note_result(split=split, checkpoint=weights)
        measured = {"tasks": 4, **dict.fromkeys(counted, figures)}
        (job.folder / "report").mkdir()
        report = json.dumps({"stages": [{"name": f"on {split}", "measured": measured}]})
        (job.folder / "report" / "report.json").write_text(report)
    exported(home, to, "adapter")
    card = (to / "README.md").read_text()
    assert "| on holdout | 4 | 50.0 % [50.0, 50.0] |" in card
    assert "on train" not in card


def test_a_training_that_went_on_from_another_names_both(tmp_path: Path) -> None:
    home, to = a_trained_run(tmp_path), tmp_path / "out"
    first = find_trained(home, "run-1").folder
    config = {"methods": {"rejection": {"samples": 3}}, "model": str(tmp_path / "base")}
    job = a_job(tmp_path / "home", Method.REJECTION, run_id="run-2", config=config)
    job.note_result(start=str(first))
    weights = home.checkpoints("run-2") / "step-000003"
    shutil.copytree(first, weights)
    job.append([Checkpoint(run_id="run-2", step=3, path=str(weights), policy_version=3)])
    asyncio.run(export(home, "run-2", to, "adapter"))
    card = (to / "README.md").read_text()
    assert "after supervised training and then rejection training" in card
    assert "samples = 3" in card
    assert "- Run `run-2` was queued when this was exported." in card


def test_weights_that_training_left_alone_are_not_exported(tmp_path: Path) -> None:
    home, to = a_trained_run(tmp_path, steps=0), tmp_path / "out"
    with pytest.raises(UnchangedError, match="equal those of the base model"):
        exported(home, to, "merged")
    assert not to.exists()


def test_full_weights_are_no_adapter_and_merge_as_they_are(tmp_path: Path) -> None:
    home = a_trained_run(tmp_path, kind="full")
    with pytest.raises(UserError, match="use --format merged"):
        exported(home, tmp_path / "adapter", "adapter")
    assert exported(home, tmp_path / "merged", "merged").checks


def test_nothing_is_written_over_and_nothing_is_left_by_a_failure(tmp_path: Path) -> None:
    home, to = a_trained_run(tmp_path), tmp_path / "out"
    to.mkdir()
    with pytest.raises(UserError, match="exists already"):
        exported(home, to, "merged")
    assert list(to.iterdir()) == []


@pytest.mark.parametrize(("difference", "shortfall"), [(0.02, 0.0), (0.0, 0.02), (float("nan"), 0)])
def test_an_export_that_says_something_else_is_refused(difference: float, shortfall: float) -> None:
    check = Check(
        read_by="transformers",
        tokens=9,
        difference=difference,
        bound=0.005,
        shortfall=shortfall,
        arrived=None,
    )
    with pytest.raises(ExportError, match="read by transformers"):
        require(check)


def test_weights_are_found_by_run_and_by_folder(tmp_path: Path) -> None:
    home = a_trained_run(tmp_path)
    by_run = find_trained(home, "run-1")
    by_folder = find_trained(home, str(by_run.folder))
    assert by_folder == by_run
    with pytest.raises(UserError, match="is no checkpoint"):
        find_trained(home, str(tmp_path))
    with pytest.raises(UserError, match="no model 'ft:base:agentrft::abc'"):
        find_trained(home, "ft:base:agentrft::abc")


def test_a_training_that_left_the_weights_alone_has_failed(tmp_path: Path) -> None:
    write_starter(tmp_path / "library")
    opened = open_project(tmp_path / "library")
    still = Optimizer(learning_rate=0.0, warmup_steps=0)
    trainer = TrainerConfig(optimizer=still, dtype="float32", device="cpu", threads=1)
    config = replace(
        opened.config,
        model=str(_inference._write_chat_model(tmp_path / "base")),
        limits=replace(opened.config.limits, max_context_tokens=512),
        methods=Methods(supervised=SupervisedConfig(steps=1, batch_size=1, trainer=trainer)),
    )
    project = replace(opened, config=config, spec=replace(opened.spec, limits=config.limits))
    job = a_job(tmp_path / "home", Method.SUPERVISED)
    with pytest.raises(UnchangedError, match="learning rate is too small"):
        asyncio.run(train(job, project, None))
    kept = job.home.store.run("run-1")
    assert kept.status is RunStatus.FAILED
    assert "equal those of the base model" in (kept.error or "")


class RealModel(FakeModel):
    """Opens the weights that a job names."""

    @contextmanager
    def __call__(self, project: Project, home: Home, *, trained: bool) -> Iterator[ServedModel]:
        with served_model(project, home, trained=trained) as model:
            yield model


def test_a_model_of_the_api_is_exported_by_its_name(tmp_path: Path) -> None:
    home, base = a_home(tmp_path / "home"), _inference._write_chat_model(tmp_path / "base")
    fast = replace(SUPERVISED, learning_rate_multiplier=10.0)
    submitted(home, fast, base=str(base))
    name = finished(home, RealModel()).job.fine_tuned_model
    assert name == "ft:base:agentrft::1"
    to = tmp_path / "out"
    done = asyncio.run(export(home, name, to, "gguf"))
    assert done.notes == ()  # each request says what such a model is told
    assert {file.name for file in to.iterdir()} == {"model.gguf", "Modelfile", "README.md"}
    card = (to / "README.md").read_text()
    assert "after supervised training (6 optimizer steps in the last run, `ftjob-1`)" in card
    assert "n_epochs = 2" in card
    assert "Grader: none." in card
    job = home.queue.get("ftjob-1").job
    assert f"`{home.files.get(job.project, job.training_file).sha256}`" in card


def test_a_model_of_the_api_goes_with_the_tools_and_the_grader_of_its_job(tmp_path: Path) -> None:
    home, to = a_trained_run(tmp_path), tmp_path / "out"
    home.access.create_project(PROJECT)
    url = "https://desk.example/tool?key=hush"
    parameters: dict[str, object] = {"type": "object", "properties": {"id": {"type": "string"}}}
    tools = (
        HttpTool(name="look", server_url=url, description="Look.", parameters=parameters),
        HttpTool(name="described by rows", server_url=url),
    )
    grader = {"type": "endpoint", "name": "g", "url": url, "headers": {"X-Key": REDACTED}}
    method = replace(REINFORCEMENT, tools=tools, grader=grader)
    submitted(home, method, base=str(tmp_path / "base"))
    weights = home.checkpoints("ftjob-1") / "step-000003"
    shutil.copytree(find_trained(home, "run-1").folder, weights)
    asyncio.run(export(home, str(weights), to, "adapter"))
    (tool,) = json.loads((to / "tools.json").read_text())
    assert tool["function"] == {"name": "look", "description": "Look.", "parameters": parameters}
    card = (to / "README.md").read_text()
    assert "hush" not in card
    assert '"url": "https://desk.example/tool?(hidden)"' in card
    assert "after reinforcement training" in card
