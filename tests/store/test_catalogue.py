from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import pytest

from agentrft.core.errors import LeaseLostError
from agentrft.core.job import FineTuningJob, Lease, SupervisedMethod
from agentrft.store.access import Access
from agentrft.store.catalogue import CallableModel, ModelCatalogue
from agentrft.store.database import Database
from agentrft.store.errors import ConflictError, NotFoundError
from agentrft.store.queue import JobQueue
from agentrft.store.vault import Vault

FINAL = CallableModel(
    id="ft:smollm2-135m:agentrft:desk:1",
    project="default",
    job_id="ftjob-1",
    base="smollm2-135m",
    path="/home/runs/ftjob-1/checkpoints/step-3",
    step=3,
    final=True,
    created_at=1000.0,
)
CHECKPOINT = replace(FINAL, id=f"{FINAL.id}:ckpt-step-2", step=2, final=False)


@pytest.fixture
def catalogue(database: Database) -> ModelCatalogue:
    for project in ("default", "other", "third"):
        Access(database).create_project(project)
    return ModelCatalogue(database)


def test_a_model_is_found_by_its_owner_only(catalogue: ModelCatalogue) -> None:
    catalogue.add(FINAL, None)
    assert catalogue.get("default", FINAL.id) == FINAL
    assert catalogue.list("default") == (FINAL,)
    with pytest.raises(NotFoundError, match=f"no model '{FINAL.id}'"):
        catalogue.get("other", FINAL.id)
    assert catalogue.list("other") == ()


def test_a_jobs_models_come_by_step_and_the_final_one_last(catalogue: ModelCatalogue) -> None:
    early = replace(CHECKPOINT, id="early", step=1)
    last = replace(CHECKPOINT, id="last", step=3)
    for model in (FINAL, CHECKPOINT, early, last, replace(FINAL, id="x", job_id="ftjob-2")):
        catalogue.add(model, None)
    assert catalogue.of_job("ftjob-1") == (early, CHECKPOINT, last, FINAL)


def test_a_job_that_repeats_a_step_replaces_its_own_entry(catalogue: ModelCatalogue) -> None:
    catalogue.add(CHECKPOINT, None)
    catalogue.add(replace(CHECKPOINT, path="/elsewhere", created_at=2000.0), None)
    assert catalogue.of_job("ftjob-1") == (replace(CHECKPOINT, path="/elsewhere"),)


@pytest.mark.parametrize("foreign", [{"job_id": "ftjob-2"}, {"project": "other"}])
def test_a_name_that_is_taken_is_refused(
    catalogue: ModelCatalogue, foreign: dict[str, str]
) -> None:
    catalogue.add(FINAL, None)
    with pytest.raises(ConflictError, match="another job has a model named"):
        catalogue.add(replace(FINAL, **foreign), None)


def test_a_model_needs_a_project(catalogue: ModelCatalogue) -> None:
    with pytest.raises(NotFoundError, match="no project 'nowhere'"):
        catalogue.add(replace(FINAL, project="nowhere"), None)


def test_only_the_owner_removes_a_model(catalogue: ModelCatalogue) -> None:
    catalogue.add(FINAL, None)
    catalogue.grant("default", FINAL.id, ["other"])
    for project in ("other", "third"):
        with pytest.raises(NotFoundError):
            catalogue.delete(project, FINAL.id)
    assert catalogue.delete("default", FINAL.id) == FINAL
    assert catalogue.list("default") == catalogue.list("other") == ()


def test_a_checkpoint_can_be_dropped_but_never_the_final_model(catalogue: ModelCatalogue) -> None:
    for model in (FINAL, CHECKPOINT, replace(CHECKPOINT, id="x", job_id="ftjob-2")):
        catalogue.add(model, None)
    for step in (1, 2, 2, 3):
        catalogue.remove_checkpoint("ftjob-1", step, None)
    assert catalogue.of_job("ftjob-1") == (FINAL,)
    assert len(catalogue.of_job("ftjob-2")) == 1


