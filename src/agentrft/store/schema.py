"""Tables of the home database. A change here needs a new file in `migrations/versions/`."""

from sqlalchemy import (
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
)

HEAD = "0001"
"""Newest revision; a database that has it opens without loading Alembic."""

metadata = MetaData()

projects = Table(
    "projects",
    metadata,
    Column("name", Text, primary_key=True),
    Column("created_at", Float, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("project", Text, ForeignKey("projects.name"), nullable=False),
    Column("method", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Index("runs_by_project", "project", "sequence"),
    sqlite_autoincrement=True,
)


def _run_id() -> Column[str]:
    return Column("run_id", Text, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False)


events = Table(
    "events",
    metadata,
    Column("sequence", Integer, primary_key=True),
    _run_id(),
    Column("step", Integer, nullable=False),
    Column("level", Text, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Index("events_by_run", "run_id", "sequence"),
    sqlite_autoincrement=True,
)

metrics = Table(
    "metrics",
    metadata,
    Column("sequence", Integer, primary_key=True),
    _run_id(),
    Column("step", Integer, nullable=False),
    Column("record", LargeBinary, nullable=False),
    UniqueConstraint("run_id", "step", name="one_result_per_step"),
    Index("metrics_by_run", "run_id", "sequence"),
    sqlite_autoincrement=True,
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("sequence", Integer, primary_key=True),
    _run_id(),
    Column("step", Integer, nullable=False),
    Column("record", LargeBinary, nullable=False),
    UniqueConstraint("run_id", "step", name="one_checkpoint_per_step"),
    Index("checkpoints_by_run", "run_id", "sequence"),
    sqlite_autoincrement=True,
)

trajectories = Table(
    "trajectories",
    metadata,
    Column("sequence", Integer, primary_key=True),
    _run_id(),
    Column("step", Integer, nullable=False),
    Column("stage", Text, nullable=False),
    Column("split", Text, nullable=False),
    Column("task_id", Text, nullable=False),
    Column("family", Text, nullable=False),
    Column("score", Float),
    Column("outcome", Text, nullable=False),
    Column("stop_reason", Text, nullable=False),
    Column("tool_calls", Integer, nullable=False),
    Column("sampled_tokens", Integer, nullable=False),
    Column("observed_tokens", Integer, nullable=False),
    Column("duration_s", Float, nullable=False),
    Index("trajectories_by_run", "run_id", "sequence"),
    Index("trajectories_by_stage", "run_id", "stage", "split", "sequence"),
    Index("trajectories_by_split", "run_id", "split", "sequence"),
    Index("trajectories_by_step", "run_id", "step"),
    sqlite_autoincrement=True,
)

# Every token lives here, apart from the columns above, so that listing never reads it.
trajectory_bodies = Table(
    "trajectory_bodies",
    metadata,
    Column(
        "sequence",
        Integer,
        ForeignKey("trajectories.sequence", ondelete="CASCADE"),
        primary_key=True,
    ),
    Column("record", LargeBinary, nullable=False),
)
