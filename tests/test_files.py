"""Files and folders: locks without flock, junk files, atomic folders, and UTF-8 text in any locale."""

from __future__ import annotations

import ast
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from data import export, locks
from data.check import check
from data.export import EXPORTS
from data.locks import lock_file
from data.manifest import atomic_folder, check_new, merge, split
from data.replay import Replay
from data.shards import shard_files
from sim.files import DatasetError, is_nonempty

ROOT = Path(__file__).parents[1]
PACKAGES = ("sim", "data", "models", "train", "eval", "bench")
JUNK = (".DS_Store", "._shard-00000.h5", ".directory", ".nfs0001", ".Trash-1000", "desktop.ini", "Thumbs.db")


@pytest.fixture
def dataset(tmp_path, make_episode, write_dataset):
    episodes = [make_episode("lift-can", 2, ("lift-can",), number=number) for number in range(3)]
    return write_dataset(tmp_path / "set", [episodes[:2], episodes[2:]])


# Locks on a file system without flock


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def lock(tmp_path, monkeypatch, request):
    def refuse(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    return tmp_path / "folder" / "x.lock"


def holder_of(lock):
    return lock.with_name("x.lock.holder")


def left_by(lock, **changes):
    """A lock that a process which differs from this one in `changes` has left."""
    lock.parent.mkdir(exist_ok=True)
    holder_of(lock).write_text(json.dumps(locks._this_process() | changes), encoding="utf-8")


GONE = {"start": "1"}  # a process of this id that started at another time


def test_a_lock_names_its_process_and_is_gone_at_the_end(lock):
    with lock_file(lock, "busy"):
        assert json.loads(holder_of(lock).read_bytes())["process"] == os.getpid()
        assert not is_nonempty(lock.parent, "x.lock")
    with pytest.raises(ZeroDivisionError), lock_file(lock, "busy"):
        raise ZeroDivisionError
    assert [path.name for path in lock.parent.iterdir()] == ["x.lock"]


def test_a_lock_that_is_held_is_refused_and_left(lock):
    with lock_file(lock, "busy"):
        before = holder_of(lock).read_bytes()
        with pytest.raises(DatasetError, match=r"^busy$"), lock_file(lock, "busy"):
            pass
        assert holder_of(lock).read_bytes() == before
        assert {path.name for path in lock.parent.iterdir()} == {"x.lock", "x.lock.holder"}


@pytest.mark.parametrize("changes", [GONE, {"boot": "an earlier one"}, {"process": 2**22 + 1}])
def test_the_lock_of_a_process_that_is_gone_is_taken_over(lock, changes):
    left_by(lock, **changes)
    with lock_file(lock, "busy"):
        assert json.loads(holder_of(lock).read_bytes()) == locks._this_process()
    assert [path.name for path in lock.parent.iterdir()] == ["x.lock"]


def test_the_lock_of_a_process_that_ended_unnoticed_by_its_parent_is_taken_over(lock):
    code = "import json, sys; from data import locks; print(json.dumps(locks._this_process()))"
    child = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    left_by(lock, **json.loads(child.stdout.read()))
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    with lock_file(lock, "busy"):
        pass
    child.communicate()


@pytest.mark.parametrize("changes", [{"host": "node7"}, {"namespace": "pid:[1]"}])
def test_a_lock_of_another_host_or_container_is_refused_with_what_to_delete(lock, changes):
    left_by(lock, process=123, **changes)
    where = changes.get("host", locks._this_process()["host"])
    message = rf"^busy \(process 123 on {where}; if it no longer runs, delete {holder_of(lock)}\)$"
    with pytest.raises(DatasetError, match=message), lock_file(lock, "busy"):
        pass
    assert holder_of(lock).exists()


def test_a_process_that_may_not_be_seen_counts_as_running(lock, monkeypatch):
    def refuse(*_):
        raise PermissionError

    left_by(lock, process=2**22 + 1)
    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(DatasetError, match="if it no longer runs, delete"), lock_file(lock, "busy"):
        pass


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff"])
def test_a_lock_of_unknown_content_is_refused_with_what_to_delete(lock, content):
    left_by(lock)
    holder_of(lock).write_bytes(content)
    with pytest.raises(DatasetError, match=f"an unknown host; if it no longer runs, delete {holder_of(lock)}"):
        lock_file(lock, "busy").__enter__()


@pytest.mark.parametrize("ended", [False, True])
def test_of_two_that_find_a_stale_lock_one_takes_it(lock, monkeypatch, ended):
    """The other takes it, and perhaps ends, between this one's first look and its second."""
    left_by(lock, **GONE)
    looks, other, is_stale = [], lock_file(lock, "busy"), locks._is_stale

    def look(*arguments):
        looks.append(stale := is_stale(*arguments))
        if len(looks) == 1:
            other.__enter__()
            if ended:
                other.__exit__(None, None, None)
        return stale

    monkeypatch.setattr(locks, "_is_stale", look)
    if ended:
        with lock_file(lock, "busy"):
            assert holder_of(lock).exists()
    else:
        with pytest.raises(DatasetError, match=r"^busy$"):
            lock_file(lock, "busy").__enter__()
        assert holder_of(lock).exists()
        other.__exit__(None, None, None)
    assert [path.name for path in lock.parent.iterdir()] == ["x.lock"]


def test_while_one_takes_a_stale_lock_over_the_other_is_refused(lock):
    left_by(lock, **GONE)
    with lock_file(holder_of(lock), "busy"), pytest.raises(DatasetError, match=r"^busy$"), lock_file(lock, "busy"):
        pass


def test_a_lock_that_was_deleted_by_hand_is_not_taken_from_its_next_holder(lock):
    with lock_file(lock, "busy"):
        left_by(lock, process=123)
    assert json.loads(holder_of(lock).read_bytes())["process"] == 123


def test_another_error_of_flock_is_an_error(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="Input/output"), lock_file(tmp_path / "x.lock", "busy"):
        pass


# What desktops and file systems leave in a folder


@pytest.fixture
def littered(tmp_path):
    folder = tmp_path / "littered"
    (folder / "lost+found").mkdir(parents=True)
    (folder / ".snapshot").mkdir()
    for name in JUNK:
        (folder / name).touch()
    return folder


def test_junk_is_no_content(littered):
    check_new(littered)
    assert not is_nonempty(littered)
    assert shard_files(littered) == []
    with pytest.raises(DatasetError, match="no dataset here"):
        Replay(littered)
    (littered / ".DS_Store.txt").touch()
    with pytest.raises(DatasetError, match="not empty"):
        check_new(littered)


def test_junk_beside_shards_is_not_taken_for_one(dataset):
    (dataset / "._shard-00000.h5").touch()
    (dataset / "collect.json").write_text("{}", encoding="utf-8")
    assert [path.name for path in shard_files(dataset)] == ["shard-00000.h5", "shard-00001.h5"]
    assert not any("._shard" in text for text in check(dataset).unfinished)


@pytest.mark.parametrize("copy", [False, True])
def test_a_folder_of_junk_becomes_a_dataset_and_keeps_it(dataset, littered, copy):
    before = {path.name for path in littered.iterdir()}
    merge(littered, [dataset], copy=copy)
    assert Replay(littered).num_episodes == 3
    assert before < {path.name for path in littered.iterdir()}
    assert {path.name for path in littered.parent.iterdir()} == {"set", "littered"}


# Atomic folders


@pytest.mark.parametrize("format", EXPORTS)
def test_an_export_is_atomic(dataset, tmp_path, monkeypatch, format):
    pytest.importorskip("pyarrow")
    episodes, out = export._episodes, tmp_path / "out"

    def stopped(replay):
        yield next(episodes(replay))
        assert not out.exists()
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_episodes", stopped)
    with pytest.raises(KeyboardInterrupt):
        EXPORTS[format](Replay(dataset), out)
    assert {path.name for path in tmp_path.iterdir()} == {"set"}
    monkeypatch.undo()
    (tmp_path / ".out.making").mkdir()
    (tmp_path / ".out.making" / "left").touch()  # by a process that was killed
    EXPORTS[format](Replay(dataset), out)
    assert {path.name for path in tmp_path.iterdir()} == {"set", "out"}
    assert not (out / "left").exists()
    with pytest.raises(DatasetError, match="out: not empty"):
        EXPORTS[format](Replay(dataset), out)


def test_an_export_may_go_where_only_junk_is(dataset, littered):
    EXPORTS["minari"](Replay(dataset), littered)
    assert (littered / "data" / "main_data.hdf5").is_file()
    assert (littered / ".DS_Store").exists()


def test_a_mount_point_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda _: True)
    with pytest.raises(DatasetError, match=r"a mount point.*name a new folder in it"), atomic_folder(tmp_path / "out"):
        pass
    assert not list(tmp_path.iterdir())


