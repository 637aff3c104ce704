"""Two plans side by side: `python scripts/compare_plans.py outputs/runs/A/plan.json outputs/runs/B/plan.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from hawq.records import PLAN_SCHEMA, BitPlan, read_record
from hawq.report import plans_table


def main() -> None:
    """Prints the table of differences."""
    if len(sys.argv) != 3:
        raise SystemExit("error: two plans are needed; type: python scripts/compare_plans.py a/plan.json b/plan.json")
    try:
        first, second = (read_record(Path(path), PLAN_SCHEMA, BitPlan) for path in sys.argv[1:])
        print(plans_table(first, second))
    except (OSError, ValueError) as error:
        raise SystemExit(f"error: {error}") from error


if __name__ == "__main__":
    main()
