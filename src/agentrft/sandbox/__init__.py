"""Run code nobody trusts."""
