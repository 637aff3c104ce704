"""Freed memory is kept for the next tensor, and returned on demand; each case in a process of its own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's settings")

SCRIPT = """
import json, resource, sys
import torch
from hawq.malloc import keep_freed_memory, return_freed_memory
from hawq.measurement import memory_in_use_bytes

kept = sys.argv[1] == "keep" and keep_freed_memory()
make = lambda mib: torch.ones(mib * 2**18)
for _ in range(10):
    make(48)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    make(48)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
large = make(256)
held = memory_in_use_bytes(torch.device("cpu")) / 2**20
del large
status = lambda: next(int(row.split()[1]) / 1024 for row in open("/proc/self/status") if row.startswith("VmRSS"))
resident = status()
return_freed_memory()
print(json.dumps({"kept": kept, "faults": faults, "held": held, "resident": resident, "returned": status()}))
"""


def run(how, **environment):
    whole = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | environment
    done = subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, text=True, env=whole, check=True)
    return json.loads(done.stdout)


def test_no_page_is_mapped_twice():
    plain, kept = run("leave"), run("keep")
    assert kept["kept"] and not plain["kept"]
    assert kept["faults"] < plain["faults"] / 5
    assert kept["resident"] > plain["resident"] + 200
    assert kept["returned"] < kept["resident"] - 200
    assert kept["held"] == pytest.approx(plain["held"], rel=0.1), "what is kept unused does not count as in use"


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "LD_PRELOAD"])
def test_what_the_environment_sets_up_stays(name):
    assert not run("keep", **{name: "131072" if name != "LD_PRELOAD" else "libc.so.6"})["kept"]
