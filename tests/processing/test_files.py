"""Files are written whole or not at all, with the mode that umask allows, and only ours are removed."""

import errno
import os
import resource
import stat

import pytest
import torch

from modeling_r2d2.processing.files import writing as files
from modeling_r2d2.processing.files.writing import (
    STAMP,
    Stamp,
    atomic_path,
    clean_leftovers,
    foreign_entries,
    is_disk_full,
    is_partial,
    note_written,
    remove_owned,
    save_safetensors,
    staged_folder,
    write_text,
)
from tests.helpers import die, in_a_child, killed


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def write_and(folder, pause):
    """`pause` in the middle of writing a file and a folder."""
    with atomic_path(folder / "a.json") as path, staged_folder(folder, "test") as inner:
        path.write_text("half")
        (inner / "b.json").write_text("half")
        pause()


def test_mode_is_what_umask_allows(tmp_path, umask):
    save_safetensors({"a": torch.ones(2, 3).T}, tmp_path / "a.safetensors")
    write_text(tmp_path / "deep" / "b.json", "{}")
    with staged_folder(tmp_path / "model", "test") as folder:
        (folder / "config.json").write_text("{}")
        (folder / "inner").mkdir()
        for name in ("c.bin", "inner/d.bin"):
            (folder / name).touch(0o600)
            (folder / name).chmod(0o600)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 6
    assert {mode(path) for path in written} == {0o666 & ~umask}
    assert {mode(path) for path in tmp_path.rglob("*") if path.is_dir()} == {0o777 & ~umask}


def test_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")

    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        write_and(tmp_path, fail)
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.json"]


def test_link_is_replaced_and_its_target_stays(tmp_path):
    precious, link = tmp_path / "precious", tmp_path / "out" / "a.json"
    precious.write_text("mine")
    link.parent.mkdir()
    link.symlink_to(precious)
    write_text(link, "new")
    assert precious.read_text() == "mine"
    assert link.read_text() == "new"
    assert not link.is_symlink()


def test_device_is_written_to_and_folder_refused(tmp_path):
    write_text("/dev/null", "x")
    with pytest.raises(IsADirectoryError, match="is a folder: name a file"):
        write_text(tmp_path, "x")


def test_leftovers_of_the_dead_go_and_others_stay(tmp_path):
    mine = [".a.json.123.aside", ".r2d2-partial-mine", "b.partial", "notes.txt"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    assert killed(lambda: write_and(tmp_path, die))
    left = [path for path in tmp_path.iterdir() if is_partial(path)]
    assert len(left) == 2
    (started, begin), (end, finish) = os.pipe(), os.pipe()
    alive = in_a_child(lambda: write_and(tmp_path, lambda: (os.write(begin, b"x"), os.read(end, 1))))
    os.read(started, 1)
    assert sorted(clean_leftovers(tmp_path)) == sorted(left)
    assert sum(is_partial(path) for path in tmp_path.iterdir()) == 2
    assert foreign_entries(tmp_path) == sorted(mine)
    os.write(finish, b"x")
    os.waitpid(alive, 0)
    assert {path.name for path in tmp_path.iterdir()} == {*mine, "a.json", "b.json", STAMP}


def test_leftovers_of_other_machines_are_left_for_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_host", lambda: "0" * 8)
    partial = files.partial_path(tmp_path)
    partial.mkdir()
    files._active.clear()
    monkeypatch.undo()
    assert clean_leftovers(tmp_path) == []
    os.utime(partial, (0, 0))
    assert clean_leftovers(tmp_path) == [partial]


def test_linked_leftover_is_no_way_into_others_folders(tmp_path):
    others = tmp_path / "others"
    others.mkdir()
    (others / "a").touch()
    out = tmp_path / "out"
    out.mkdir()
    (out / f".r2d2-partial-{files._host()}-999999999-0").symlink_to(others)
    assert len(clean_leftovers(out)) == 1
    assert (others / "a").exists()
    assert not list(out.iterdir())


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (RuntimeError("write failed: No space left on device"), True),
        (OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"), True),
        (ValueError("no space left on device"), False),
        (OSError(errno.EACCES, "x"), False),
    ],
)
def test_full_disk_is_one_clear_line(tmp_path, error, full):
    assert is_disk_full(error) is full
    with pytest.raises(type(error) if not full else OSError) as caught, atomic_path(tmp_path / "a"):
        raise error
    if full:
        assert str(caught.value).count(str(tmp_path / "a")) == 1
        assert "\n" not in str(caught.value)
        assert caught.value.errno in (errno.ENOSPC, errno.EDQUOT)
    assert not list(tmp_path.iterdir())


def test_writers_of_libraries_on_a_full_disk(tmp_path):
    """As the system does it: no file may grow beyond 100 kB."""
    out, read = tmp_path / "out" / "a", tmp_path / "errors"

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        for write in (
            lambda path: save_safetensors({"a": torch.ones(10**6)}, path),
            lambda path: path.write_bytes(b"0" * 10**6),
        ):
            with pytest.raises(OSError, match="is full") as caught, atomic_path(out) as path:
                write(path)
            with read.open("a") as file:
                print(caught.value, file=file)

    os.waitpid(in_a_child(limited), 0)
    lines = read.read_text().splitlines()
    assert len(lines) == 2
    assert all(str(out.parent) in line for line in lines)
    assert not list(out.parent.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_forbidden_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="may not be written to"):
        write_text(tmp_path / "a", "x")


def test_error_of_a_file_that_is_read_keeps_its_meaning(tmp_path):
    error = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/picture.jpg")
    with pytest.raises(PermissionError, match="Permission denied: '/elsewhere"), atomic_path(tmp_path / "a"):
        raise error


def test_only_what_the_stamp_names_and_nobody_changed_is_removed(tmp_path):
    for command, names in (("first", ("config.json", "adapter/one", "adapter/two")), ("second", ("README.md",))):
        with staged_folder(tmp_path, command) as folder:
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text(command)
    (tmp_path / "README.md").write_text("edited")
    (tmp_path / "adapter" / "notes").write_text("mine")
    (tmp_path / "extra").write_text("x")
    note_written(tmp_path, "second", ["extra"])
    assert Stamp.read(tmp_path).names == ["README.md", "adapter/one", "adapter/two", "config.json", "extra"]
    assert remove_owned(tmp_path, but=["extra"]) == ["adapter/one", "adapter/two", "config.json"]
    kept = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    assert kept == [STAMP, "README.md", "adapter/notes", "extra"]


def test_stamp_that_leads_elsewhere_counts_for_nothing(tmp_path):
    precious, out = tmp_path / "precious", tmp_path / "out"
    precious.write_text("mine")
    out.mkdir()
    for name in ("../precious", str(precious)):
        Stamp.of(out, "test", [name]).write(out)
        assert Stamp.read(out) is None
        assert remove_owned(out) == []
    (out / "link").symlink_to(tmp_path)
    Stamp.of(out, "test", ["link/precious"]).write(out)
    assert remove_owned(out) == []
    (out / STAMP).write_text(" " + (out / STAMP).read_text().replace("link/precious", "link/other"))
    assert Stamp.read(out) is None
    assert precious.read_text() == "mine"


def test_folder_in_the_place_of_a_file_is_refused_before_anything_moves(tmp_path):
    (tmp_path / "config.json").touch()
    (tmp_path / "b.json").mkdir()

    with pytest.raises(FileExistsError, match="b.json is a folder"):
        write_and(tmp_path, lambda: None)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "b.json"}
