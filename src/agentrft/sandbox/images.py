"""Package sets by name: what a function may import beside the standard library."""

import re
import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from agentrft.core.errors import ConfigError

PACKAGE_SETS = {
    "2025-05-08": """
        numpy==2.2.4 scipy==1.15.2 sympy==1.13.3 pandas==2.2.3 rapidfuzz==3.10.1
        scikit-learn==1.6.1 rouge-score==0.1.2 deepdiff==8.4.2 jsonschema==4.23.0
        pydantic==2.10.6 pyyaml==6.0.2 nltk==3.9.1 sqlparse==0.5.3 rdkit==2024.9.6
        scikit-bio==0.6.3 ast-grep-py==0.36.2
    """.split(),
}
"""What the hosted service installs under each `image_tag`."""

NLTK_DATA = ("punkt", "stopwords", "wordnet", "omw-1.4", "names")
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def packages_of(image_tag: str, images: Path) -> tuple[str, ...]:
    """Return the folders that a worker imports packages from; the empty tag means this interpreter's.

    Raises ConfigError for a tag that is not installed here.
    """
    if not image_tag:
        return tuple(folder for folder in site.getsitepackages() if Path(folder).is_dir())
    if TAG.fullmatch(image_tag) is None:
        raise ConfigError(f"image_tag: {image_tag!r} is no name of a package set")
    folder = _site(images / image_tag)
    if folder.is_dir():
        return (str(folder.resolve()),)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    if (images / image_tag).exists():
        what = f"is installed for another Python than {version}"
    elif image_tag in PACKAGE_SETS:
        what = "is not installed here"
    else:
        known = ", ".join(sorted({*PACKAGE_SETS, *installed(images)}))
        raise ConfigError(
            f"image_tag: no package set is named {image_tag!r} (known: {known}); use one of these, "
            f"after `agentrft images install {min(PACKAGE_SETS)}`, or none"
        )
    raise ConfigError(
        f"image_tag: {image_tag!r} {what}; run `agentrft images install {image_tag}`, or leave "
        "image_tag out to use the packages of this program"
    )


def installed(images: Path) -> list[str]:
    """Return the tags that are installed."""
    if not images.is_dir():
        return []
    return sorted(path.name for path in images.iterdir() if TAG.fullmatch(path.name))


def install(image_tag: str, images: Path, requirements: Sequence[str]) -> Path:
    """Make a virtual environment of exactly these packages; return it.

    Raises ConfigError if a package cannot be had; nothing is left then.
    """
    if TAG.fullmatch(image_tag) is None:
        raise ConfigError(f"image_tag: {image_tag!r} is no name of a package set")
    images.mkdir(parents=True, exist_ok=True)
    partial, final = images / f".{image_tag}.partial", images / image_tag
    shutil.rmtree(partial, ignore_errors=True)
    pip = [str(partial / "bin" / "python"), "-m", "pip", "--disable-pip-version-check"]
    try:
        for command in (
            [sys.executable, "-m", "venv", str(partial)],
            [*pip, "install", "--quiet", "--no-input", *requirements],
            [*pip, "uninstall", "--quiet", "--yes", "setuptools", "pip"],
        ):
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode != 0:
                reason = (done.stderr or done.stdout).strip().splitlines()[-1:]
                raise ConfigError(f"image {image_tag!r} cannot be installed: {' '.join(reason)}")
        shutil.rmtree(final, ignore_errors=True)
        partial.rename(final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return final


def missing_nltk_data(image_tag: str, images: Path) -> list[str]:
    """Return the NLTK data that the hosted service has and this package set has not."""
    data = Path(packages_of(image_tag, images)[0]) / "nltk_data"
    return [name for name in NLTK_DATA if not list(data.glob(f"*/{name}*"))]


def _site(environment: Path) -> Path:
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return environment / "lib" / version / "site-packages"
