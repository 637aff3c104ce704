"""Records in docs/results: made of run folders, kept apart, summed up over seeds."""

import json
import shlex
import shutil
from dataclasses import replace
from itertools import pairwise
from statistics import mean, stdev

import pytest
from runs import REPOSITORY, read_json, run_folder, run_here, run_script

from hawq.records import ResultRow, from_dict, to_dict
from hawq.report import (
    Recorded,
    RecordedRow,
    RecordedRun,
    figures,
    full_results,
    read_result,
    summary_table,
    write_result,
)
from hawq.report.minutes_figure import Paid

RESULT = ResultRow("HAWQ", "2 MP", "4", 91.0, 13.1, 100_000, 8.0, 0.079)
FLOAT = RecordedRow(ResultRow("float", "32", "32", 92.5, 1.0, 1_000_000, 1.0, 1.03))
RUN = RecordedRun(
    0, 0.5, "abc", (FLOAT, RecordedRow(RESULT, 200, ((100, 88.5), (200, 90.0)), (50, 100))), "x.safetensors"
)
RECORD = Recorded(
    *("ResNet20, CIFAR-10", "python train.py", "a GPU", "2026-01-02", "torch 2", "", 128, 4.0, 2000, (RUN,)),
    place=1,
    fills={"HAWQ": "table1/hawq"},
)


def with_seeds(*accuracies):
    rows = [
        RecordedRow(replace(RESULT, accuracy=value, size_bytes=100_000 + 1024 * i))
        for i, value in enumerate(accuracies)
    ]
    return replace(RECORD, runs=tuple(replace(RUN, seed=i, rows=(FLOAT, row)) for i, row in enumerate(rows)))


def test_a_record_survives_its_file(tmp_path):
    record = replace(RECORD, command="python train.py bits.candidates=[1,2,3]", note='of [1,2] a "[3,4]"')
    path = write_result(tmp_path / "x.json", record)
    assert read_result(path) == record
    assert '"curve": [[100, 88.5], [200, 90.0]]' in path.read_text()
    assert from_dict(to_dict(RECORD), Recorded) == RECORD


@pytest.mark.parametrize("text", ["[1, 2]", '{"schema": ', "{}"])
def test_another_file_is_named(text, tmp_path):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.json is no recorded result"):
        read_result(path)
    (tmp_path / "report.json").write_text(text)
    assert run_script("plot_convergence.py", tmp_path, "--out", tmp_path / "x.png").startswith("error: ")


def test_the_command_of_a_record_can_be_typed(folder, tmp_path):
    words = ["+bits.overrides={fc: [8]}", "tracking.mode=offline", "hydra.verbose=true", "bits.candidates=[2,4]"]

    def change(report):
        report["command"] = shlex.join(["python", "train.py", *words])

    assert recorded_with(tmp_path, another(folder, tmp_path / "other", change), "--name", "x") is None
    command = read_result(tmp_path / "x.json").command
    assert shlex.split(command)[2:] == [words[0], words[3]]
    assert command == "python train.py '+bits.overrides={fc: [8]}' bits.candidates=[2,4]"


def test_one_run_has_no_spread():
    assert RECORD.cells()[1] == ("HAWQ", "2 MP (mean 2.4)", "4", "91.00", "13.10×", "97.7 KiB", "8.00×")
    assert (
        RECORD.circumstances() == "seed 0; 200 steps of 128 images, 4 epochs; 0.5 hours on a GPU; torch 2; 2026-01-02"
    )
    assert (RECORD.cells_for("table1/hawq")["W-Comp"], RECORD.cells_for("table1/hawk")) == ("13.10×", {})


def test_several_seeds_are_summed_up():
    values = (90.0, 91.0, 92.5)
    record = with_seeds(*values)
    assert (
        record.cells()[1][3]
        == f"{mean(values):.2f} ± {stdev(values):.2f}"
        == record.cells_for("table1/hawq")["accuracy %"]
    )
    assert record.cells()[0][3] == "92.50 ± 0.00"
    assert record.cells()[1][5] == "98.7 KiB"
    assert record.circumstances().startswith("seeds 0, 1, 2: mean ± standard deviation; ")
    assert "1.5 hours" in record.circumstances()


