"""``make digits`` and ``make texts``: a group's embeddings, and whether neighbours make sense.

``make digits-changed`` replaces one picture in a hundred and embeds the catalogue again.
"""

from __future__ import annotations

import sys

import dagster as dg

from example_project.runs import materialisations, materialise_group, quiet, table

_MAKES = {"digits": "digit_embeddings", "pages": "page_embeddings"}


def main(group: str = "digits", replaced_every: str | None = None) -> int:
    """Materialises a group of assets and prints what its check found.

    Args:
        group: The group.
        replaced_every: Replace each n-th picture first.
    """
    quiet()
    changes = {"replaced_every": int(replaced_every)} if replaced_every else {}
    config = {"digit_pictures": {"config": changes}} if changes else None
    asset = dg.AssetKey(_MAKES[group])
    print(f"Embedding {group}: one Dagster run, on Ray …")
    with dg.DagsterInstance.get() as instance:
        result = materialise_group(instance, group, "ERROR", config)
        if not result.success:
            print("The run failed; its log is above.", file=sys.stderr)
            return 1
        made = materialisations(instance, _MAKES[group], result.run_id)["None"]
    shown = (
        "dagster/row_count",
        "changed_rows",
        "reused_rows",
        "seconds",
        "workers",
        "model_digest",
    )
    rows = [[name, made[name]] for name in shown if name in made]
    checks = [e for e in result.get_asset_check_evaluations() if e.asset_key == asset]
    for check in checks:
        rows.append([check.check_name, "passed" if check.passed else "FAILED"])
        found = {k: v.value for k, v in check.metadata.items() if k != "files_checked"}
        rows += [[f"  {name}", value] for name, value in found.items()]
    print("\n" + table(["", asset.to_user_string()], rows))
    return 0 if checks and all(check.passed for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
