"""Tables of the home database. A change here needs a new file in `migrations/versions/`."""

from sqlalchemy import (
    BigInteger,
    Boolean,
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
    text,
)

HEAD = "0003"
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
    Column("trajectory_id", Text, nullable=False, server_default=""),
    Index("trajectories_by_run", "run_id", "sequence"),
    Index("trajectories_by_stage", "run_id", "stage", "split", "sequence"),
    Index("trajectories_by_split", "run_id", "split", "sequence"),
    Index("trajectories_by_step", "run_id", "step"),
    Index("trajectories_by_id", "run_id", "trajectory_id"),
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

# What the fine-tuning API adds. A tenant project is a row of `projects`; ids are random, never paths.

CLAIMABLE = text("worker IS NULL AND status IN ('validating_files', 'queued')")
LEASED = text("worker IS NOT NULL")
"""Spelled out, not bound: a partial index serves only the very condition it was made with."""

jobs = Table(
    "jobs",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, ForeignKey("runs.id", ondelete="CASCADE"), nullable=False, unique=True),
    Column("project", Text, ForeignKey("projects.name"), nullable=False),
    Column("status", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("record", LargeBinary, nullable=False),
    Column("wish", Text),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("worker", Text),
    Column("fence", Integer, nullable=False, server_default="0"),
    Column("heartbeat_at", Float),
    Column("lease_expires_at", Float),
    # None begins with the status: SQLite would choose it at every claim, and sort the whole line.
    Index("jobs_by_project", "project", "sequence", "status"),
    Index("jobs_to_claim", "sequence", sqlite_where=CLAIMABLE, postgresql_where=CLAIMABLE),
    Index("jobs_by_lease", "lease_expires_at", sqlite_where=LEASED, postgresql_where=LEASED),
    sqlite_autoincrement=True,
)

job_metadata = Table(
    "job_metadata",
    metadata,
    Column("job_id", Text, ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Index("job_metadata_by_value", "key", "value"),
)

secrets = Table(
    "secrets",
    metadata,
    Column("owner", Text, primary_key=True),
    Column("sealed", LargeBinary, nullable=False),
)
"""Encrypted JSON by owner: a job's header values, a webhook's signing key."""

webhooks = Table(
    "webhooks",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, ForeignKey("projects.name"), nullable=False),
    Column("url", Text, nullable=False),
    Column("created_at", Float, nullable=False),
)

outbox = Table(
    "outbox",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, nullable=False),
    Column("webhook_id", Text, ForeignKey("webhooks.id", ondelete="CASCADE"), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("attempts", Integer, nullable=False, server_default="0"),
    Column("due_at", Float),
    Column("delivered_at", Float),
    Column("error", Text),
    UniqueConstraint("id", "webhook_id", name="one_delivery_per_webhook"),
    Index("outbox_by_due", "due_at"),
    sqlite_autoincrement=True,
)
"""Written in the transaction that ends a job, so no end goes unannounced; not due: done or given up."""

files = Table(
    "files",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("project", Text, ForeignKey("projects.name"), nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Index("files_by_project", "project", "sequence"),
    Index("files_by_content", "sha256"),
    sqlite_autoincrement=True,
)

models = Table(
    "models",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("project", Text, ForeignKey("projects.name"), nullable=False),
    Column("job_id", Text, nullable=False),
    Column("base", Text, nullable=False),
    Column("path", Text, nullable=False),
    Column("step", Integer, nullable=False),
    Column("final", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    Index("models_by_project", "project", "sequence"),
    Index("models_by_job", "job_id", "step"),
    sqlite_autoincrement=True,
)
"""Fine-tuned models and checkpoints that can be called."""

permissions = Table(
    "permissions",
    metadata,
    Column("sequence", Integer, primary_key=True),
    Column("id", Text, nullable=False, unique=True),
    Column("model_id", Text, ForeignKey("models.id", ondelete="CASCADE"), nullable=False),
    Column("project", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    UniqueConstraint("model_id", "project", name="one_permission_per_project"),
    sqlite_autoincrement=True,
)
"""Other projects that may call a model."""

tokens = Table(
    "tokens",
    metadata,
    Column("id", Text, primary_key=True),
    Column("project", Text, ForeignKey("projects.name"), nullable=False),
    Column("role", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("digest", Text, nullable=False, unique=True),
    Column("created_at", Float, nullable=False),
    Column("last_used_at", Float),
    Column("expires_at", Float),
    Column("revoked_at", Float),
)
"""API tokens by the sha256 of their 256 random bits; the token itself is nowhere."""

replies = Table(
    "replies",
    metadata,
    Column("project", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("request", Text, nullable=False),
    Column("status", Integer),
    Column("body", LargeBinary),
    Column("created_at", Float, nullable=False),
)
"""Answers to mutating calls by Idempotency-Key, kept for a day; no status while under way."""
