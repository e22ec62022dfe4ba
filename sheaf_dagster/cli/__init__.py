"""The command line: the same jobs without Dagster."""

from sheaf_dagster.cli.commands import main

__all__ = ["main"]
