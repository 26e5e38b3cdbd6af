"""Alembic's entry point: migrate over the connection that `database.py` hands in."""

from alembic import context

# SQLite can undo DDL; Alembic has to be told. The caller's transaction spans all migrations.
context.configure(connection=context.config.attributes["connection"], transactional_ddl=True)
context.run_migrations()
