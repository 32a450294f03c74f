"""Whatever goes wrong on the way, what stood there before stands there still, and nothing else."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

import pytest

from vitrail import atomic
from vitrail.atomic import new_file, new_folder, refuse_existing
from vitrail.errors import UserError

Opened = Callable[[Path], AbstractContextManager[Path]]


@contextmanager
def a_file(path: Path) -> Iterator[Path]:
    """Write ``new`` to ``path`` by way of new_file, then let the caller fail."""
    with new_file(path) as beside:
        beside.write_text("new")
        yield beside


@contextmanager
def a_folder(path: Path) -> Iterator[Path]:
    """Write two files to ``path`` by way of new_folder, then let the caller fail."""
    with new_folder(path) as beside:
        (beside / "deep").mkdir()
        (beside / "deep" / "inner").write_text("new")
        (beside / "outer").write_text("new")
        yield beside


def everything(root: Path) -> dict[str, str | None]:
    """Every path under ``root``, hidden ones too, with the text of the files."""
    return {
        path.relative_to(root).as_posix(): path.read_text() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def test_a_folder_stays_until_another_is_whole(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    with suppress(KeyboardInterrupt), new_folder(tmp_path / "a", replace=True) as inside:
        (inside / "new").touch()
        raise KeyboardInterrupt
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "old"]
    with new_folder(tmp_path / "a", replace=True) as inside:
        (inside / "new").touch()
        shutil.rmtree(tmp_path / "a")  # another process is replacing it
    with new_folder(tmp_path / "a", replace=True) as inside:
        (inside / "newer").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "newer"]


def test_a_folder_comes_back_where_the_new_one_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").touch()
    usual = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.suffix == ".partial":
            raise KeyboardInterrupt
        return usual(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "a", replace=True) as inside:
        (inside / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "old"]


def test_a_file_appears_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "made" / "on the way" / "a.txt"
    with a_file(path):
        assert not path.exists()
    assert everything(path.parent) == {"a.txt": "new"}


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("a much longer old text")
    with a_file(path):
        assert path.read_text() == "a much longer old text"
    assert everything(tmp_path) == {"a.txt": "new"}


def test_a_folder_appears_at_the_end_only(tmp_path: Path) -> None:
    path = tmp_path / "made" / "run"
    with a_folder(path):
        assert not path.exists()
    assert everything(path.parent) == {"run": None, "run/deep": None, "run/deep/inner": "new", "run/outer": "new"}


@pytest.mark.skipif(os.name != "posix", reason="permission bits are a POSIX matter")
def test_what_is_written_has_ordinary_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with a_file(tmp_path / "a"), a_folder(tmp_path / "b"):
            pass
        assert os.umask(0o027) == 0o027  # reading the mask did not change it
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "b")]
    assert [oct(mode) for mode in modes] == [oct(0o640), oct(0o750)]


@pytest.mark.parametrize("fault", [ValueError("x"), KeyboardInterrupt(), SystemExit(1), FileNotFoundError(2, "x")])
@pytest.mark.parametrize("opened", [a_file, a_folder])
def test_a_fault_on_the_way_leaves_nothing(opened: Opened, fault: BaseException, tmp_path: Path) -> None:
    with pytest.raises(type(fault)) as caught, opened(tmp_path / "a"):
        raise fault
    assert caught.value is fault
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("fault", [ValueError("x"), KeyboardInterrupt()])
def test_a_fault_on_the_way_leaves_the_old_file(fault: BaseException, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(type(fault)), a_file(tmp_path / "a"):
        raise fault
    assert everything(tmp_path) == {"a": "old"}


def _full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["pathlib.Path.write_text", "os.fsync", "pathlib.Path.replace"])
def test_a_full_disk_is_a_sentence_and_the_old_file_stays(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(call, _full)
    sentence = r"^The disk is full while writing .*a: free some space and run the same command again; nothing .*\.$"
    with pytest.raises(UserError, match=sentence), a_file(tmp_path / "a"):
        pass
    assert everything(tmp_path) == {"a": "old"}


def test_a_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", _full)
    with pytest.raises(UserError, match=r"^The disk is full"), a_folder(tmp_path / "run"):
        pass
    assert everything(tmp_path) == {}


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this system has no device that is always full")
def test_a_device_that_is_really_full(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^The disk is full"), a_folder(tmp_path / "run"):
        Path("/dev/full").write_bytes(b"x")
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("opened", [a_file, a_folder])
def test_an_input_that_may_not_be_read_is_not_blamed_on_the_output(opened: Opened, tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match=r"photo\.jpg"), opened(tmp_path / "a"):
        raise PermissionError(errno.EACCES, "Permission denied", "photo.jpg")
    assert everything(tmp_path) == {}


def test_a_file_is_not_written_over_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a folder: name a file"), a_file(tmp_path):
        raise AssertionError("refused before any work is done")
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("opened", [a_file, a_folder])
def test_a_file_among_the_parents_is_a_sentence(opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    with pytest.raises(UserError, match="a part of that path is a file"), opened(tmp_path / "file" / "a"):
        raise AssertionError("refused before any work is done")
    assert everything(tmp_path) == {"file": "old"}


@pytest.mark.parametrize("kind", ["file", "full folder", "link to a folder", "broken link"])
def test_what_exists_is_refused_before_any_work(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("old")
    elif kind == "full folder":
        path.mkdir()
        (path / "old").write_text("old")
    else:
        (tmp_path / "empty").mkdir()
        path.symlink_to(tmp_path / ("empty" if kind == "link to a folder" else "nowhere"))
    before = everything(tmp_path)
    with pytest.raises(UserError, match="run exists already: choose another place"), a_folder(path):
        raise AssertionError("refused before any work is done")
    assert everything(tmp_path) == before


def test_an_empty_folder_is_accepted(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "missing")
    (tmp_path / "run").mkdir()
    with a_folder(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / "outer").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_of_two_that_write_the_same_folder_the_first_wins(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="exists already"), a_folder(tmp_path / "run"):
        (tmp_path / "run" / "theirs").mkdir(parents=True)
    assert everything(tmp_path) == {"run": None, "run/theirs": None}


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("opened", [a_file, a_folder])
def test_a_place_one_may_not_write_to(opened: Opened, tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    sentence = r"cannot be written .*choose a place you may write to"
    with pytest.raises(UserError, match=sentence), opened(tmp_path / "a"):
        raise AssertionError("refused before any work is done")
    assert everything(tmp_path) == {}


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_refused_write_is_a_sentence(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkstemp", refused)
    with pytest.raises(UserError, match=r"cannot be written .*choose a place you may write to"), a_file(tmp_path / "a"):
        raise AssertionError("refused before any work is done")


def test_what_a_library_made_private_becomes_ordinary(tmp_path: Path) -> None:
    with new_folder(tmp_path / "run") as beside:
        (beside / "model").mkdir()
        (beside / "model" / "private").touch(mode=0o600)
    (tmp_path / "ordinary").touch()
    expected = (tmp_path / "ordinary").stat().st_mode
    assert (tmp_path / "run" / "model" / "private").stat().st_mode == expected


def test_a_folder_that_another_finished_while_ours_was_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flush(folder: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "theirs").touch()

    monkeypatch.setattr(atomic, "_flush_all", flush)
    with pytest.raises(UserError, match="exists already"), new_folder(tmp_path / "run") as beside:
        (beside / "ours").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "theirs"]


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    for name in ("x" * 250, "x" * 300):
        with pytest.raises(UserError, match="too long"), new_folder(tmp_path / name):
            pass
        with pytest.raises(UserError, match="too long"), new_file(tmp_path / name):
            pass
