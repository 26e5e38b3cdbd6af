"""Trajectory in, grade out."""
