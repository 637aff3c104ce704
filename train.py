"""Float network in, small quantised network out: `python train.py [group=option] [key=value]` (see README)."""

from __future__ import annotations

from hawq.experiment.main import command_line

if __name__ == "__main__":
    command_line()
