"""What `agentrft doctor` and `agentrft images` tell."""

from pathlib import Path

from typer.testing import CliRunner

from agentrft.cli import app
from agentrft.core.errors import ConfigError
from agentrft.sandbox.levels import survey


def test_the_doctor_shows_every_layer_the_level_and_the_images(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["doctor", "--home", str(tmp_path)])
    surveyed = survey()
    for layer in surveyed.layers:
        assert layer.name in done.stdout
        assert layer.detail in done.stdout
    assert f"sandbox level {surveyed.level or 'none'}" in done.stdout
    assert "agentrft images install TAG" in done.stdout
    assert done.exit_code == (1 if surveyed.level is None else 0)


def test_package_sets_are_listed_whether_installed_or_not(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["images", "list", "--home", str(tmp_path)])
    assert "2025-05-08  no" in done.stdout


def test_an_unknown_package_set_is_refused_and_the_known_are_named(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["images", "install", "2031", "--home", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    assert "known: 2025-05-08" in str(done.exception)
