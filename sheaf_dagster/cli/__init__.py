"""The command line: the same jobs without Dagster."""

# Their commands enter ``main`` as these modules are imported.
from sheaf_dagster.cli import commands, listing, looking
from sheaf_dagster.cli.app import main

__all__ = ["commands", "listing", "looking", "main"]
