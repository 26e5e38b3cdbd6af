"""How often a project's holdout was looked at: every look makes it easier to fool oneself."""

from agentrft.jobs.context import Job


def holdout_looks(job: Job) -> int:
    """Count the runs of this project that measured its holdout; stages count with their parent."""
    lookers: set[str] = set()
    after, more = 0, True
    while more:
        page = job.home.store.runs(job.run.project, after=after)
        lookers |= {
            run.id.partition(".")[0] for run in page.items if run.result.get("split") == "holdout"
        }
        after, more = page.last, page.has_more
    return len(lookers)
