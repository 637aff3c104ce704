"""Records finished runs in docs/results, with their curves; runs that differ only in the seed make one record.

python scripts/record_results.py outputs/runs/A outputs/runs/B --name resnet20_cifar10 --network "ResNet20, CIFAR-10"

The packed file of the run is put next to the record, of several that of the median one (the lower of two), and of three
or more also that of the best one, as NAME_best. Then: `python scripts/reproduce.py readme`.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from hawq.experiment.config.names import NOT_PART_OF_A_RESULT, REPOSITORY
from hawq.experiment.recording import recorded_run
from hawq.experiment.sweep import read_report
from hawq.files import write_whole
from hawq.records import RunReport
from hawq.report import Recorded, write_result

RESULTS = REPOSITORY / "docs" / "results"
MOST_BYTES = 2**20


def main() -> None:
    """Parses the command line and records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs")
    parser.add_argument("--name", required=True, help="file name of the record, without .json")
    parser.add_argument("--network", required=True, help="network and data, as the table names them")
    parser.add_argument("--note", default="", help="what else a reader must know")
    parser.add_argument("--place", type=int, help="order in the README; if left out, not shown there")
    parser.add_argument(
        "--fills", action="append", default=[], metavar="METHOD=TABLE/ROW", help="e.g. HAWQ=table1/hawq"
    )
    parser.add_argument("--hardware", help="if the runs do not state it")
    parser.add_argument("--command", help="to show instead of the runs' own")
    parser.add_argument("--without-model", action="store_true", help="leave out the packed file")
    parser.add_argument("--replace", action="store_true", help="overwrite a record of the same name")
    parser.add_argument("--folder", type=Path, default=RESULTS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        print(f"recorded: {record(given)}")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from error


def record(given: argparse.Namespace) -> Path:
    """Writes record and packed files, and returns the record's path.

    Raises ValueError or OSError before anything is written.
    """
    reports = [read_report(folder) for folder in given.runs]
    kept = {} if given.without_model else kept_runs(reports)
    path = given.folder / f"{given.name}.json"
    models = {at: given.folder / (given.name + end) for at, end in kept.items()}
    taken = [str(file) for file in (path, *models.values()) if file.exists() and not given.replace]
    if taken:
        raise ValueError(f"{' and '.join(taken)} exists: give another --name, or --replace")
    refuse_different(given.runs, reports)
    packed = {at: (given.runs[at] / "model.safetensors").read_bytes() for at in models}
    for at, content in packed.items():
        if len(content) > MOST_BYTES:
            raise ValueError(f"the packed file of {given.runs[at]} has {len(content):,} bytes: give --without-model")
    recorded = make_record(given, reports, {at: model.name for at, model in models.items()})
    for at, content in packed.items():
        write_whole(models[at], content)
    return write_result(path, recorded)


def kept_runs(reports: Sequence[RunReport]) -> dict[int, str]:
    """Run → end of the name of its packed file: the median run (the lower of two), and the best of three or more."""
    ranked = sorted(range(len(reports)), key=lambda at: reports[at].rows[-1].accuracy)
    kept = {ranked[(len(ranked) - 1) // 2]: ".safetensors"}
    if len(ranked) > 2:
        kept.setdefault(ranked[-1], "_best.safetensors")
    return kept


def make_record(given: argparse.Namespace, reports: Sequence[RunReport], packed: Mapping[int, str]) -> Recorded:
    """The record of all given runs. Raises ValueError when their hardware is unknown."""
    first = reports[0]
    hardware = given.hardware or first.versions.get("hardware")
    if hardware is None:
        raise ValueError(f"{given.runs[0]} does not state its hardware: give --hardware")
    settings = first.config["finetune"]
    runs = [
        replace(recorded_run(folder, report), packed=packed.get(at))
        for at, (folder, report) in enumerate(zip(given.runs, reports, strict=True))
    ]
    return Recorded(
        network=given.network,
        command=given.command or shown_command(reports),
        hardware=hardware,
        date=datetime.fromtimestamp((given.runs[0] / "report.json").stat().st_mtime).date().isoformat(),
        versions=f"torch {first.versions['torch']}",
        note=given.note,
        batch_size=settings["batch_size"],
        epochs=settings["epochs"] if settings["max_steps"] is None else None,
        curve_images=settings["eval_samples"],
        runs=tuple(runs),
        place=given.place,
        fills=fills_of(given.fills, [row.method for row in first.rows]),
    )


def refuse_different(folders: Sequence[Path], reports: Sequence[RunReport]) -> None:
    """Raises ValueError unless the runs differ only in their seeds."""
    first = without_seeds(reports[0].config)
    for folder, report in zip(folders[1:], reports[1:], strict=True):
        other = without_seeds(report.config)
        keys = sorted(key for key in first.keys() | other.keys() if first.get(key) != other.get(key))
        if keys:
            raise ValueError(
                f"{folders[0]} and {folder} differ in {', '.join(keys)}: give runs that differ in the seed"
            )
    seeds = [report.config["seed"] for report in reports]
    if len(set(seeds)) < len(seeds):
        raise ValueError(f"the runs have the seeds {seeds}: give each one once")


def without_seeds(config: dict[str, Any]) -> dict[str, Any]:
    """The settings that decide a result, without the seeds at any depth."""
    kept = {key: value for key, value in config.items() if key not in ("seed", *NOT_PART_OF_A_RESULT)}
    return {key: without_seeds(value) if isinstance(value, dict) else value for key, value in kept.items()}


def shown_command(reports: Sequence[RunReport]) -> str:
    """The command that gives all these runs, without this machine's folders and settings that decide no result."""
    seeds = ",".join(str(report.config["seed"]) for report in reports)
    several = len(reports) > 1
    words = []
    for word in shlex.split(reports[0].command)[2:]:
        key, equals, value = word.partition("=")
        if key.lstrip("+~").split(".")[0] in NOT_PART_OF_A_RESULT or (several and key in ("-m", "--multirun", "seed")):
            continue
        shown = key + equals + (Path(value).name if value.startswith(("/", "./", "../", "~")) else value)
        words.append(f"'{shown}'" if set(shown) & set(' "{}$&;<>|()*?!') else shown)
    return " ".join(["python train.py", *(["-m", f"seed={seeds}"] if several else []), *words])


def fills_of(pairs: Sequence[str], methods: Sequence[str]) -> dict[str, str]:
    """{method: table/row}. Raises ValueError for a method that the runs do not have."""
    fills = dict(pair.rpartition("=")[::2] for pair in pairs)
    unknown = sorted(fills.keys() - set(methods))
    if unknown:
        raise ValueError(f"--fills names {unknown}, which the runs do not have: give some of {list(methods)}")
    return fills


if __name__ == "__main__":
    main()