def test_the_long_table_shows_records_with_a_place_and_links_their_files():
    shown = full_results([RECORD, replace(RECORD, network="hidden", place=None)])
    assert "| [HAWQ](results/x.safetensors) |" in shown
    assert "hidden" not in shown and "2. `" not in shown
    assert "](" not in full_results([replace(RECORD, runs=(replace(RUN, packed=None),))])


def test_the_short_table_has_one_line_a_record_and_no_notes():
    named = [replace(RECORD, network=f"network {index}") for index in range(12)]
    hidden = replace(RECORD, network="hidden", place=None)
    columns, _, *lines = summary_table([named[0], hidden, *named[1:]]).splitlines()
    assert [line.split("|")[1].strip() for line in lines] == [one.network for one in named[:9]]
    cells = dict(zip(*([cell.strip() for cell in line.split("|")[1:-1]] for line in (columns, lines[0])), strict=True))
    assert cells["packed file"] == "[97.7 KiB](docs/results/x.safetensors)"
    assert (cells["float %"], cells["quantised %"], cells["W-Comp"]) == ("92.50", "91.00", "13.10×")
    _, _, line = summary_table([with_seeds(90.0, 91.0, 92.5)]).splitlines()
    assert "| 92.50 " in line and "| 91.17 ± 1.26 |" in line


def test_records_of_one_parent_show_its_float_row_once():
    other_float = replace(RUN, rows=(replace(FLOAT, result=replace(FLOAT.result, accuracy=90.0)), RUN.rows[1]))
    others = [replace(RECORD, network="another"), replace(RECORD, network="another", runs=(other_float,))]
    shown = full_results([RECORD, RECORD, *others]).splitlines()
    first_cells = [line.split("|")[1].strip() for line in shown if line.startswith("| ")][1:]
    assert first_cells == ["ResNet20, CIFAR-10 (1)", "", "ResNet20, CIFAR-10 (2)", "another (3)", "", "another (4)", ""]


