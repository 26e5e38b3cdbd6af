"""AgentRFT."""
