"""Write the filings, the splits and the demonstrations, the same bytes every time.

    python write.py [FOLDER]

Splits share no company and no phrasing.
"""

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filings import figures, file_name, list_filings, search, texts

SEED = 20260701
ROWS = {"train": 240, "validation": 96, "holdout": 160}
DEMONSTRATIONS = 56
YEARS = (2023, 2024)
KINDS = ("Foods", "Tools", "Energy", "Media", "Textiles", "Robotics", "Water", "Glass")
NAMES = {
    "train": "Alder Birch Cobalt Dover Ember Falcon Granite Harbor Iris Juniper Kestrel Lumen".split(),
    "validation": "Maple Nimbus Onyx Pioneer Quartz Raven".split(),
    "holdout": "Sable Tundra Umber Vesper Willow Xenon Yarrow Zephyr".split(),
}
COMPANIES = {"train": 20, "validation": 9, "holdout": 13}
"""With eight quarters each: 336 filings."""

MONEY = ("revenue", "operating costs", "net income", "cash")
FAMILIES = {
    "figure": 32,
    "employees": 12,
    "thousands": 12,
    "sum": 12,
    "change": 12,
    "margin": 8,
    "missing": 12,
}
"""Rows of each family per hundred."""

PHRASINGS = {
    "train": {
        "figure": ("What was the {m} of {c} in Q{q} {y}?", "{c}, Q{q} {y}: how much {m}?"),
        "employees": ("How many employees did {c} have in Q{q} {y}?",),
        "thousands": ("Give the {m} of {c} in Q{q} {y} in thousand USD.",),
        "sum": ("What was the {m} of {c} in Q{q} and Q{r} {y} together?",),
        "change": ("By how much did the {m} of {c} change from Q{q} to Q{r} {y}?",),
        "margin": ("What percent of revenue was the net income of {c} in Q{q} {y}?",),
    },
    "validation": {
        "figure": ("Tell me the {m} {c} reported for Q{q} {y}.", "Q{q} {y} {m} of {c}?"),
        "employees": ("What was the headcount of {c} in Q{q} {y}?",),
        "thousands": ("{c} in Q{q} {y}: {m}, please in thousand USD.",),
        "sum": ("Add up the {m} of {c} for Q{q} and Q{r} {y}.",),
        "change": ("How did the {m} of {c} move between Q{q} and Q{r} {y}?",),
        "margin": ("Net income as percent of revenue for {c}, Q{q} {y}?",),
    },
    "holdout": {
        "figure": ("I need the {m} of {c} for Q{q} {y}.", "Look up {m}, {c}, Q{q} {y}."),
        "employees": ("How large was the staff of {c} in Q{q} {y}?",),
        "thousands": ("In thousand USD, what {m} did {c} have in Q{q} {y}?",),
        "sum": ("{c}: total {m} over Q{q} and Q{r} {y}?",),
        "change": ("Difference in {m} of {c}, Q{r} {y} minus Q{q} {y}?",),
        "margin": ("For {c} in Q{q} {y}, net income is what percent of revenue?",),
    },
}


def companies(split: str) -> list[str]:
    """Return the companies of a split."""
    pairs = [f"{name} {kind}" for name in NAMES[split] for kind in KINDS]
    random.Random(f"{SEED}-{split}").shuffle(pairs)
    return sorted(pairs[: COMPANIES[split]])


def filing(company: str, year: int, quarter: int) -> str:
    """Return the text of one filing."""
    rng = random.Random(f"{SEED}-{company}-{year}-{quarter}")
    revenue = rng.randrange(40, 900)
    costs = round(revenue * rng.uniform(0.5, 0.85))
    income = max(1, round((revenue - costs) * rng.uniform(0.4, 0.8)))
    lines = [
        f"{company} Inc.",
        f"Quarterly report Q{quarter} {year}",
        f"Revenue: {revenue / 10} million USD",
        f"Operating costs: {costs / 10} million USD",
        f"Net income: {income / 10} million USD",
        f"Cash: {rng.randrange(10, 300) / 10} million USD",
        f"Employees: {rng.randrange(80, 4000)}",
    ]
    return "\n".join(lines) + "\n"


