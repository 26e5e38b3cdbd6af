"""Compiled loops that trainer and engine share. Importing the room compiles nothing."""
