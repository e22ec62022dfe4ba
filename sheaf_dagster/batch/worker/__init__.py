"""What a worker does with chunks, wherever it runs."""