def leases(database: Database, vault: Vault) -> tuple[Lease, Lease]:
    """A lease that was lost, and the one that followed it."""

    class Clock:
        now = 1000.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()
    queue = JobQueue(database, vault, clock=clock)
    job = FineTuningJob(
        id="ftjob-1",
        project="default",
        model="smollm2-135m",
        base="smollm2-135m",
        method=SupervisedMethod(),
        training_file="file-1",
        seed=1,
        created_at=1000.0,
    )
    queue.submit(job, {})
    lost = queue.claim("worker-1", 10.0)
    clock.now += 11.0
    queue.reap()
    newer = queue.claim("worker-2", 10.0)
    assert lost is not None
    assert newer is not None
    return lost, newer


def test_a_worker_that_lost_its_lease_changes_nothing(
    catalogue: ModelCatalogue, database: Database, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lost, newer = leases(database, Vault(tmp_path_factory.mktemp("vault") / "key"))
    with pytest.raises(LeaseLostError):
        catalogue.add(CHECKPOINT, lost)
    catalogue.add(CHECKPOINT, newer)
    with pytest.raises(LeaseLostError):
        catalogue.remove_checkpoint("ftjob-1", 2, lost)
    assert catalogue.of_job("ftjob-1") == (CHECKPOINT,)
    catalogue.remove_checkpoint("ftjob-1", 2, newer)
    assert catalogue.of_job("ftjob-1") == ()


def test_a_permitted_project_calls_a_model_until_the_permission_is_revoked(
    catalogue: ModelCatalogue,
) -> None:
    catalogue.add(FINAL, None)
    catalogue.add(CHECKPOINT, None)
    (permission,) = catalogue.grant("default", FINAL.id, ["other"])
    assert permission.project_id == "other"
    assert permission.id.startswith("cp_")
    assert catalogue.get("other", FINAL.id) == FINAL
    assert catalogue.list("other") == (FINAL,)
    with pytest.raises(NotFoundError):
        catalogue.get("other", CHECKPOINT.id)
    catalogue.revoke("default", FINAL.id, permission.id)
    with pytest.raises(NotFoundError):
        catalogue.get("other", FINAL.id)
    with pytest.raises(NotFoundError, match=f"no permission '{permission.id}'"):
        catalogue.revoke("default", FINAL.id, permission.id)


def test_a_second_grant_keeps_the_permission_there_is(catalogue: ModelCatalogue) -> None:
    catalogue.add(FINAL, None)
    (first,) = catalogue.grant("default", FINAL.id, ["other"])
    again = catalogue.grant("default", FINAL.id, ["third", "other", "third"])
    assert [permission.project_id for permission in again] == ["third", "other"]
    assert again[1] == first
    assert len(catalogue.permissions("default", FINAL.id).items) == 2


def test_grants_at_once_agree(catalogue: ModelCatalogue) -> None:
    catalogue.add(FINAL, None)
    with ThreadPoolExecutor(4) as threads:
        granted = list(
            threads.map(lambda _: catalogue.grant("default", FINAL.id, ["other"]), range(4))
        )
    assert len(set(granted)) == 1


def test_only_the_owner_deals_in_permissions(catalogue: ModelCatalogue) -> None:
    catalogue.add(FINAL, None)
    (permission,) = catalogue.grant("default", FINAL.id, ["other"])
    with pytest.raises(NotFoundError, match="no model"):
        catalogue.grant("other", FINAL.id, ["third"])
    with pytest.raises(NotFoundError, match="no model"):
        catalogue.permissions("other", FINAL.id)
    with pytest.raises(NotFoundError, match="no model"):
        catalogue.revoke("other", FINAL.id, permission.id)


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_permissions_are_paged(
    catalogue: ModelCatalogue, order: Literal["ascending", "descending"]
) -> None:
    catalogue.add(FINAL, None)
    granted = catalogue.grant("default", FINAL.id, [f"p{n}" for n in range(5)])
    expected = [*granted] if order == "ascending" else [*reversed(granted)]
    first = catalogue.permissions("default", FINAL.id, limit=3, order=order)
    second = catalogue.permissions(
        "default", FINAL.id, after=first.items[-1].id, limit=3, order=order
    )
    assert [*first.items, *second.items] == expected
    assert (first.has_more, second.has_more) == (True, False)
    only = catalogue.permissions("default", FINAL.id, project_id="p2")
    assert only.items == (granted[2],)
    with pytest.raises(NotFoundError, match="no permission 'cp_none'"):
        catalogue.permissions("default", FINAL.id, after="cp_none")
