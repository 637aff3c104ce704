"""One table of finished runs: `python scripts/compare_runs.py outputs/runs/*`; also as a page, `table.html`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from hawq.experiment.sweep import jobs_table
from hawq.report import Entry, write_table


def main() -> None:
    """Prints the table, and writes `table.html` into the folder that all runs are in."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        raise SystemExit("error: no run folders given; type: python scripts/compare_runs.py outputs/runs/*")
    try:
        print(jobs_table([(folder.name, folder) for folder in folders]))
        together = Path(os.path.commonpath([folder.absolute().parent for folder in folders]))
        page = write_table(together / "table.html", [Entry(folder.name, folder) for folder in folders], together.name)
        print(f"\nTable: {page}")
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
