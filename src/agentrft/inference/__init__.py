"""Models on disk, messages to tokens and back, and samplers. No torch outside `embedded/`."""