class Writer:
    """Draws the rows of one split."""

    def __init__(self, split: str) -> None:
        self.split = split
        self.rng = random.Random(f"{SEED}-{split}-rows")
        self.companies = companies(split)

    def rows(self, count: int) -> list[dict[str, Any]]:
        """Return rows, families mixed, no question twice."""
        wanted = [name for name, share in FAMILIES.items() for _ in range(share * count // 100)]
        wanted += ["figure"] * (count - len(wanted))
        self.rng.shuffle(wanted)
        seen: set[str] = set()
        rows: list[dict[str, Any]] = []
        for number, family in enumerate(wanted, start=1):
            row = self.row(family)
            while row["messages"][0]["content"] in seen:
                row = self.row(family)
            seen.add(row["messages"][0]["content"])
            rows.append({"id": f"{self.split}-{number:03}", "family": family} | row)
        return rows

    def row(self, family: str) -> dict[str, Any]:
        """Return question and what is expected of one task."""
        rng = self.rng
        company, year = rng.choice(self.companies), rng.choice(YEARS)
        first, second = sorted(rng.sample(range(1, 5), 2))
        metric = rng.choice(MONEY)
        asked = "figure" if family == "missing" else family
        if family == "missing":
            year = rng.choice((2021, 2022, 2026))
        text = rng.choice(PHRASINGS[self.split][asked]).format(
            m=metric, c=company, y=year, q=first, r=second
        )
        quarters = (first, second) if family in ("sum", "change") else (first,)
        files = [] if family == "missing" else [file_name(company, year, q) for q in quarters]
        found = [figures(filing(company, year, q)) for q in quarters]
        number, unit = _answer(family, metric, found)
        return {
            "messages": [{"role": "user", "content": text}],
            "expect": {"files": files, "number": number, "unit": unit, "company": company},
        }


def _answer(family: str, metric: str, found: list[dict[str, float]]) -> tuple[float, str]:
    match family:
        case "missing":
            return 0.0, ""
        case "employees":
            return found[0]["employees"], "employees"
        case "thousands":
            return round(found[0][metric] * 1000), "thousand USD"
        case "sum":
            return round(found[0][metric] + found[1][metric], 1), "million USD"
        case "change":
            return round(found[1][metric] - found[0][metric], 1), "million USD"
        case "margin":
            return round(100 * found[0]["net income"] / found[0]["revenue"], 1), "percent"
        case _:
            return found[0][metric], "million USD"


def reply(row: Mapping[str, Any]) -> str:
    """Return the right answer to a row."""
    expect = row["expect"]
    return f"{expect['number']:g} {expect['unit']}" if expect["unit"] else "not available"


def demonstrate(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the whole conversation that solves a row."""
    expect = row["expect"]
    calls: list[tuple[str, dict[str, str]]] = []
    if not expect["files"]:
        calls.append(("list_filings", {"company": expect["company"]}))
    for file in expect["files"]:
        stem = file.removesuffix(".txt").split("-")
        query = f"{expect['company']} {stem[-1].upper()} {stem[-2]}"
        calls += [("search", {"query": query}), ("read", {"file": file})]
    messages: list[dict[str, Any]] = [dict(message) for message in row["messages"]]
    for number, (name, arguments) in enumerate(calls, start=1):
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": f"call_{number}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append(
            {"role": "tool", "tool_call_id": call["id"], "content": _run(name, arguments)}
        )
    return [*messages, {"role": "assistant", "content": reply(row)}]


def _run(name: str, arguments: Mapping[str, str]) -> str:
    match name:
        case "search":
            return search(arguments["query"])
        case "list_filings":
            return list_filings(arguments["company"])
        case _:
            return texts()[arguments["file"]].strip()


def main(folder: Path) -> None:
    """Write everything into a folder."""
    (folder / "filings").mkdir(parents=True, exist_ok=True)
    for split in ROWS:
        for company in companies(split):
            for year in YEARS:
                for quarter in range(1, 5):
                    path = folder / "filings" / file_name(company, year, quarter)
                    path.write_text(filing(company, year, quarter), encoding="utf-8")
    for split, count in ROWS.items():
        rows = Writer(split).rows(count)
        _write(folder / f"{split}.jsonl", rows)
        if split == "train":
            shown = [
                {"id": row["id"], "family": row["family"], "messages": demonstrate(row)}
                for row in rows[:DEMONSTRATIONS]
            ]
            _write(folder / "demonstrations.jsonl", shown)


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
