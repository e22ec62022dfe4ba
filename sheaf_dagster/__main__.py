"""``python -m sheaf_dagster``: the command line."""

from sheaf_dagster.cli import main

if __name__ == "__main__":
    main()
