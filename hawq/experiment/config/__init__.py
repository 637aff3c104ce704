"""From a composed Hydra config to built components; nothing below this file sees a Hydra object."""

from __future__ import annotations

import dataclasses
import difflib
import json
import pkgutil
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hawq.allocation import Allocation, Allocator
from hawq.curvature import Solver
from hawq.data import ImageData
from hawq.distributed import local_rank
from hawq.experiment.artifacts import fingerprint
from hawq.experiment.tracking import Tracking
from hawq.export import PackedExport
from hawq.finetuning import FineTuning, Training
from hawq.models import ModelSpec
from hawq.quantization import Quantizer
from hawq.sensitivity import Analysis
from hawq.validation import Validation

REPOSITORY = Path(__file__).resolve().parents[3]
STAGES = ("analysis", "allocation", "finetune", "export", "report")  # each needs those before it
VALIDATE = "validate"  # beside them: needs the analysis, and nothing needs it
COMPONENTS = (
    "model",
    "dataset",
    "training",
    "analysis",
    "solver",
    "validation",
    "bits",
    "allocation",
    "quantizer",
    "finetune",
    "export",
    "tracking",
)
BASELINES = ("direct", "none")
NOT_PART_OF_A_RESULT = ("hydra", "stages", "device", "threads", "workers", "tracking", "outputs", "allowed_targets")


@dataclass(frozen=True)
class RunOptions:
    """The options of `config.yaml` itself.

    Args:
        stages: which stages may do work; a result that is already cached is used without being named.
        seed: of every random draw.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads, or None for PyTorch's choice.
        workers: processes that load training images; 0 loads them in the main process.
        baseline: "direct" adds a uniform network of at most the same size to the results, "none" leaves it out.
        outputs: folder for runs and cache.
        allowed_targets: prefixes that a `_target_` must have.

    Raises:
        ValueError: a value out of range.
    """

    stages: tuple[str, ...]
    seed: int
    device: str
    threads: int | None
    workers: int
    baseline: str
    outputs: str
    allowed_targets: tuple[str, ...]

    def __post_init__(self) -> None:
        allowed = [*STAGES, VALIDATE]
        unknown = [stage for stage in self.stages if stage not in allowed]
        if unknown:
            raise ValueError(f"stages={list(self.stages)} has unknown stages {unknown}: give some of {allowed}")
        if not 0 <= self.seed < 2**31:
            raise ValueError(f"seed={self.seed} is out of range: give 0 to {2**31 - 1}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads={self.threads} is out of range: give 1 or more, or null")
        if self.workers < 0:
            raise ValueError(f"workers={self.workers} is out of range: give 0 or more")
        if self.baseline not in BASELINES:
            raise ValueError(f"baseline={self.baseline!r} is unknown: give {' or '.join(BASELINES)}")
        self.torch_device()

    def last_stage(self) -> int:
        """The place in STAGES of the last one that the selected ones need; -1 without any."""
        needed = ("analysis" if stage == VALIDATE else stage for stage in self.stages)
        return max(map(STAGES.index, needed), default=-1)

    def torch_device(self) -> torch.device:
        """Raises ValueError for a device that this machine does not have."""
        name = self.device
        if name == "auto":
            name = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
        kind, _, index = name.partition(":")
        if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
            raise ValueError(f"device={self.device!r} is unknown: give auto, cpu, cuda or cuda:N")
        if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
            raise ValueError(f"device={self.device!r} is not on this machine: give auto or cpu")
        return torch.device(name)


@dataclass(frozen=True)
class Settings:
    """Everything a run was asked for, built and checked. `compared` are the solvers that validation.solvers names."""

    options: RunOptions
    model: ModelSpec
    dataset: ImageData
    training: Training
    analysis: Analysis
    solver: Solver
    validation: Validation
    bits: Allocator
    allocation: Allocation
    quantizer: Quantizer
    finetune: FineTuning
    export: PackedExport
    tracking: Tracking
    compared: dict[str, Solver]
    folder: Path
    resolved: dict[str, Any]
    command: str


