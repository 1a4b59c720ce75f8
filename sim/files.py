"""File primitives: atomic writes, hashes, JSON, and whether a folder is empty."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import os
from pathlib import Path
from typing import Any

HOLDER = ".holder"  # suffix of lock files, data/locks.py
JUNK = (".DS_Store", "._*", ".directory", ".nfs*", ".snapshot", ".Trash-*", "desktop.ini", "lost+found", "Thumbs.db")


class DatasetError(ValueError):
    """A file of a dataset is missing, damaged or foreign; the message names the file and the error."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: under a temporary name, flushed to disk, then renamed."""
    temporary = _temporary(path)
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_writable(path: Path) -> None:
    """Create the parent folder and try to write there; OSError now rather than after hours of work."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = _temporary(path)
    try:
        temporary.write_bytes(b"x")
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    temporary.unlink()


def remove_temporaries(folder: Path) -> None:
    """Remove the temporary files of a killed `write_atomic`."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def is_nonempty(folder: Path, *ours: str) -> bool:
    """Whether the folder holds anything but files of these names, locks, junk and temporary files."""
    entries = folder.iterdir() if folder.exists() else ()
    return any(not (e.name in ours or e.name.endswith((".tmp", HOLDER)) or is_junk(e)) for e in entries)


def is_junk(path: Path) -> bool:
    """Whether a desktop or file system left this file or folder (JUNK)."""
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in JUNK)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; DatasetError names the file if it holds none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise DatasetError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise DatasetError(f"{path}: holds a {type(found).__name__} where a JSON object is expected")
    return found


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")
