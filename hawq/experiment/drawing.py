"""The command line of the scripts that draw finished runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def command_line(description: str | None, sources: str, draw: Callable[[list[str], Path], Path]) -> None:
    """Parses SOURCES… --out FILE and draws; what cannot be drawn ends the process with one sentence.

    Args:
        description: of the script.
        sources: how a source is shown in its help.
        draw: sources and the file → the file; raises ValueError or OSError for sources that cannot be drawn.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", metavar=sources)
    parser.add_argument("--out", type=Path, required=True, help="a .png or .svg")
    given = parser.parse_args()
    try:
        print(f"drawn: {draw(given.sources, given.out)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
