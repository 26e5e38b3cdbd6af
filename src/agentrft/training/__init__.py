"""Samples in, checkpoint out. Importing the room loads nothing; the trainer's modules load torch."""
