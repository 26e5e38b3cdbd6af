"""A project whose agent is behind an endpoint: measured, stopped by its budget, never trained."""

import asyncio
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from builders import a_job
from raw_server import Raw, RawServer, reply, serving

from agentrft.audit.run import audit
from agentrft.core.config import AgentEndpoint, AuditConfig
from agentrft.core.errors import ConfigError, PausedError, UserError
from agentrft.core.run import Method, RolloutRecord, RunStatus
from agentrft.core.usage import TokenUsage
from agentrft.jobs.audit import project_subject
from agentrft.jobs.context import Job
from agentrft.jobs.improve import measure
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.resume import unfinished_run
from agentrft.jobs.serving import EndpointModel, served_model
from agentrft.jobs.starter import write_starter
from agentrft.measure.report import Report

KEY = "sk-very-secret-1234567890"
USED = {"prompt_tokens": 90, "completion_tokens": 10}


def answer(**message: Any) -> Raw:
    said = {"role": "assistant", "content": None, **message}
    return reply(json.dumps({"choices": [{"index": 0, "message": said}], "usage": USED}))


def looks_up(loan: str = "L1") -> Raw:
    function = {"name": "get_loan", "arguments": json.dumps({"loan_id": loan})}
    return answer(tool_calls=[{"id": "c1", "type": "function", "function": function}])


DONE = answer(content="It is renewed.")


def a_project(folder: Path, url: str = "http://127.0.0.1:9", **endpoint: Any) -> Project:
    """The starter project with an endpoint, which is all that is measured one after the other."""
    if not folder.exists():
        write_starter(folder)
        table = {"base_url": f"{url}/v1", "model": "agent-1", "max_concurrent": 1, **endpoint}
        lines = [f"{name} = {json.dumps(value)}" for name, value in table.items()]
        with (folder / "agent.toml").open("a") as file:
            file.write("\n".join(["", "[endpoint]", *lines, ""]))
    return open_project(folder)


def measured(job: Job, project: Project) -> Report:
    return asyncio.run(measure(job, project, "holdout", None))


def served(*replies: Raw, folder: Path, **endpoint: Any) -> tuple[Job, RawServer, Project]:
    """Measure the holdout of a project whose endpoint answers with these."""

    async def scenario() -> tuple[Job, RawServer, Project]:
        async with serving(*replies) as server:
            project = a_project(folder / "project", server.url, **endpoint)
            job = a_job(folder / "home", Method.EVALUATION)
            try:
                await measure(job, project, "holdout", None)
            except PausedError:
                assert job.run.status is RunStatus.PAUSED
            return job, server, project

    return asyncio.run(scenario())


