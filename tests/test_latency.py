"""Latency tables, from both formats."""

import json
from dataclasses import replace

import pytest
from sensitivities import made_sensitivity

from hawq.allocation import IntegerProgram, frontier
from hawq.allocation.latency import read_latency
from hawq.records import Block, Precision

CSV = "device,block,bits,ms\nT4,b0,2,1.5\nT4,b0,8,4\nT4,b1,2,1\nT4,b1,8,3.25\nT4,b1,8/4,2.5\n"
JSON = {
    "schema": "hawq.latency/1",
    "device": "T4",
    "milliseconds": {"b0": {"2": 1.5, "8": 4}, "b1": {"2": 1, "8": 3.25, "8/4": 2.5}},
}


def written(folder, content):
    path = folder / ("table.csv" if isinstance(content, str) else "table.json")
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("content", [CSV, JSON], ids=["csv", "json"])
def test_both_formats_say_the_same(content, tmp_path):
    table = read_latency(written(tmp_path, content))
    assert (table.device, table.milliseconds) == ("T4", JSON["milliseconds"])
    block = Block("b1", ("b1",), 1)
    assert [table.cost(block, Precision(8, a)) for a in (8, 4)] == [3.25, 2.5]
    with pytest.raises(
        ValueError, match=r"T4 has no time for block 'b1' at 3 .* 4 activation bits \(it has 2, 8, 8/4\)"
    ):
        table.cost(block, Precision(3, 4))


def test_a_plan_keeps_within_the_time(tmp_path):
    sensitivity = made_sensitivity([2.0, 1.0], [10, 10])
    latency = {"latency": str(written(tmp_path, CSV)), "candidates": (2, 8), "activations": 8}
    for limit, bits in ((7.25, [8, 8]), (7.0, [8, 2]), (4.9, [2, 8]), (3.0, [2, 2])):
        plan = IntegerProgram(limit, "latency_ms", **latency).allocate(sensitivity)
        assert list(plan.weight_bits().values()) == bits
        assert plan.limits[0].reached <= limit
    with pytest.raises(ValueError, match=r"target=2 \(latency_ms\) cannot be met.*2.5 to 7.25 latency_ms"):
        IntegerProgram(2.0, "latency_ms", **latency).check(sensitivity.blocks)


def test_times_of_zero_are_allowed(tmp_path):
    """The budgets of a frontier over such a table are positive, as they must be to be asked for."""
    sensitivity = made_sensitivity([2.0, 1.0], [10, 10])
    path = written(tmp_path, CSV.replace(",1.5", ",0").replace("b1,2,1", "b1,2,0"))
    allocator = IntegerProgram(4.0, "latency_ms", latency=str(path), candidates=(2, 8))
    assert allocator.allocate(sensitivity).limits[0].reached == 4
    points = frontier(sensitivity, allocator, 40).points
    assert len(points) == 4 and 0 < points[0].target < 2.5
    again = [replace(allocator, target=point.target).allocate(sensitivity).objective for point in points]
    assert [point.objective for point in points] == pytest.approx(again)


def test_a_key_that_stands_twice_is_told(tmp_path):
    path = tmp_path / "table.json"
    path.write_text(json.dumps(JSON).replace('"2": 1.5', '"2": 1.5, "2": 1.0'))
    with pytest.raises(ValueError, match=r"table.json is not a latency table \(the key '2' occurs twice"):
        read_latency(path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "device,block\nT4,b0\n",
        CSV + "V100,b0,4,1\n",
        CSV.replace("1.5", "nan"),
        CSV.replace("1.5", "-1"),
        "device,block,bits,ms\n",
        [],
        {},
        JSON | {"schema": "hawq.plan/1"},
        JSON | {"milliseconds": {"b0": 3}},
        JSON | {"milliseconds": {}},
        CSV + "T4,b0,2,1.5\n",
        CSV + "T4,b0,4\n",
        CSV + "T4,b0,4,1,1\n",
        CSV.replace("ms", "bits"),
        CSV.replace("ms", "ms,note"),
        CSV.replace("1.5", "1_5"),
        CSV.replace("1.5", "1e400"),
        CSV.replace("b0,2", "b0,9"),
        CSV.replace("b0,2", "b0,2/4/8"),
        CSV.replace("b0", ""),
        CSV.replace("T4", ""),
        CSV.replace("1.5", "\x00"),
        JSON | {"device": 4},
        JSON | {"unit": "ms"},
        JSON | {"milliseconds": {"b0": {"2": None}}},
        JSON | {"milliseconds": {"b0": {"2": "1.5"}}},
        JSON | {"milliseconds": {"b0": {"2": True}}},
        JSON | {"milliseconds": {"b0": {"two": 1.5}}},
        JSON | {"milliseconds": {"": {"2": 1.5}}},
        JSON | {"milliseconds": {"b0": {}}},
        JSON | {"milliseconds": [["b0", "2", 1.5]]},
    ],
    ids=str,
)
def test_other_files_are_refused(content, tmp_path):
    path = written(tmp_path, content)
    with pytest.raises(ValueError, match=rf"latency=.*{path.name} is not a latency table"):
        IntegerProgram(latency=str(path))
    with pytest.raises(FileNotFoundError, match=r"absent\.csv does not exist"):
        IntegerProgram(latency=str(tmp_path / "absent.csv"))
