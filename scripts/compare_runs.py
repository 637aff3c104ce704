"""One table of finished runs: `python scripts/compare_runs.py outputs/runs/*`."""

from __future__ import annotations

import sys
from pathlib import Path

from hawq.experiment.sweep import jobs_table


def main() -> None:
    """Prints the table."""
    folders = [Path(argument) for argument in sys.argv[1:]]
    if not folders:
        raise SystemExit("error: no run folders given; type: python scripts/compare_runs.py outputs/runs/*")
    try:
        print(jobs_table([(folder.name, folder) for folder in folders]))
    except (FileNotFoundError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
