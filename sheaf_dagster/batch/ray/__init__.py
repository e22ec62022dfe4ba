"""A job on a Ray cluster: its coordinator, its workers, and their places."""
