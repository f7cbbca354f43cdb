"""stepwell: a flight recorder for LLM applications."""
