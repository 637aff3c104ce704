"""The command line: `python train.py [group=option] [key=value]`, and the console script `hawq`."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hawq.errors import UserError
from hawq.experiment.config.explain import explain, modernise
from hawq.experiment.config.listing import asked_groups, options_text
from hawq.experiment.config.names import config_folder, job_facts, register_resolvers
from hawq.experiment.jobs import begin, fail, finish, is_done
from hawq.experiment.progress import be_quiet, speaks

_INTERRUPTED = 130  # 128 + SIGINT, as shells have it
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@hydra.main(version_base="1.3", config_path=str(config_folder()), config_name="config")
def main(config: DictConfig) -> None:
    """One run, or one job of a sweep: everything is built and checked before any work starts."""
    if OmegaConf.is_missing(HydraConfig.get().job, "num"):
        run(config)
    else:
        run_job(config)


def run_job(config: DictConfig) -> None:
    """One job of a sweep. A finished one is not run again; a failed one is recorded and does not end the sweep."""
    folder, facts = Path(HydraConfig.get().runtime.output_dir), job_facts(config)
    if _agreed(is_done(folder, facts)):
        if speaks():
            print(f"{folder.name}: finished before")
        return
    if speaks():
        begin(folder)
    try:
        run(config)
    except SystemExit as stopped:
        error = str(stopped.code).removeprefix("error: ")
    except Exception as unexpected:
        traceback.print_exc()
        error = f"{type(unexpected).__name__}: {unexpected}"
    else:
        if speaks():
            finish(folder, facts)
        return
    if speaks():
        fail(folder, error)
        print(f"error: {error}", file=sys.stderr)


def _agreed(done: bool) -> bool:
    """What the first process says, where there are several."""
    if "torch.distributed" not in sys.modules:
        return done
    from hawq.distributed import broadcast

    return broadcast(done)


def run(config: DictConfig) -> None:
    """Builds, checks and walks through the stages. Raises SystemExit with one sentence for what is wrong."""
    from hawq.experiment.config.build import build_settings, leave_no_empty_folder
    from hawq.experiment.console import last_line_alone
    from hawq.experiment.pipeline import assist, run_stages
    from hawq.experiment.prepare import prepare

    try:
        settings = build_settings(config)
        inputs = prepare(settings)
    except (ValueError, OSError) as error:
        if not speaks():  # the first process says it
            raise SystemExit(1) from error
        leave_no_empty_folder()
        unreadable = isinstance(error, OSError) and error.filename is not None
        text = f"{str(error.filename)[:80]} cannot be read: {error.strerror}" if unreadable else str(error)  # type: ignore
        raise SystemExit(f"error: {text}") from error
    try:
        if speaks():
            with last_line_alone():
                run_stages(settings, inputs)
        else:
            assist(inputs)
    except UserError as error:
        raise SystemExit(f"error: {error}" if speaks() else 1) from error
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        place = error.filename or settings.options.outputs
        raise SystemExit(f"error: no space left for {place}: free some and type the same command again") from error


def command_line() -> None:
    """`main`, with whatever is wrong with a command line told in one sentence, and Ctrl-C in one line."""
    register_resolvers()
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises instead of printing over many lines
    sys.argv[1:] = modernise(be_quiet(sys.argv[1:]))
    if (groups := asked_groups(sys.argv[1:])) is not None:
        return _list_options(groups)
    try:
        with _process_group():
            config = check_command_line(sys.argv[1:])
            try:
                main()
            except Exception as error:
                if not _concluded(config, error):
                    raise
    except KeyboardInterrupt:
        print("\nstopped: type the same command again to go on from here", file=sys.stderr)
        raise SystemExit(_INTERRUPTED) from None
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError) as error:
        raise SystemExit(f"error: {_explained(error)}") from error
    except ValueError as error:
        if HydraConfig.initialized():  # a job had begun: not about the command line
            raise
        raise SystemExit(f"error: {_explained(error)}") from error


def _list_options(groups: Sequence[str]) -> None:
    """Prints the options. Raises SystemExit for a group that does not exist."""
    try:
        print(options_text(groups))
    except ValueError as error:
        raise SystemExit(f"error: {error}") from error


def _concluded(config: DictConfig | None, error: Exception) -> bool:
    """Whether the error is that of a sweep that lost the process of a job, which then ends as with a failed job."""
    from hawq.experiment.sweep import conclude_without, is_lost_process

    if config is None or not is_lost_process(error):
        return False
    folder, launcher = (str(OmegaConf.select(config, f"hydra.{key}")) for key in ("sweep.dir", "launcher._target_"))
    conclude_without(Path(folder).absolute(), launcher)
    return True


def check_command_line(arguments: Sequence[str]) -> DictConfig | None:
    """Composes the config that Hydra is about to take, and refuses what its own part must not name.

    Hydra builds callbacks and logging of a config before a job can look at it. Returns the config without what a sweep
    varies; None for a command line that asks for help. Raises ValueError, or what Hydra raises for a command line that
    cannot be composed.
    """
    from hawq.experiment.config.targets import check_hydra

    given = get_args_parser().parse_args(list(arguments))
    if given.help or given.hydra_help or given.shell_completion:
        return None
    parsed = OverridesParser.create().parse_overrides(given.overrides)
    single = [str(override.input_line) for override in parsed if not override.is_sweep_override()]
    folder = f"hydra.searchpath=[file://{os.path.abspath(given.config_dir)}]" if given.config_dir else None
    GlobalHydra.instance().clear()
    with initialize_config_dir(os.path.abspath(given.config_path or config_folder()), version_base="1.3"):
        overrides = [*single, *([folder] if folder else [])]
        config = compose(given.config_name or "config", overrides=overrides, return_hydra_config=True)
    GlobalHydra.instance().clear()
    check_hydra(config, given.overrides)
    if not str(config.get("outputs") or "").strip():  # Hydra would make its folder at the root of the disk
        raise ValueError("outputs is empty: give a folder, say outputs=outputs")
    return config


def _explained(error: Exception) -> str:
    from hawq.experiment.config.build import config_keys

    return explain(error, config_keys())


@contextmanager
def _process_group() -> Iterator[None]:
    """Joins the processes that torchrun started, where it did."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield
        return
    from hawq.distributed import process_group

    with process_group():
        yield
