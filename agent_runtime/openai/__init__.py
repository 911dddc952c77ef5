"""Models behind an OpenAI-compatible endpoint; imported only by agents that have one."""
