"""Package sets: installed from a wheel on disk, imported inside, refused by name when missing."""

import asyncio
import zipfile
from pathlib import Path

import pytest

from agentrft.core.config import SandboxConfig
from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Function
from agentrft.sandbox.images import (
    NLTK_DATA,
    PACKAGE_SETS,
    install,
    installed,
    missing_nltk_data,
    packages_of,
)
from agentrft.sandbox.levels import survey
from agentrft.sandbox.local import open_sandbox


def wheel(folder: Path) -> Path:
    path = folder / "tiny_words-1.0-py3-none-any.whl"
    about = "tiny_words-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("tiny_words.py", "count = lambda text: len(text.split())\n")
        file.writestr(
            f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-words\nVersion: 1.0\n"
        )
        file.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(f"{about}/RECORD", "")
    return path


def test_a_package_set_is_installed_and_imported_and_others_are_not_seen(tmp_path: Path) -> None:
    images = tmp_path / "images"
    install("tiny", images, [str(wheel(tmp_path))])
    assert installed(images) == ["tiny"]
    assert missing_nltk_data("tiny", images) == list(NLTK_DATA)
    (Path(packages_of("tiny", images)[0]) / "nltk_data" / "corpora" / "stopwords").mkdir(
        parents=True
    )
    assert "stopwords" not in missing_nltk_data("tiny", images)
    if survey().level is None:
        pytest.skip("no sandbox is to be had here to import it in")
    source = """
import importlib.util, tiny_words
def grade(sample):
    return [tiny_words.count(sample), importlib.util.find_spec("numpy") is None]
"""

    async def graded() -> object:
        sandbox = open_sandbox(SandboxConfig(), images=images)
        result = await sandbox.call(Function(source=source, image_tag="tiny"), ["a b c"])
        await sandbox.close()
        return result.value

    assert asyncio.run(graded()) == [3, True]


def test_a_set_that_cannot_be_had_leaves_nothing_and_says_which(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="image 'broken' cannot be installed"):
        install("broken", tmp_path, [str(tmp_path / "missing-1.0-py3-none-any.whl")])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("2025-05-08", "run `agentrft images install 2025-05-08`"),
        ("2031-01-01", "known: 2025-05-08"),
        ("../../etc", "no name of a package set"),
    ],
)
def test_a_missing_tag_is_refused_with_what_to_do(tmp_path: Path, tag: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        packages_of(tag, tmp_path)
    assert message in str(refused.value)


def test_a_set_made_for_another_python_is_named_as_that(tmp_path: Path) -> None:
    (tmp_path / "tiny" / "lib" / "python3.0" / "site-packages").mkdir(parents=True)
    with pytest.raises(ConfigError, match="another Python"):
        packages_of("tiny", tmp_path)


def test_the_contracts_set_pins_every_package() -> None:
    assert all("==" in requirement for requirement in PACKAGE_SETS["2025-05-08"])
    assert len(PACKAGE_SETS["2025-05-08"]) == 16
