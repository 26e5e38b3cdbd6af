from pathlib import Path
from typing import Any

from served import error_of, served, tasks

from agentrft.store.access import Role

ROUTE = "/v1/fine_tuning/alpha/graders/audit"
CONTAINS = {
    "type": "string_check",
    "name": "contains",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "ilike",
}
EXACT = {**CONTAINS, "operation": "eq"}


def test_an_audit_names_the_text_that_a_grader_pays_for(tmp_path: Path) -> None:
    with served(tmp_path) as here:
        file = here.upload(tasks(16))
        loose: Any = here.client.post(
            ROUTE, json={"grader": CONTAINS, "training_file": file}
        ).json()
        strict: Any = here.client.post(ROUTE, json={"grader": EXACT, "training_file": file}).json()
    assert loose["object"] == "grader.audit"
    assert loose["blocked"]
    assert strict["blocked"] == []
    assert loose["headline"]["false_pass_ceiling"] > strict["headline"]["false_pass_ceiling"]
    fooled = [finding for finding in loose["findings"] if finding["verdict"] == "fooled"]
    assert fooled
    assert all(finding["text"] and finding["score"] is not None for finding in fooled[:3])
    assert (loose["rows"], loose["answers"]) == (16, 16)


def test_a_finding_is_found_again_by_its_probe_seed_and_row(tmp_path: Path) -> None:
    with served(tmp_path) as here:
        body = {"grader": CONTAINS, "training_file": here.upload(tasks(16)), "seed": 3}
        whole: Any = here.client.post(ROUTE, json=body).json()
        worst = next(f for f in whole["findings"] if f["verdict"] == "fooled")
        again: Any = here.client.post(
            ROUTE, json={**body, "probes": [worst["probe"]], "task": worst["task_id"]}
        ).json()
    [finding] = again["findings"]
    assert finding["probe"] == worst["probe"]
    assert finding["score"] is not None


def test_what_is_wrong_with_an_audit_is_told_by_its_parameter(tmp_path: Path) -> None:
    with served(tmp_path) as here:
        file = here.upload(tasks(10))
        asked = {"grader": EXACT, "training_file": file}
        for change, param in (
            ({"grader": {}}, "grader"),
            ({"grader": {**EXACT, "operation": "about"}}, "grader.operation"),
            ({"model": "gpt-4.1"}, "model"),
            ({"probes": [999]}, None),
            ({"task": "row-999"}, None),
        ):
            reply = here.client.post(ROUTE, json={**asked, **change})
            assert reply.status_code == 400, reply.text
            assert error_of(reply)["param"] == param
        gone = here.client.post(ROUTE, json={**asked, "training_file": "file-gone"})
        assert gone.status_code == 404
        reader = here.client.post(ROUTE, json=asked, headers=here.caller(Role.READ))
        assert reader.status_code == 403


def test_rows_of_another_project_are_not_there_to_audit_with(tmp_path: Path) -> None:
    with served(tmp_path) as here:
        file = here.upload(tasks(10))
        stranger = here.caller(Role.ADMIN, "proj_other")
        asked = {"grader": EXACT, "training_file": file}
        assert here.client.post(ROUTE, json=asked, headers=stranger).status_code == 404
