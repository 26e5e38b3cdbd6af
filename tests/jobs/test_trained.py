"""Weights are found by whatever names them."""

from pathlib import Path

import pytest
from tuning import SUPERVISED, FakeModel, a_home, callable_names, finished, submitted

from agentrft.core.errors import UserError
from agentrft.jobs.trained import find_trained
from agentrft.training.checkpoint import write_checkpoint


@pytest.mark.parametrize("suffix", [None, "desk", "desk:v2", "a:ckpt-step-6"])
def test_a_model_of_the_api_is_found_whatever_its_suffix(
    tmp_path: Path, suffix: str | None
) -> None:
    home = a_home(tmp_path)
    submitted(home, SUPERVISED, suffix=suffix)
    finished(home, FakeModel())
    names = callable_names(home)
    assert len(names) == 3
    for model in home.catalogue.of_job("ftjob-1"):
        write_checkpoint(Path(model.path), lambda folder: None)
    for name in names:
        found = find_trained(home, name)
        assert found.run is not None
        assert found.run.id == "ftjob-1"
    with pytest.raises(UserError, match="has no model"):
        find_trained(home, "ft:nobody")
