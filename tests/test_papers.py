"""The papers' tables as data, our costs beside them, and the README's table of results."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import reproduce
from hypothesis import given
from hypothesis import strategies as st
from runs import CONF, REPOSITORY, compose_here, read_json, run_folder, run_here
from scipy import stats

from hawq.experiment.config.build import build_settings, compose_parts
from hawq.records import Difference, ResultRow
from hawq.report import (
    NOT_RUN,
    Recorded,
    RecordedRow,
    RecordedRun,
    comparison,
    full_results,
    read_results,
    read_table,
    summary_table,
)
from hawq.report.untrained import untrained_summary, untrained_table

TABLES = {name: read_table(path) for name, path in reproduce.TABLES.items()}
RESULTS = read_results(REPOSITORY / "docs" / "results")
ROWS = [(name, row) for name, table in TABLES.items() for row in table.rows]
HAWQ_ROW = next(
    row for record in RESULTS for row in record.runs[0].rows if record.fills.get(row.result.method) == "table1/hawq"
)
DATASETS = {**dict.fromkeys(("table1", "ablations", "cifar10"), "cifar10"), "imagenette": "imagefolder"}
V3 = Path(__file__).parents[2] / "shared" / "reference" / "hawq_v3_resnet18_ilp.json"


def test_every_row_is_there():
    counts = {"table1": 12 + 20, "table2": 6 + 1, "table3": 9, "table4": 4, "v2": 12, "v3": 20, "figures": 3}
    counts |= {"ablations": 26, "cifar10": 60, "imagenet": 156, "imagenette": 6}
    assert {
        name: len(table.rows) for name, table in TABLES.items()
    } == counts  # + APoT and our own, HAWQ with inferred bits


@pytest.mark.parametrize(("name", "row"), ROWS, ids=lambda value: getattr(value, "id", value))
def test_rows_say_where_they_come_from_and_can_be_composed(name, row):
    figures = [field for field in ("accuracy", "w_comp", "a_comp", "size_mb", "bops_g") if getattr(row, field)]
    marks = set(re.findall(r"[A-Z]{3,}", row.mark)) & {"PDF", "REPO", "ABS", "SEC", "CALC", "RECALLED"}
    assert marks if figures else marks or row.mark == "NONE"
    assert set(row.recalled) <= set(figures)
    if row.mark == "RECALLED":
        assert set(row.recalled) == set(figures)
    overrides = TABLES[name].overrides(row)
    if overrides is not None:
        settings = build_settings(compose_here(*overrides, "dataset.path=none"))
        assert settings.dataset.name == DATASETS.get(name, "imagenet")


def rows_of(name):
    table = TABLES[name]
    return {row.id: (row, reproduce.ours(name, table, row, RESULTS)) for row in table.rows}


@pytest.mark.parametrize(
    ("name", "ids"),
    [
        ("table1", ["hawq"]),
        ("table2", ["baseline", "hawq-inferred", "rvquant"]),
        ("table3", ["baseline"]),
        ("table4", ["baseline", "direct"]),
    ],
)
def test_our_ratios_are_those_printed(name, ids):
    compared = rows_of(name)
    for row, ours in (compared[key] for key in ids):
        assert ours.cost.w_comp == pytest.approx(row.w_comp, abs=0.01), row.id
        assert row.size_mb is None or ours.size_mib == pytest.approx(row.size_mb, rel=0.01), row.id


def test_networks_without_training_stand_beside_their_records():
    compared = {name: ours for name, (_, ours) in rows_of("imagenet").items()}
    assert compared["lite0-w8a8"].accuracy == "83.00" and compared["lite0"].accuracy == "83.31"
    assert compared["squeezenet-w4a8"].accuracy == "48.15" and compared["lite2-w4a8"].accuracy == "not run here"
    for name in ("lite0", "lite2", "squeezenet"):
        assert compared[f"{name}-w8a8"].cost.w_comp == 4 and 4 < compared[f"{name}-w4a8"].cost.w_comp < 8


def test_published_v3_configurations():
    compared = rows_of("v3")
    for row, ours in compared.values():
        if row.id.startswith("resnet18"):  # published sizes are up to 0.2 MB larger, BOPS up to 3 % smaller
            assert ours.size_mib == pytest.approx(row.size_mb, abs=0.25), row.id
            assert ours.cost.bops / 1e9 == pytest.approx(row.bops_g, rel=0.031), row.id


def test_v3_widths_are_the_published_ones():
    if not V3.is_file():
        pytest.skip(f"{V3} is not there")
    levels = {0.75: "high", 0.5: "medium", 0.25: "low"}
    for found in json.loads(V3.read_text())["published"]:
        row = TABLES["v3"].row(f"resnet18-{found['constraint']}-{levels[found['alpha']]}")
        assert row.layer_bits == "".join(map(str, found["bits"]))


def test_what_was_not_run_says_so():
    compared = rows_of("table1")
    assert compared["baseline"][1].accuracy == "91.73"
    assert compared["hawq"][1].accuracy == f"{HAWQ_ROW.result.accuracy:.2f}"
    assert compared["dnas-11"][1] == reproduce.Ours(accuracy=NOT_RUN)


def run_script(*arguments):
    with mock.patch.object(sys, "argv", ["reproduce.py", *arguments]):
        reproduce.main()


def test_recalled_figures_are_shown_as_such(capsys):
    run_script("table1")
    printed = capsys.readouterr().out
    assert "92.22 (recalled)" in printed
    assert "13.11 " in printed
    assert "13.11 (recalled)" not in printed


@pytest.mark.parametrize(
    ("row", "message"),
    [("lqnets-3", "row 'lqnets-3' cannot be run"), ("hawg", "row 'hawg' is unknown: give baseline, dorefa-2")],
)
def test_rows_that_cannot_be_run(row, message):
    with pytest.raises(SystemExit, match=message):
        run_script("table3", "--run", row)


def test_our_ablations_show_what_was_recorded():
    table = TABLES["ablations"]
    assert reproduce.ours("ablations", table, table.row("joint"), []).accuracy == NOT_RUN
    published = next(record for record in RESULTS if "table1/hawq" in record.fills.values())
    recorded = replace(published, fills={"HAWQ (published bits)": "ablations/joint"})
    ours = {row.id: reproduce.ours("ablations", table, row, [recorded]) for row in table.rows}
    assert (ours["joint"].accuracy, ours["joint"].limit) == (f"{HAWQ_ROW.result.accuracy:.2f}", "13.12")
    header, _, *lines = comparison(table, ours).splitlines()[2:]
    assert "source" not in header and "| accuracy %" in header
    assert [NOT_RUN in line for line in lines] == [row.id != "joint" for row in table.rows]


@given(
    mine=st.dictionaries(st.integers(0, 5), st.floats(90, 93), min_size=1),
    other=st.dictionaries(st.integers(0, 5), st.floats(90, 93), min_size=1),
)
def test_differences_are_paired_over_common_seeds(mine, other):
    table, made = TABLES["ablations"], HAWQ_ROW
    record = next(record for record in RESULTS if "table1/hawq" in record.fills.values())

    def recorded(key, accuracies):
        runs = [
            replace(record.runs[0], seed=seed, rows=(replace(made, result=replace(made.result, accuracy=accuracy)),))
            for seed, accuracy in accuracies.items()
        ]
        return replace(record, runs=tuple(runs), fills={made.result.method: f"ablations/{key}"})

    told = reproduce.difference(
        "ablations", table.row("hawq-5"), [recorded("hawq-5", mine), recorded("joint-5", other)]
    )
    values = [mine[seed] - other[seed] for seed in mine.keys() & other.keys()]
    if len(values) < 2:
        assert told == "–"
        return
    mean, error = np.mean(values), stats.sem(values)
    low, high = stats.t.interval(0.95, len(values) - 1, mean, error) if error else (mean, mean)
    value, half = re.fullmatch(r"([+±−]\d+\.\d+) ± (\d+\.\d+) to joint-5", told).groups()
    assert float(value.replace("−", "-").replace("±", "")) == pytest.approx(mean, abs=0.0051)
    assert float(half) == pytest.approx((high - low) / 2, abs=0.0051)


def test_a_row_is_compared_with_one_that_is_there():
    with pytest.raises(ValueError, match="row 'joint-6' is unknown: give hawq, direct"):
        replace(
            TABLES["ablations"],
            rows=(*TABLES["ablations"].rows, replace(TABLES["ablations"].rows[0], against="joint-6")),
        )


def test_a_row_is_one_command():
    assert reproduce.command(TABLES["table1"], "pact-2", ["seed=1"])[1:] == [
        *[str(REPOSITORY / "train.py"), "experiment=paper/table1", "quantizer=pact", "bits=uniform"],
        *["bits.weights=2", "bits.activations=2", "seed=1"],
    ]
    with mock.patch.object(reproduce, "become") as become:
        run_script("table1", "--run", "pact-2", "seed=1", "--cfg=job")
    assert become.call_args.args[0][-2:] == ["seed=1", "--cfg=job"]


RUN = [("table1", "pact-3"), ("table2", "rvquant"), ("ablations", "network"), ("ablations", "error")]


@pytest.mark.parametrize(("name", "row"), RUN)
def test_rows_run_through_train(name, row, tmp_path):
    overrides = TABLES[name].overrides(TABLES[name].row(row))
    assert run_here(tmp_path, *overrides, "model=resnet20", "dataset=digits", "finetune.order=joint") is None
    first, *_, last = read_json(run_folder(tmp_path) / "report.json")["rows"]
    assert last["size_bytes"] < first["size_bytes"] / 3


def test_every_paper_experiment_serves_a_table():
    options = {f"paper/{path.stem}" for path in (CONF / "experiment" / "paper").glob("*.yaml")}
    assert options == {table.experiment for table in TABLES.values()}


def test_pages_show_the_recorded_results():
    readme, results = (page.read_text() for page in reproduce.PAGES)
    assert reproduce.with_results(readme, RESULTS) == readme
    assert reproduce.with_results(results, RESULTS) == results
    assert summary_table(RESULTS) in readme
    assert full_results(RESULTS) in results and "\n| reverse-precision " in results
    other = [replace(RESULTS[0], network="another"), *RESULTS[1:]]
    assert reproduce.with_results(readme, other) != readme
    assert full_results(other) not in results


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"schema": "hawq.result/1"}, "its schema must be hawq.result/2"),
        ({"schema": "hawq.result/2"}, "not a Recorded"),
    ],
)
def test_other_files_are_no_results(content, message, tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_results(tmp_path)


def test_networks_without_training_are_listed_with_their_difference_to_float():
    lines = reproduce.untrained(RESULTS).splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert cells[0][:5] == ["EfficientNet-Lite0", "float", "32", "32", "83.31"]
    assert ["", "uniform", "8", "8", "83.00", "−0.31 (−0.83 to +0.21)", "4.00×", "4.83 MiB", "2"] in cells
    filled = {place for record in RESULTS for place in record.fills.values()}
    assert len(cells) == sum(place.startswith(("imagenet/", "cifar10/")) for place in filled)


def test_the_readme_shows_accuracy_and_size_of_networks_beside_each_other():
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in reproduce.headline(RESULTS).splitlines()]
    full = [[cell.strip() for cell in line.strip("|").split("|")] for line in reproduce.untrained(RESULTS).splitlines()]
    assert lines[0][1:] == [
        "SqueezeNet 1.1 %",
        "SqueezeNet 1.1 size",
        "EfficientNet-Lite0 %",
        "EfficientNet-Lite0 size",
    ]
    assert len(lines) == 9
    shown = {(line[4], line[7]) for line in full}
    assert all({(line[1], line[2]), (line[3], line[4])} <= shown for line in lines[2:])


def test_a_line_of_the_readme_without_a_record_is_an_error():
    with pytest.raises(ValueError, match="no record fills imagenet/lite2-w8a8"):
        untrained_summary("imagenet", TABLES["imagenet"], [], ("lite2",), {"8 bits": "w8a8"})


def test_seeds_of_a_network_without_training_share_a_line():
    row = ResultRow("HAWQ", "2 MP", "4", 90.0, 13.1, 100_000, 8.0, 0.079, 100, Difference(-2.0, -3.0, -1.0, 100))
    other = replace(row, accuracy=91.0, difference=Difference(-1.0, -2.0, 0.0, 100))
    runs = tuple(RecordedRun(seed, 0.1, None, (RecordedRow(one),)) for seed, one in enumerate((row, other)))
    record = Recorded("N", "c", "h", "d", "v", "", 128, 0, None, runs, fills={"HAWQ": "cifar10/b-13x"})
    line = untrained_table({"cifar10": TABLES["cifar10"]}, [record]).splitlines()[-1]
    shown = [cell.strip() for cell in line.strip("|").split("|")]
    assert shown[0] == "ResNet20 B" and shown[4:6] == ["90.50 ± 0.71", "−1.50 (−2.50 to −0.50)"] and shown[-1] == "6"


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "imagenette"])
def test_rows_that_share_a_plan_share_its_cost(name):
    """What is left out of their overrides changes nothing that a plan is made of."""
    for row in TABLES[name].rows[::15]:
        overrides = TABLES[name].overrides(row)
        if overrides is not None:
            whole = compose_parts([*overrides, "dataset.path=none"])
            planned = reproduce.planned_parts(tuple(filter(reproduce.says_plan, overrides)))
            assert [whole[part] for part in ("model", "bits")] == [planned[part] for part in ("model", "bits")], row.id
