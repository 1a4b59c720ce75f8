"""Lock files: one process at a time in a folder, also on file systems without `flock` (some Lustre and NFS mounts).

Without `flock` a lock is a file created exclusively that names its process: host, machine, boot, PID namespace, process
id, and start time, which distinguishes a reused id.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sim.files import HOLDER, DatasetError

NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
ENDED = ("Z", "X")  # states of a process that has ended
MACHINE_ID = Path("/etc/machine-id")  # distinguishes hosts of the same name
HIDDEN = "hidden"  # a process of another user, where /proc is mounted with hidepid


@contextlib.contextmanager
def lock_file(lock: Path, refusal: str) -> Iterator[None]:
    """Hold this lock file, creating its folder; DatasetError with the `refusal` if another process holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("ab") as file, contextlib.ExitStack() as held:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DatasetError(refusal) from None
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            held.enter_context(_lock_by_name(lock.with_name(lock.name + HOLDER), refusal))
        yield


@contextlib.contextmanager
def _lock_by_name(holder: Path, refusal: str) -> Iterator[None]:
    """Hold a lock by creating this file, which is removed at the end.

    A stale file is removed under a second lock, after a second look, so that no process removes the file of a faster
    one; then all contenders try to create it again."""
    mine = _this_process()
    while not _create(holder, mine):
        if _is_stale(holder, refusal):
            with _lock_by_name(holder.with_name(holder.name + HOLDER), refusal):
                if _is_stale(holder, refusal):
                    holder.unlink(missing_ok=True)
    try:
        yield
    finally:
        if _read(holder) == mine:  # else it was deleted by hand, and another process may hold it
            holder.unlink()


def _create(path: Path, content: dict[str, Any]) -> bool:
    """Create the file with its content in one step; False if it exists."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    try:
        os.link(temporary, path)
    except (FileExistsError, FileNotFoundError):  # the latter: the holder removed the temporary file
        return False
    except OSError:  # no links on this file system either (FUSE, SMB): two steps, the first of which is exclusive
        try:
            with path.open("x", encoding="utf-8") as file:
                json.dump(content, file)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _is_stale(holder: Path, refusal: str) -> bool:
    """Whether the holder is a process of this host that has ended; False without a file.

    DatasetError if the process runs, or if that cannot be known."""
    if (found := _read(holder)) is None:
        return False
    here = _this_process()
    differs = [key for key in ("host", "machine", "boot", "namespace") if found.get(key) != here[key]]
    if "boot" in differs and not {"host", "machine"} & set(differs):
        return True  # this host has been restarted since
    start = HIDDEN if differs else _start_of(found["process"])
    if start == HIDDEN:
        who = f"process {found.get('process', '?')} on {found.get('host', 'an unknown host')}"
        raise DatasetError(f"{refusal} ({who}; if it no longer runs, delete {holder})")
    if start == found["start"]:
        raise DatasetError(refusal)
    return True


def _read(holder: Path) -> dict[str, Any] | None:
    """Content of the lock file, {} if it cannot be parsed; None without a file."""
    try:
        found = json.loads(holder.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _this_process() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "machine": MACHINE_ID.read_text(encoding="utf-8").strip() if MACHINE_ID.is_file() else "",
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip(),
        "namespace": os.readlink("/proc/self/ns/pid"),
        "process": os.getpid(),
        "start": _start_of(os.getpid()),
    }


def _start_of(process: int) -> str | None:
    """Start time of a process in clock ticks since boot; None if it has ended, HIDDEN if it cannot be read."""
    try:
        stat = Path(f"/proc/{process}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        try:
            os.kill(process, 0)
        except PermissionError:
            return HIDDEN
        except ProcessLookupError:
            pass
        return None
    fields = stat.decode(errors="replace").rpartition(")")[2].split()  # from the third field on: a name may hold spaces
    return None if fields[0] in ENDED else fields[22 - 3]
