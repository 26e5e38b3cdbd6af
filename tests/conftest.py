"""What all tests share: quiet threads, reproducible properties, the one real model."""

import os

# Read when torch loads OpenMP, so they stand before any import that could pull it in.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from platformdirs import user_data_path

# Timings of shared machines say nothing; a check that fails must fail again when looked at.
settings.register_profile(
    "default", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """Folder of the real default model, fetched and converted once into the user's own cache."""
    from agentrft.core.errors import ModelError
    from agentrft.inference.models import resolve

    home = os.environ.get("AGENTRFT_HOME")
    cache = (Path(home) if home else user_data_path("agentrft")) / "models"
    try:
        return resolve("smollm2-135m", cache=cache).folder
    except ModelError as error:
        pytest.fail(f"tests with the real model need it once: {error}")