def test_runs_of_one_record_are_about_the_same_networks():
    with pytest.raises(ValueError, match="need the same methods"):
        replace(RECORD, runs=(RUN, replace(RUN, rows=(FLOAT,))))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny finished run with its baseline."""
    outputs = tmp_path_factory.mktemp("outputs")
    ordered = ("finetune.order=descending", "finetune.max_steps=4", "finetune.eval_samples=50")
    assert run_here(outputs, "baseline=direct", *ordered) is None
    return run_folder(outputs)


def recorded_with(target, *arguments):
    given = ["--network", "ResNet20, digits", "--folder", target]
    return run_script("record_results.py", *arguments, *given)


def another(folder, target, change):
    """A copy of a run folder whose report says something else."""
    shutil.copytree(folder, target)
    report = read_json(folder / "report.json")
    change(report)
    (target / "report.json").write_text(json.dumps(report))
    return target


def test_a_run_becomes_a_record(folder, tmp_path, capsys):
    assert recorded_with(tmp_path, folder, "--name", "x", "--note", "tiny", "--fills", "HAWQ=table1/hawq") is None
    record, report = read_result(tmp_path / "x.json"), read_json(folder / "report.json")
    (run,) = record.runs
    assert [to_dict(row.result) for row in run.rows] == report["rows"]
    assert [row.steps for row in run.rows] == [0, 4, 4]
    for row, place in zip(run.rows[1:], (folder / "direct", folder), strict=True):
        history = read_json(place / "finetune" / "history.json")
        assert row.curve[-1] == (4, round(history[-1]["accuracy"], 3))
        assert row.borders == tuple(a["step"] for a, b in pairwise(history) if a["phase"] != b["phase"])
    assert len(run.rows[2].borders) > len(run.rows[1].borders) == 0
    assert (tmp_path / "x.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert record.command.startswith("python train.py baseline=none model.small_input_size=8 ")
    assert not any(word in record.command for word in ("outputs", "threads", "tracking", str(tmp_path)))
    assert (record.hardware, record.note, record.epochs, record.place) == (
        report["versions"]["hardware"],
        "tiny",
        None,
        None,
    )
    capsys.readouterr()
    assert run_script("evaluate.py", tmp_path / "x.safetensors", "threads=1") is None
    value = report["rows"][-1]["accuracy"]
    assert f"recorded: {value:.2f} % (x.json, seed 0); difference +0.00 points" in capsys.readouterr().out


def test_seeds_become_one_record(folder, tmp_path):
    def change(report):
        report["config"]["seed"] = report["config"]["bits"]["seed"] = 7
        report["rows"][-1]["accuracy"] += 1

    other = another(folder, tmp_path / "other", change)
    assert recorded_with(tmp_path, folder, other, "--name", "x", "--without-model", "--place", 3) is None
    record = read_result(tmp_path / "x.json")
    assert [run.seed for run in record.runs] == [0, 7] and record.place == 3
    assert record.command.startswith("python train.py -m seed=0,7 ")
    assert record.cells()[-1][3].endswith("± 0.71")
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize(
    ("gains", "median", "best"),
    [
        ([0], 0, None),
        ([3, 0], 1, None),
        ([2, 0, 1], 2, 0),
        ([0, 0, 0], 1, 2),
        ([1, 5, 2, 4], 2, 1),
        ([5, 4, 1, 2, 3], 4, 0),
    ],
)
def test_of_several_runs_the_median_and_the_best_network_are_kept(gains, median, best, folder, tmp_path):
    def run(number, gain):
        def change(report):
            report["config"]["seed"] = report["config"]["bits"]["seed"] = number
            report["rows"][-1]["accuracy"] += gain

        made = another(folder, tmp_path / str(number), change)
        (made / "model.safetensors").write_bytes(b"network of run %d" % number)
        return made

    runs = [run(number, gain) for number, gain in enumerate(gains)]
    assert recorded_with(tmp_path, *runs, "--name", "x") is None
    record = read_result(tmp_path / "x.json")
    names = {median: "x.safetensors"} | ({} if best is None else {best: "x_best.safetensors"})
    assert [one.packed for one in record.runs] == [names.get(number) for number in range(len(gains))]
    assert record.packed() == "x.safetensors"
    for number, name in names.items():
        assert (tmp_path / name).read_bytes() == b"network of run %d" % number
    assert len(list(tmp_path.glob("*.safetensors"))) == len(names)


def test_nothing_is_overwritten_unasked(folder, tmp_path):
    arguments = (tmp_path, folder, "--name", "x")
    assert recorded_with(*arguments) is None
    (tmp_path / "x.json").unlink()
    assert "x.safetensors exists: give another --name, or --replace" in recorded_with(*arguments)
    assert recorded_with(*arguments, "--replace", "--note", "new") is None
    assert read_result(tmp_path / "x.json").note == "new"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda report: report["config"]["finetune"].update(lr=1.0),
            "differ in finetune: give runs that differ in the seed",
        ),
        (lambda report: None, "the runs have the seeds [0, 0]: give each one once"),
    ],
)
def test_other_runs_are_no_seeds(change, message, folder, tmp_path):
    other = another(folder, tmp_path / "other", change)
    assert message in recorded_with(tmp_path, folder, other, "--name", "x")
    assert not (tmp_path / "x.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{run}", "--fills", "HAWK=table1/hawq"], "--fills names ['HAWK']"),
        (["{run}/direct"], "report.json does not exist: give a folder that a finished run wrote"),
    ],
)
def test_what_cannot_be_recorded_says_why(arguments, message, folder, tmp_path):
    assert message in recorded_with(tmp_path, *(a.format(run=folder) for a in arguments), "--name", "x")
    assert list(tmp_path.iterdir()) == []


def a_record(path, *curves, parent=92.5, images=2000):
    """A record of one seed a curve, whose packed file has the curve's last accuracy."""
    runs = []
    for seed, curve in enumerate(curves):
        row = RecordedRow(replace(RESULT, accuracy=curve[-1][1]), curve[-1][0], curve, (10, 20))
        parents = replace(FLOAT, result=replace(FLOAT.result, accuracy=parent))
        runs.append(RecordedRun(seed, 0.1, None, (parents, row)))
    return write_result(path, replace(RECORD, runs=tuple(runs), curve_images=images))


FALLING = ((10, 80.0), (20, 70.0), (30, 88.0), (40, 90.0))
RISING = ((10, 70.0), (15, 72.0), (20, 75.0), (30, 86.0), (40, 91.0))


