"""How often a project's holdout was looked at: every look makes it easier to fool oneself."""

from collections.abc import Iterator

from agentrft.core.run import Run
from agentrft.jobs.context import Job


def holdout_looks(job: Job) -> int:
    """Count the runs of this project that measured its holdout; stages count with their parent."""
    looking = (run for run in runs_beside(job) if run.result.get("split") == "holdout")
    return len({run.id.partition(".")[0] for run in looking})


def runs_beside(job: Job) -> Iterator[Run]:
    """Return all runs of a job's project, its own among them, newest first."""
    after, more = 0, True
    while more:
        page = job.home.store.runs(job.run.project, after=after)
        yield from page.items
        after, more = page.last, page.has_more
