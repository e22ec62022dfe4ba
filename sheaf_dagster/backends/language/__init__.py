"""What the backends of language models share: bodies, prompts, generation, vLLM's names."""