# Datasets that were moved alone


def test_a_merged_dataset_that_was_moved_alone_says_so(dataset, tmp_path):
    merge(tmp_path / "merged", [dataset])
    shutil.move(tmp_path / "merged", tmp_path / "elsewhere" / "merged")
    moved = tmp_path / "elsewhere" / "merged"
    says = r"shard-00000\.h5: missing, 2 of 2 .*other folders relative to itself: move it together.*`merge --copy`"
    with pytest.raises(DatasetError, match=says):
        Replay(moved)
    with pytest.raises(DatasetError, match=says):
        split(moved, tmp_path / "x", tmp_path / "y", 0.5, seed=0)
    assert all("move it together with them" in text for text in check(moved).wrong)
    (dataset / "shard-00000.h5").unlink()
    with pytest.raises(DatasetError, match="the `collect` command that made it makes it again"):
        Replay(dataset)


# Text


def opens_text(call):
    """Whether a call opens a file as text, or reads or writes one: by its name and its mode."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    modes = [a for a in (*call.args[-1:], *(k.value for k in call.keywords if k.arg == "mode"))]
    mode = next((a.value for a in modes if isinstance(a, ast.Constant) and isinstance(a.value, str)), None)
    if name in ("open", "fdopen"):
        if ast.unparse(call.func) == "tarfile.open":
            return False  # its mode is the archive's, and it writes bytes
        builtin = isinstance(call.func, ast.Name) or name == "fdopen"
        return (builtin or mode is not None or not call.args) and "b" not in (mode or "r")
    return name in ("read_text", "write_text")


def test_two_commands_do_not_make_one_folder(tmp_path):
    with atomic_folder(tmp_path / "out") as making:
        (making / "file").write_text("first", encoding="utf-8")
        with pytest.raises(DatasetError, match="another command is writing it"), atomic_folder(tmp_path / "out"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "file").read_text(encoding="utf-8") == "first"


@pytest.mark.parametrize("package", PACKAGES)
def test_text_is_read_and_written_in_utf8(package):
    for path in (ROOT / package).rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and opens_text(call):
                call_text = f"{path}:{call.lineno}: {ast.unparse(call)}"
                assert any(keyword.arg == "encoding" for keyword in call.keywords), call_text


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("path.read_text()", True),
        ("open(path)", True),
        ("path.open('w')", True),
        ("path.open()", True),
        ("open(path, 'rb')", False),
        ("path.open(mode='ab')", False),
        ("os.open(path, os.O_RDONLY)", False),
        ("Image.open(file)", False),
    ],
)
def test_what_opens_text_is_recognised(code, expected):
    assert opens_text(ast.parse(code).body[0].value) is expected


def test_a_dataset_whose_name_is_not_ascii_is_read_in_any_locale(dataset, tmp_path):
    """Also by the paths of a merged one, whatever the locale in which it was made."""
    accented = dataset.rename(tmp_path / "données")
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}

    def command(*arguments):
        line = [sys.executable, "-m", "data", *map(str, arguments)]
        return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, check=True).stdout

    assert b": 3 episodes" in command("info", accented)
    merge(tmp_path / "here", [accented])
    assert b": 3 episodes" in command("info", tmp_path / "here")
    command("merge", tmp_path / "there", accented)
    assert (tmp_path / "there" / "manifest.json").read_bytes() == (tmp_path / "here" / "manifest.json").read_bytes()


def test_a_mix_is_read_in_any_locale(tmp_path):
    """TOML is UTF-8."""
    (tmp_path / "mix.toml").write_text(
        '# für später\n[[source]]\ntasks = ["lift-can"]\nepisodes = 2\n', encoding="utf-8"
    )
    code = f"from data.plan import CollectConfig; print(CollectConfig(out='x', mix='{tmp_path}/mix.toml').sources)"
    environment = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert b"episodes=2" in done.stdout
