"""Questions about filings as an environment: three tools over a folder, a number with its unit."""

import re
from collections.abc import Mapping

import filings

from agentrft import Environment, Task, ToolRefusal, Trajectory, tool

READ = 0.1
"""Worth of having read every filing that is needed and answering wrong."""
NUMBER = 0.5
"""Worth of the right number with a wrong unit or none, or found by reading more than was needed."""

# The whole reply: whoever wraps the figure into a sentence may deny or hedge it there.
_ANSWER = re.compile(
    r"(-?\d[\d,]*(?:\.\d+)?)\s*(million\s+usd|thousand\s+usd|percent|%|employees)?\.?"
)
_MISSING = re.compile(r"not\s+available\.?")


class FinanceQA(Environment):
    """One question; the filings are the same for all."""

    def __init__(self, task: Task) -> None:
        self.expect = task["expect"]
        self.read_files: set[str] = set()
        self.looked_for: set[str] = set()

    @tool(read_only=True)
    def search(self, query: str) -> str:
        """Find filings. query: company, quarter and year."""
        self.looked_for.add(query.lower())
        return filings.search(query)

    @tool(read_only=True)
    def list_filings(self, company: str) -> str:
        """List all filings of a company."""
        self.looked_for.add(company.lower())
        return filings.list_filings(company)

    @tool(read_only=True)
    def read(self, file: str) -> str:
        """Read a filing. file: its name, as search gives it."""
        text = filings.texts().get(file)
        if text is None:
            raise ToolRefusal(f"there is no filing {file!r}; search for it first")
        self.read_files.add(file)
        return text.strip()

    @classmethod
    def corrupted(cls, task: Task, other: Task) -> Task | None:
        """The question with the answer of another one."""
        if task["expect"]["unit"] == "" or other["expect"]["unit"] == "":
            return None
        if task["expect"]["number"] == other["expect"]["number"]:
            return None
        expect = {**task["expect"], "number": other["expect"]["number"]}
        return Task(
            id=task.id,
            messages=task.messages,
            tools=task.tools,
            row={**task.row, "expect": expect},
            family=task.family,
        )

    def grade(self, trajectory: Trajectory) -> Mapping[str, float]:
        """Score the number and its unit; neither counts unless the needed filings were read."""
        reply = trajectory.output_text.strip().lower()
        if not self.expect["files"]:
            company = self.expect["company"].lower()
            looked = any(company in query for query in self.looked_for)
            found = looked and not self.read_files and bool(_MISSING.fullmatch(reply))
            return {"score": float(found), "read": float(looked), "number": float(found)}
        if not self.read_files.issuperset(self.expect["files"]):
            return {"score": 0.0, "read": 0.0, "number": 0.0}
        match = _ANSWER.fullmatch(reply)
        right = (
            match is not None
            and abs(float(match[1].replace(",", "")) - self.expect["number"]) < 1e-6
        )
        unit = match is not None and _unit(match[2] or "") == self.expect["unit"].lower()
        direct = self.read_files == set(self.expect["files"])
        score = 1.0 if right and unit and direct else NUMBER if right else READ
        return {"score": score, "read": 1.0, "number": float(right)}


def _unit(text: str) -> str:
    return " ".join(text.replace("%", "percent").split())
