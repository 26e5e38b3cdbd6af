"""What the audit makes of a grader of the corpus."""

from dataclasses import dataclass

from corpus import clean, later, planted
from corpus.case import Case, opened

from agentrft.audit.probe import Verdict
from agentrft.audit.report import AuditReport
from agentrft.audit.run import audit
from agentrft.core.config import AuditConfig
from agentrft.core.protocols import Sandbox

PLANTED = (*planted.PLANTED, *later.PLANTED)
CLEAN = (*clean.CLEAN, *later.CLEAN)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A case and its audit."""

    case: Case
    report: AuditReport

    @property
    def naming(self) -> tuple[int, ...]:
        """Probes that name the planted defect."""
        loud = (Verdict.WARN, Verdict.FOOLED)
        return tuple(
            finding.probe
            for finding in self.report.findings
            if finding.probe in self.case.probes and finding.verdict in loud
        )

    @property
    def found(self) -> bool:
        """Whether a planted defect is named, or at least refused."""
        return bool(self.naming or self.report.blocked)

    @property
    def fooled(self) -> tuple[int, ...]:
        """Probes that say that the grader was fooled."""
        return tuple(f.probe for f in self.report.findings if f.verdict is Verdict.FOOLED)

    @property
    def alarmed(self) -> bool:
        """Whether a clean grader would be refused or called fooled."""
        return bool(self.fooled or self.report.blocked)


async def audited(case: Case, sandbox: Sandbox | None) -> Outcome:
    """Audit one grader of the corpus with the defaults."""
    with opened(case, sandbox) as subject:
        return Outcome(case=case, report=await audit(subject, AuditConfig()))
