import asyncio
from dataclasses import replace
from pathlib import Path

from byte_chat import says
from search_project import a_project
from test_improve import a_job
from tuning import FakeModel

from agentrft.core.errors import SamplerError
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import SampleRequest
from agentrft.core.spec import Section
from agentrft.jobs.retest import retest
from agentrft.store.home import Home


def test_rollouts_that_infrastructure_spoils_do_not_end_a_retest(tmp_path: Path) -> None:
    lost: list[int] = []

    async def spoils_thirty(request: SampleRequest) -> None:
        if len(lost) < 30:
            lost.append(request.seed)
            raise SamplerError("engine restarted")

    project = a_project(tmp_path / "desk")
    changed = replace(
        project.spec,
        sections=(*project.spec.sections, Section(name="greet", text="Hello.")),
        decoding=replace(project.spec.decoding, temperature=0.5),
    )
    job = a_job(Home.open(tmp_path / "home"), project)
    after = Checkpoint(run_id=job.run.id, step=1, path="", policy_version=1)
    serve = FakeModel(before=spoils_thirty, script=lambda _: says("yes"))
    with serve(replace(project, spec=changed), job.home, trained=True) as model:
        spec, found = asyncio.run(retest(job, model, "warm start", after, project.spec))
    assert len(lost) == 30
    assert found is not None
    assert set(found.dropped) == {"decoding.temperature", "sections"}
    assert spec == project.spec
