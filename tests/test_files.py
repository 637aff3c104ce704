"""Files that are written whole: never through a link, never half, with the permissions that were there."""

import errno
import os
import subprocess
import sys

import pytest

from hawq.errors import UserError
from hawq.files import write_whole


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def mode(path):
    return path.stat().st_mode & 0o7777


def test_new_and_old_files(tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    assert write_whole(path, b"first") == path
    assert path.read_bytes() == b"first"
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert names(path.parent) == ["file.bin"]


@pytest.mark.parametrize("before", [0o600, 0o640, 0o644, 0o664, 0o400])
def test_permissions_stay(before, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"secret")
    path.chmod(before)
    write_whole(path, b"new")
    assert mode(path) == before


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_new_file_has_the_permissions_of_any_other(mask, tmp_path):
    old = os.umask(mask)
    try:
        write_whole(tmp_path / "file", b"")
    finally:
        os.umask(old)
    assert mode(tmp_path / "file") == 0o666 & ~mask


def test_no_temporary_name_can_be_foreseen_or_followed(tmp_path, monkeypatch):
    """Links at the names that earlier versions used, and at whatever name is drawn."""
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    for name in (f".file.{os.getpid()}.tmp", ".file.tmp"):
        (tmp_path / name).symlink_to(victim)
    write_whole(path, b"data")
    monkeypatch.setattr("secrets.token_hex", lambda _: "0" * 16)
    from hawq.files import _machine

    planted = tmp_path / f".file.{_machine()}-{os.getpid()}-{'0' * 16}.tmp"
    planted.symlink_to(victim)
    with pytest.raises(FileExistsError):
        write_whole(path, b"other")
    assert victim.read_text() == "precious" and path.read_bytes() == b"data"


def test_a_link_at_the_path_is_replaced_and_its_target_left(tmp_path):
    victim, path = tmp_path / "victim", tmp_path / "file"
    victim.write_text("precious")
    path.symlink_to(victim)
    write_whole(path, b"data")
    assert not path.is_symlink() and path.read_bytes() == b"data" and victim.read_text() == "precious"


def test_a_folder_is_refused(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(UserError, match="file is a folder: give the path of a file"):
        write_whole(tmp_path / "file", b"")


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_and_leaves_nothing(call, number, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_whole(path, b"old")

    def full(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(UserError, match=f"no space left for {path}: free some"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old" and names(tmp_path) == ["file"]


def test_a_really_full_file_system(tmp_path):
    """A limit on the size of files stands in for a full disk; Python ignores its signal and sees the error."""
    code = (
        "import resource, sys, pathlib; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from hawq.files import write_whole; write_whole(pathlib.Path(sys.argv[1]), bytes(10_000))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "file"], capture_output=True, text=True)
    assert f"UserError: no space left for {tmp_path / 'file'}" in done.stderr
    assert names(tmp_path) == []


def test_other_errors_stay_what_they_are_and_leave_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_whole(tmp_path / "file", b"new")
    assert names(tmp_path) == []


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    from hawq.files import _machine

    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    stale = [f".file.{dead.pid}.tmp", f".file.{_machine()}-{dead.pid}-00ff.tmp"]
    kept = [
        f".file.{os.getpid()}.tmp",  # of a living process
        f".file.{_machine()}-{os.getppid()}-00ff.tmp",
        f".file.0badcafe-{dead.pid}-00ff.tmp",  # of another machine
        f".other.{dead.pid}.tmp",
        f"file.{dead.pid}.tmp",
        ".file.text.tmp",
    ]
    for name in (*stale, *kept):
        (tmp_path / name).write_text("")
    write_whole(tmp_path / "file", b"")
    assert names(tmp_path) == sorted(["file", *kept])
