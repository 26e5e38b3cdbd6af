"""Find a rollout by the id that its tools, its grader and alarms know it by."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the id; rollouts stored before have none."""
    column = sa.Column("trajectory_id", sa.Text(), nullable=False, server_default="")
    op.add_column("trajectories", column)
    op.create_index("trajectories_by_id", "trajectories", ["run_id", "trajectory_id"])


def downgrade() -> None:
    """Take it out again."""
    op.drop_index("trajectories_by_id", "trajectories")
    op.drop_column("trajectories", "trajectory_id")