def register_resolvers() -> None:
    """`${repository:}`, `${run_name:}` and `${command_name:}`, for the folders in `config.yaml`."""
    OmegaConf.register_new_resolver("repository", lambda: str(REPOSITORY), replace=True)
    OmegaConf.register_new_resolver("run_name", lambda *, _root_: run_name(_root_), replace=True)
    OmegaConf.register_new_resolver("command_name", lambda: command_name(sys.argv[1:]), replace=True)


def run_name(config: DictConfig) -> str:
    """Folder name of a run: what was chosen, and a hash of the config, so that the same command finds it again."""
    choices = config.hydra.runtime.choices
    facts = {key: value for key, value in _plain(config).items() if key not in NOT_PART_OF_A_RESULT}
    text = json.dumps(facts, sort_keys=True)  # takes NaN too, which is refused later, with a better message
    given = config.allocation.sensitivity
    network = [choices.model, choices.dataset] if given is None else [Path(str(given)).stem]
    parts = [*network, choices.bits, f"s{config.seed}", fingerprint(text)[:8]]
    return "-".join(str(part).replace("/", "_") for part in parts)


def command_name(arguments: Sequence[str]) -> str:
    """Folder name of a sweep: a hash of its command line."""
    return "sweep-" + fingerprint(sorted(arguments))[:8]


