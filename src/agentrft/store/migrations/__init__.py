"""Schema history; Alembic runs it."""
