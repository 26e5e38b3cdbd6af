"""Running work: one readable file per method, `improve.py` strings them together."""
