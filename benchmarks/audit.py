"""Audit graders with a planted defect and clean ones, and count what is found: the corpus of the tests.

python benchmarks/audit.py [--csv FILE] [NAME ...]

Names that begin with "blind:" are counted apart: their author had not read the audit's code, and no
probe was changed for them. `blind:` as a name audits just these.
"""

import argparse
import asyncio
import csv
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "audit"))

from corpus import blind
from corpus.case import Case
from corpus.outcome import CLEAN, PLANTED, Outcome, audited

from agentrft.core.config import SandboxConfig
from agentrft.sandbox.local import open_sandbox


async def measure(cases: Sequence[Case]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as images:
        sandbox = open_sandbox(SandboxConfig(), images=Path(images))
        try:
            for case in cases:
                outcomes.append(await audited(case, sandbox))
                print(row(outcomes[-1]), flush=True)
        finally:
            await sandbox.close()
    return outcomes


def row(outcome: Outcome) -> str:
    named = " ".join(str(probe) for probe in outcome.naming) or "-"
    fooled = " ".join(str(probe) for probe in outcome.fooled) or "-"
    if outcome.case.probes:
        result = "found" if outcome.found else "MISSED"
    else:
        result = "ALARM" if outcome.alarmed else "quiet"
    blocked = "blocked" if outcome.report.blocked else ""
    return (
        f"{outcome.case.kind:15} {outcome.case.name:37} {result:7} {blocked:8} "
        f"{outcome.report.seconds:5.1f} s  named by {named:18} fooled at {fooled}"
    )


def summary(outcomes: Sequence[Outcome]) -> str:
    planted = [outcome for outcome in outcomes if outcome.case.probes]
    clean = [outcome for outcome in outcomes if not outcome.case.probes]
    seconds = sorted(outcome.report.seconds for outcome in outcomes)
    return (
        f"planted: {sum(o.found for o in planted)} of {len(planted)} found, "
        f"{sum(bool(o.naming) for o in planted)} by a probe that names the defect, "
        f"{sum(bool(o.report.blocked) for o in planted)} blocked\n"
        f"clean: {sum(o.alarmed for o in clean)} of {len(clean)} with an alarm\n"
        f"seconds an audit of 32 rows: median {seconds[len(seconds) // 2]:.1f}, "
        f"most {seconds[-1]:.1f}, all {sum(seconds):.0f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="words in the names of graders; all if none")
    parser.add_argument("--csv", type=Path, help="write one line per finding")
    options = parser.parse_args()
    cases = [
        case
        for case in (*PLANTED, *CLEAN, *blind.PLANTED, *blind.CLEAN)
        if not options.names or any(word in case.name for word in options.names)
    ]
    outcomes = asyncio.run(measure(cases))
    blind_names = {case.name for case in (*blind.PLANTED, *blind.CLEAN)}
    for batch, chosen in (
        ("known", [o for o in outcomes if o.case.name not in blind_names]),
        ("blind", [o for o in outcomes if o.case.name in blind_names]),
    ):
        if chosen:
            print(f"\n{batch}\n{summary(chosen)}")
    if options.csv:
        with options.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["grader", "planted", "probe", "verdict", "excess", "summary"])
            for outcome in outcomes:
                for f in outcome.report.findings:
                    excess = "" if f.excess is None else f"{f.excess:.3f}"
                    entry = [outcome.case.name, bool(outcome.case.probes), f.probe, f.verdict]
                    writer.writerow([*entry, excess, f.summary])


if __name__ == "__main__":
    main()
