"""Rows of the papers' tables as processes: `scripts/reproduce.py --run` is the training that it starts."""

import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import reproduce
from runs import REPOSITORY

SCRIPTS = REPOSITORY / "scripts"


def test_a_row_ends_with_the_status_of_its_training():
    line = [sys.executable, "-c", "raise SystemExit(7)"]
    ran = subprocess.run([sys.executable, "-c", f"import reproduce; reproduce.become({line!r})"], cwd=SCRIPTS)
    assert ran.returncode == 7
    with mock.patch.object(reproduce.os, "name", "nt"), pytest.raises(SystemExit) as stopped:
        reproduce.become(line)
    assert stopped.value.code == 7


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="what a process is can be read there alone")
def test_what_ends_a_row_ends_its_training(tmp_path):
    script = [sys.executable, str(SCRIPTS / "reproduce.py"), "ablations", "--run", "network"]
    own = ["model=resnet20", "dataset=digits", f"outputs={tmp_path}", f"hydra.run.dir={tmp_path / 'run'}"]
    with subprocess.Popen([*script, *own], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        end = time.monotonic() + 120
        while not _is_train(process.pid) and process.poll() is None and time.monotonic() < end:
            time.sleep(0.05)
        assert _is_train(process.pid)
        process.terminate()
        assert process.wait(60) != 0


def _is_train(pid: int) -> bool:
    return str(REPOSITORY / "train.py").encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
