"""Task in, trajectory out: the agent loop, groups, and tools in Python or by URL."""
