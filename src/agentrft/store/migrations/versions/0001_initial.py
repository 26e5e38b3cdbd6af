"""Projects, runs and everything a run appends."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _sequence() -> sa.Column[int]:
    return sa.Column("sequence", sa.Integer, primary_key=True)


def _run_id() -> sa.Column[str]:
    return sa.Column(
        "run_id", sa.Text, sa.ForeignKey("runs.id", ondelete="CASCADE"), nullable=False
    )


def _record() -> sa.Column[bytes]:
    return sa.Column("record", sa.LargeBinary, nullable=False)


def upgrade() -> None:
    """Create all tables."""
    op.create_table(
        "projects",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("created_at", sa.Float, nullable=False),
    )
    op.create_table(
        "runs",
        _sequence(),
        sa.Column("id", sa.Text, nullable=False, unique=True),
        sa.Column("project", sa.Text, sa.ForeignKey("projects.name"), nullable=False),
        sa.Column("method", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("created_at", sa.Float, nullable=False),
        _record(),
        sqlite_autoincrement=True,
    )
    op.create_index("runs_by_project", "runs", ["project", "sequence"])
    op.create_table(
        "events",
        _sequence(),
        _run_id(),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("level", sa.Text, nullable=False),
        _record(),
        sqlite_autoincrement=True,
    )
    for table, unique in (
        ("metrics", "one_result_per_step"),
        ("checkpoints", "one_checkpoint_per_step"),
    ):
        op.create_table(
            table,
            _sequence(),
            _run_id(),
            sa.Column("step", sa.Integer, nullable=False),
            _record(),
            sa.UniqueConstraint("run_id", "step", name=unique),
            sqlite_autoincrement=True,
        )
    for table in ("events", "metrics", "checkpoints"):
        op.create_index(f"{table}_by_run", table, ["run_id", "sequence"])
    _create_trajectories()


def _create_trajectories() -> None:
    op.create_table(
        "trajectories",
        _sequence(),
        _run_id(),
        sa.Column("step", sa.Integer, nullable=False),
        sa.Column("stage", sa.Text, nullable=False),
        sa.Column("split", sa.Text, nullable=False),
        sa.Column("task_id", sa.Text, nullable=False),
        sa.Column("family", sa.Text, nullable=False),
        sa.Column("score", sa.Float),
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Column("stop_reason", sa.Text, nullable=False),
        sa.Column("tool_calls", sa.Integer, nullable=False),
        sa.Column("sampled_tokens", sa.Integer, nullable=False),
        sa.Column("observed_tokens", sa.Integer, nullable=False),
        sa.Column("duration_s", sa.Float, nullable=False),
        sqlite_autoincrement=True,
    )
    for name, columns in (
        ("trajectories_by_run", ["run_id", "sequence"]),
        ("trajectories_by_stage", ["run_id", "stage", "split", "sequence"]),
        ("trajectories_by_split", ["run_id", "split", "sequence"]),
        ("trajectories_by_step", ["run_id", "step"]),
    ):
        op.create_index(name, "trajectories", columns)
    op.create_table(
        "trajectory_bodies",
        sa.Column(
            "sequence",
            sa.Integer,
            sa.ForeignKey("trajectories.sequence", ondelete="CASCADE"),
            primary_key=True,
        ),
        _record(),
    )
