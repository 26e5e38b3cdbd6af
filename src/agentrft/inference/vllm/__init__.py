"""vLLM behind HTTP as the engine of rollouts; vLLM itself is never imported."""
