"""A folder of small quarterly filings: how they are written, found and read."""

import re
from collections import Counter
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "filings"
FOUND = 5
"""Files that a search names at most."""


def slug(company: str) -> str:
    """Return the beginning of a company's file names."""
    return re.sub(r"[^a-z0-9]+", "-", company.lower()).strip("-")


def file_name(company: str, year: int, quarter: int) -> str:
    """Return the name of one filing."""
    return f"{slug(company)}-{year}-q{quarter}.txt"


@cache
def texts() -> dict[str, str]:
    """Read every filing by its name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.txt"))}


def words(text: str) -> list[str]:
    """Split into lower-case words and numbers."""
    return re.findall(r"[a-z0-9]+", text.lower())


def search(query: str) -> str:
    """Name the filings whose heading shares most words with the query, best first."""
    wanted = Counter(words(query))
    scores = {
        name: sum((Counter(words(" ".join(text.splitlines()[:2]))) & wanted).values())
        for name, text in texts().items()
    }
    best = sorted((name for name in scores if scores[name]), key=lambda n: (-scores[n], n))
    return " ".join(best[:FOUND]) or "nothing found"


def list_filings(company: str) -> str:
    """Name all filings of a company."""
    start = f"{slug(company)}-"
    return " ".join(name for name in texts() if name.startswith(start)) or "no such company"


def figures(text: str) -> dict[str, float]:
    """Return the figures of a filing by their lower-case name."""
    lines = [line.partition(": ") for line in text.splitlines()[2:]]
    return {label.lower(): float(value.split()[0]) for label, _, value in lines}