def test_an_endpoints_project_is_measured_and_its_rollouts_are_stored(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    job, server, project = served(DONE, folder=tmp_path, api_key_file=str(tmp_path / "key"))
    records = job.read_all(RolloutRecord)
    assert len(records) == len(project.tasks("holdout")) == len(server.requests)
    assert {r.graded.trajectory.model for r in records} == {"agent-1"}
    turns = [turn for r in records for turn in r.graded.trajectory.turns]
    expected = TokenUsage(prompt_tokens=90, completion_tokens=10)
    assert {turn.usage for turn in turns} == {expected}
    assert job.run.status is RunStatus.SUCCEEDED
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert written
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []


def test_what_an_endpoint_cannot_do_is_in_the_log_of_the_run(tmp_path: Path) -> None:
    job, _, _ = served(reply('{"error": "no tools here"}', 400), DONE, folder=tmp_path)
    messages = [event.message for _, event in job.home.store.events(job.run.id).items]
    assert [message for message in messages if "calls are written as text" in message]


def test_a_budget_pauses_the_run_and_a_resumed_one_goes_on_counting(tmp_path: Path) -> None:
    first, server, project = served(DONE, folder=tmp_path, most_tokens=250)
    rollouts = len(project.tasks("holdout"))
    assert rollouts > 5
    assert len(server.requests) == 3
    assert "300 of 250 (endpoint.most_tokens)" in (first.run.error or "")
    first.home.close()

    async def again() -> tuple[Job, int]:
        async with serving(DONE) as server:
            job = a_job(tmp_path / "home", Method.EVALUATION)
            endpoint = project.config.endpoint
            assert endpoint is not None
            raised = replace(endpoint, base_url=f"{server.url}/v1", most_tokens=450)
            changed = replace(project, config=replace(project.config, endpoint=raised))
            with pytest.raises(PausedError, match="500 of 450"):
                await measure(job, changed, "holdout", None)
            return job, len(server.requests)

    job, requests = asyncio.run(again())
    assert requests == 2
    assert len(job.read_all(RolloutRecord)) == 5


def test_what_a_rollout_took_that_was_never_stored_is_counted_too(tmp_path: Path) -> None:
    first, _, _ = served(looks_up(), folder=tmp_path / "one", most_tokens=50)
    assert "100 of 50" in (first.run.error or "")
    assert first.read_all(RolloutRecord) == []
    first.home.close()

    async def again() -> int:
        async with serving(looks_up()) as server:
            project = a_project(tmp_path / "other", server.url, most_tokens=150)
            job = a_job(tmp_path / "one" / "home", Method.EVALUATION)
            with pytest.raises(PausedError, match="200 of 150"):
                await measure(job, project, "holdout", None)
            return len(server.requests)

    assert asyncio.run(again()) == 1


def test_a_raised_budget_does_not_keep_a_run_from_being_resumed(tmp_path: Path) -> None:
    project = a_project(tmp_path / "project", most_tokens=10)
    settings = asdict(project.config)
    job = a_job(tmp_path / "home", Method.EVALUATION)
    job.home.store.put_run(replace(job.run, config=settings))

    def changed(**endpoint: Any) -> Mapping[str, Any]:
        return {**settings, "endpoint": {**settings["endpoint"], **endpoint}}

    raised = changed(most_tokens=20, max_concurrent=2)
    find = (job.home.store, "project", Method.EVALUATION)
    assert unfinished_run(*find, raised) == job.run.id
    with pytest.raises(ConfigError, match="endpoint.model changed"):
        unfinished_run(*find, changed(model="agent-2"))


def test_training_behind_an_endpoint_is_refused_with_the_way_to_weights(tmp_path: Path) -> None:
    project = a_project(tmp_path / "project")
    home = a_job(tmp_path / "home").home
    with (
        pytest.raises(UserError, match="set `model` in agent.toml"),
        served_model(project, home, trained=True),
    ):
        pass
    with served_model(project, home, trained=False) as model:
        for needed in ("renderer", "sampler"):
            with pytest.raises(UserError, match="agent-1 answers behind an endpoint"):
                getattr(model, needed)
        with pytest.raises(UserError, match="agent-1 answers behind an endpoint"):
            model.trainer(project.config.methods.reinforcement.trainer, "policy_gradient", seed=0)


@pytest.mark.parametrize("command", [["improve"], ["train", "supervised"]])
def test_commands_that_train_refuse_before_a_run_begins(command: list[str], tmp_path: Path) -> None:
    a_project(tmp_path / "project")
    name, *method = command
    done = asyncio.run(agentrft(tmp_path, name, str(tmp_path / "project"), *method))
    assert "open-weights base" in done
    assert a_job(tmp_path / "home", run_id="other").home.store.runs("starter").items == ()


def test_an_endpoints_project_is_evaluated_without_loading_torch(tmp_path: Path) -> None:
    async def scenario() -> str:
        async with serving(looks_up(), DONE) as server:
            a_project(tmp_path / "project", server.url)
            return await agentrft(tmp_path, "evaluate", str(tmp_path / "project"))

    output = asyncio.run(scenario())
    assert "base: holdout 6/6" in output
    assert "loaded: set()" in output


async def agentrft(folder: Path, *arguments: str) -> str:
    """Run a command and say which heavy libraries it loaded."""
    code = (
        "import sys\nfrom agentrft.cli import main\n"
        "try: main()\n"
        "finally: print('loaded:', {'torch', 'transformers'} & set(sys.modules))"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, *arguments, "--home", str(folder / "home")),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    return output.decode()


@pytest.mark.parametrize(
    ("rate_limit", "most", "expected"), [(None, 16, 16), (2.0, 16, 15), (0.1, 16, 1), (50, 4, 4)]
)
def test_no_more_rollouts_run_than_the_rate_feeds(
    rate_limit: float | None, most: int, expected: int, tmp_path: Path
) -> None:
    project = a_project(tmp_path / "project", max_concurrent=most)
    endpoint = project.config.endpoint
    assert endpoint is not None
    home = a_job(tmp_path / "home").home
    paced = replace(endpoint, rate_limit=rate_limit)
    changed = replace(project, config=replace(project.config, endpoint=paced))
    with served_model(changed, home, trained=False) as model:
        assert isinstance(model, EndpointModel)
        assert model.concurrency == expected


def test_the_grader_of_an_endpoints_project_is_audited_on_its_rollouts(tmp_path: Path) -> None:
    job, _, project = served(looks_up("L4821"), DONE, folder=tmp_path)
    rollouts = [record.graded for record in job.read_all(RolloutRecord)]
    subject = project_subject(project, rollouts=rollouts)
    report = asyncio.run(audit(subject, AuditConfig(rows=4, timeout_s=60.0), seed=0))
    assert report.findings
    assert project.config.agent_model == "agent-1"


@pytest.mark.parametrize(
    ("endpoint", "path"),
    [
        ({"base_url": "ftp://x/v1"}, "endpoint.base_url"),
        ({"api_key_file": "/nowhere/key"}, "endpoint.api_key_file"),
    ],
)
def test_a_wrong_endpoint_is_refused_by_path(
    endpoint: dict[str, Any], path: str, tmp_path: Path
) -> None:
    project = a_project(tmp_path / "project")
    home = a_job(tmp_path / "home").home
    wrong = replace(AgentEndpoint(base_url="http://x/v1", model="m"), **endpoint)
    project = replace(project, config=replace(project.config, endpoint=wrong))
    with pytest.raises(ConfigError, match=path), served_model(project, home, trained=False):
        pass