def _plain(config: DictConfig) -> dict[str, Any]:
    """The config without Hydra's own part, as resolved plain values."""
    own = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    plain = OmegaConf.to_container(own, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def build_settings(config: DictConfig) -> Settings:
    """Builds every component of a composed config once, for the job that Hydra is running.

    Raises ValueError with one sentence for any wrong value.
    """
    plain = _plain(config)
    folder = Path(HydraConfig.get().runtime.output_dir)
    overrides = HydraConfig.get().overrides.task  # of this job alone, in a sweep
    command = shlex.join(["python", "train.py", *overrides])
    parts = _build_parts(plain, HydraConfig.get().runtime.choices.get("solver"))
    return Settings(folder=folder, resolved=plain, command=command, **parts)


def check_config(config: DictConfig) -> None:
    """Raises what `build_settings` would, for a config that is only composed, not run."""
    _build_parts(_plain(config))


def _build_parts(plain: dict[str, Any], chosen_solver: str | None = None) -> dict[str, Any]:
    """`options`, every component and the solvers to compare, by the names that `Settings` gives them."""
    option_names = {field.name for field in dataclasses.fields(RunOptions)}
    _refuse_unknown_keys("", set(plain), {*option_names, *COMPONENTS})
    for name in COMPONENTS:
        if name not in plain:
            raise ValueError(f"the config has no {name}: choose an option, say {name}=...")
    options = _build_dataclass("", RunOptions, {key: value for key, value in plain.items() if key in option_names})
    parts = {name: build_component(name, plain[name], options.allowed_targets) for name in COMPONENTS}
    solvers = {name: _solver_node(name, plain, chosen_solver) for name in parts["validation"].solvers}
    compared = {name: build_component("solver", node, options.allowed_targets) for name, node in solvers.items()}
    return {"options": options, **parts, "compared": compared}


def _solver_node(name: str, plain: dict[str, Any], chosen: str | None) -> Any:
    """An option of the group solver as its file has it, in the run's memory; the chosen one as the run has it."""
    if name == chosen:
        return plain["solver"]
    options = {path.stem: path for path in (REPOSITORY / "conf" / "solver").glob("*.yaml")}
    if name not in options:
        raise ValueError(f"validation.solvers: solver={name} is not an option: {_suggest(name, sorted(options))}")
    node = OmegaConf.to_container(OmegaConf.load(options[name]))
    assert isinstance(node, dict)
    limit = {key: plain["solver"].get(key) for key in node if key == "memory_limit_gib"}
    return node | limit


def build_component(name: str, node: Any, allowed: Sequence[str]) -> Any:
    """The object that `_target_` of a group option names, built from the option's other (plain) values.

    Only classes from modules with an allowed prefix are built. Raises ValueError for any other target, an unknown or
    missing key, a value of the wrong type, or one that the class refuses.
    """
    if not isinstance(node, dict) or "_target_" not in node:
        raise ValueError(f"{name}={node!r} is not a group option with a _target_: choose one of conf/{name}/")
    cls = _allowed_class(name, str(node["_target_"]), allowed)
    values = {key: value for key, value in node.items() if key != "_target_"}
    if dataclasses.is_dataclass(cls):
        built = _build_dataclass(name, cls, values)
    else:
        _check_targets(name, node, allowed)
        try:
            built = instantiate(node)
        except HydraException as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{name}: {cls.__name__} refused its keys: {reason}") from error
    _check_contract(name, built)
    return built


def leave_no_empty_folder() -> None:
    """Removes the run folder that Hydra makes before anything is checked, if nothing is in it."""
    folder = Path(HydraConfig.get().runtime.output_dir)
    for place in (folder, folder.parent):
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()


def compose_parts(overrides: Sequence[str]) -> dict[str, Any]:
    """`options` and every component that a command line would build, without a run.

    Raises ValueError with one sentence for whatever a run would refuse.
    """
    register_resolvers()
    try:
        return _build_parts(_plain(_compose(overrides)))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(explain(error, config_keys())) from error


def config_keys() -> list[str]:
    """All keys of the default config, dotted, to suggest from."""
    return _dotted(_compose([]))


def _compose(overrides: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(REPOSITORY / "conf"), version_base="1.3"):
        return compose("config", overrides=list(overrides))


def _dotted(config: DictConfig, prefix: str = "") -> list[str]:
    keys = []
    for key in map(str, config):
        node = config._get_node(key)
        keys += [prefix + key, *(_dotted(node, f"{prefix}{key}.") if isinstance(node, DictConfig) else [])]
    return keys


def explain(error: Exception, known_keys: Sequence[str] = ()) -> str:
    """Hydra's composition errors in one sentence: what was given, what is allowed."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = error.missing_cfg_file.partition("/")
        folder = REPOSITORY / "conf" / group
        nested = {path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")}
        options = sorted({*nested, *(error.options or [])})
        return f"{group or 'config'}={option} is not an option: {_suggest(option, options)}"
    for chained in (error, error.__cause__):
        key = getattr(chained, "full_key", None)
        if key and key not in known_keys:
            return f"{key} is not a key of the config: {_suggest(key, known_keys)}"
    return " ".join(str(error).split())


def _suggest(given: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(given, allowed, n=1, cutoff=0.5)
    listed = f"allowed are {', '.join(allowed)}" if len(allowed) <= 25 else "see conf/"
    return f"did you mean {close[0]}? ({listed})" if close else listed


def _allowed_class(name: str, target: str, allowed: Sequence[str]) -> type:
    """The class behind a target; both the written path and the module that defines the class must be allowed."""
    prefixes = ", ".join(allowed)
    if not target.startswith(tuple(allowed)):
        raise ValueError(
            f"{name}._target_={target} is not allowed: give a class below {prefixes}, or extend allowed_targets"
        )
    try:
        found = pkgutil.resolve_name(target)
    except (ImportError, ValueError, AttributeError) as error:
        raise ValueError(f"{name}._target_={target} does not exist: {_first_line(error)}") from error
    if not isinstance(found, type) or not f"{found.__module__}.".startswith(tuple(allowed)):
        raise ValueError(
            f"{name}._target_={target} is not a class below {prefixes}: give one, or extend allowed_targets"
        )
    return found


def _check_targets(name: str, node: Any, allowed: Sequence[str]) -> None:
    """`instantiate` builds whatever is nested in a node as well; all of it must be allowed."""
    if isinstance(node, dict):
        if "_target_" in node:
            _allowed_class(name, str(node["_target_"]), allowed)
        for key, value in node.items():
            _check_targets(f"{name}.{key}", value, allowed)
    elif isinstance(node, list):
        for place, value in enumerate(node):
            _check_targets(f"{name}[{place}]", value, allowed)


def _build_dataclass(name: str, cls: type, values: dict[str, Any]) -> Any:
    """Checks keys and types against the fields of `cls`, then builds it; tuples stay tuples."""
    prefix = f"{name}." if name else ""
    fields = dataclasses.fields(cls)
    _refuse_unknown_keys(prefix, set(values), {field.name for field in fields})
    for field in fields:
        optional = field.default is not MISSING or field.default_factory is not MISSING
        if values.get(field.name) == "???" or (field.name not in values and not optional):
            raise ValueError(f"{prefix}{field.name} is not set: give {prefix}{field.name}=... on the command line")
    hints = get_type_hints(cls)
    try:
        typed = OmegaConf.merge(OmegaConf.structured(cls), values)
    except OmegaConfBaseException as error:
        raise ValueError(_wrong_type(prefix, str(error.full_key), values, hints)) from error
    plain = OmegaConf.to_container(typed)
    assert isinstance(plain, dict)
    return cls(**{str(key): _as_annotated(value, hints[str(key)]) for key, value in plain.items()})


_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text",
    tuple: "a list",
    dict: "a mapping",
}


def _wrong_type(prefix: str, full_key: str, values: Mapping[str, Any], hints: Mapping[str, Any]) -> str:
    """One sentence for a value that does not fit the annotation of its field; `full_key` may point inside a list."""
    key = full_key.split(".")[0].split("[")[0]
    options = get_args(hints[key]) if type(None) in get_args(hints[key]) else (hints[key],)
    names = [_TYPE_NAMES.get(get_origin(kind) or kind, str(kind)) for kind in options if kind is not type(None)]
    inside = [kind for option in options for kind in get_args(option) if kind in _TYPE_NAMES]
    of = f", each {_TYPE_NAMES[inside[0]]}," if inside and "a list" in names else ""
    null = " or null" if len(options) > 1 else ""
    return f"{prefix}{key}={values.get(key)!r} has the wrong type: {' or '.join(names)}{of}{null} is needed"


def _as_annotated(value: Any, hint: Any) -> Any:
    wants_tuple = tuple in (get_origin(hint), *map(get_origin, get_args(hint)))
    return tuple(value) if wants_tuple and isinstance(value, list) else value


def _refuse_unknown_keys(prefix: str, given: set[str], known: set[str]) -> None:
    for key in sorted(given - known):
        allowed = sorted(prefix + name for name in known)
        raise ValueError(f"{prefix}{key} is not a key of the config: {_suggest(prefix + key, allowed)}")


_CONTRACTS: Mapping[str, Any] = {
    "model": ModelSpec,
    "dataset": ("name", "normalization", "open", "prepare"),
    "training": Training,
    "analysis": Analysis,
    "solver": ("name", "reads", "memory_limit_gib", "start", "update", "estimates"),
    "validation": Validation,
    "bits": ("check", "allocate"),
    "allocation": Allocation,
    "quantizer": ("name", "weight", "activation"),
    "finetune": FineTuning,
    "export": PackedExport,
    "tracking": ("open",),
}


def _check_contract(name: str, value: Any) -> None:
    contract = _CONTRACTS[name]
    if isinstance(contract, type):
        fits, wanted = isinstance(value, contract), f"a {contract.__name__}"
    else:
        fits, wanted = all(hasattr(value, key) for key in contract), f"something with {', '.join(contract)}"
    if not fits:
        raise ValueError(f"{name}._target_ built a {type(value).__name__}: {wanted} is needed there")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
