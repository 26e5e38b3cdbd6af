"""What things are: frozen types, the seams, errors and config. Standard library only, no I/O."""
