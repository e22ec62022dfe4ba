"""Processes beside the model's own: they read, prepare, answer and write, and ask it for ``infer``."""
