"""Prompt and structure search: diagnose, treat, screen, race, confirm. Rolls nothing out itself."""
