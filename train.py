"""Float network in, small quantised network out: `python train.py [group=option] [key=value]` (see README)."""

from __future__ import annotations

import os

import hydra
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hawq.distributed import process_group, rank
from hawq.errors import UserError
from hawq.experiment.config import build_settings, config_keys, explain, leave_no_empty_folder, register_resolvers
from hawq.experiment.pipeline import assist, prepare, run


@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config: DictConfig) -> None:
    """One run, or one job of a sweep: everything is built and checked before any work starts."""
    try:
        prepared = prepare(build_settings(config))
    except (ValueError, FileNotFoundError) as error:
        if rank() > 0:  # the first process tells it
            raise SystemExit(1) from error
        leave_no_empty_folder()
        raise SystemExit(f"error: {error}") from error
    try:
        run(prepared) if rank() == 0 else assist(prepared)
    except UserError as error:
        raise SystemExit(1 if rank() else f"error: {error}") from error  # the first process tells it


def command_line() -> None:
    """`main`, with Hydra's complaints about a command line told in one sentence."""
    register_resolvers()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing over many lines
    try:
        with process_group():
            main()
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        raise SystemExit(f"error: {explain(error, config_keys())}") from error
    except ValueError as error:
        if HydraConfig.initialized():  # a job had begun: not about the command line
            raise
        raise SystemExit(f"error: {explain(error, config_keys())}") from error


if __name__ == "__main__":
    command_line()