def test_convergence_is_drawn(folder, tmp_path):
    """Lines, with the mean of their seeds at the end, and the float network; an SVG says what is written in it."""
    one, two = a_record(tmp_path / "one.json", FALLING), a_record(tmp_path / "two.json", FALLING, RISING)
    out = tmp_path / "figures" / "order.svg"
    assert run_script("plot_convergence.py", f"HAWQ={one}", two, "--out", out) is None
    text = out.read_text()
    for written in ("HAWQ  90.00", "two  90.50", "float 92.50", "accuracy % on the first 2,000 test images"):
        assert f"<!-- {written} -->" in text
    assert run_script("plot_convergence.py", f"a={one}", f"a={two}", "--out", out) is None
    assert "<!-- a  90.33 -->" in out.read_text()
    assert run_script("plot_convergence.py", folder, "--out", tmp_path / "run.png") is None
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


def test_lines_show_the_mean_where_all_seeds_were_measured():
    rows = [RecordedRow(RESULT, 40, curve) for curve in (FALLING, RISING)]
    steps, values = figures._common_points(rows)
    assert steps.tolist() == [10, 20, 30, 40]
    assert values.mean(0).tolist() == [75.0, 72.5, 87.0, 90.5]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"parent": 91.0}, "different float networks of accuracy ['91.0', '92.5']"),
        ({"images": None}, "different numbers of test images ['2000', 'None']"),
    ],
)
def test_curves_of_one_figure_are_comparable(other, message, tmp_path):
    paths = a_record(tmp_path / "one.json", FALLING), a_record(tmp_path / "two.json", RISING, **other)
    assert message in run_script("plot_convergence.py", *paths, "--out", tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_what_has_no_curve_is_not_drawn(tmp_path):
    path = a_record(tmp_path / "one.json", FALLING[-1:])
    assert "has no curve" in run_script("plot_convergence.py", path, "--out", tmp_path / "x.png")
    assert "does not exist" in run_script("plot_convergence.py", tmp_path / "two.json", "--out", tmp_path / "x.png")


def test_minutes_are_drawn(folder, tmp_path):
    short, long = a_record(tmp_path / "short.json", FALLING, RISING), a_record(tmp_path / "long.json", RISING)
    out = tmp_path / "minutes.svg"
    assert run_script("plot_minutes.py", f"W4A4:BRECQ={short}", f"W4A4:30 epochs={long}", "--out", out) is None
    text = out.read_text()
    for written in ("BRECQ", "30 epochs", "W4A4", "accuracy %", "minutes"):
        assert f"<!-- {written} -->" in text
    recipe = Paid("BRECQ", (90.0, 91.0, 92.0), (5.0, 6.0, 7.0), 92.5)
    assert recipe.mean_minutes == 6 and recipe.accuracy == (91, pytest.approx(4.302653 / 3**0.5))
    assert run_script("plot_minutes.py", f"run:calibrated={folder}", "--out", tmp_path / "run.png") is None
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (("W4A4={one}",), "'W4A4={one}' has no series or label: give SERIES:LABEL=RUN_OR_RECORD"),
        ((":x={one}",), "has no series or label"),
        (("a:x={one}", "a:x={two}"), "a, x has several float networks"),
        (("a:x={one}", "a:y={two}"), "a has float networks of accuracy [91.0, 92.5]"),
        (("a:x={one}.gone",), "does not exist: give run folders or records"),
    ],
)
def test_what_has_no_minutes_is_not_drawn(sources, message, tmp_path):
    one, two = a_record(tmp_path / "1.json", FALLING), a_record(tmp_path / "2.json", RISING, parent=91.0)
    given = [source.format(one=one, two=two) for source in sources]
    error = run_script("plot_minutes.py", *given, "--out", tmp_path / "x.png")
    assert message.format(one=one, two=two) in error
    assert not (tmp_path / "x.png").exists()


def test_committed_files_have_their_record():
    results = REPOSITORY / "docs" / "results"
    named = {run.packed for path in results.glob("*.json") for run in read_result(path).runs if run.packed}
    assert named == {path.name for path in results.glob("*.safetensors")}
