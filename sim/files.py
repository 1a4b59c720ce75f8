"""Files: written atomically, hashed, read as JSON; folders: whether anything lies in them."""

from __future__ import annotations

import errno
import fnmatch
import hashlib
import json
import os
from pathlib import Path
from typing import Any

HOLDER = ".holder"  # how the files end by which data/locks.py holds a folder
JUNK = (".DS_Store", "._*", ".directory", ".nfs*", ".snapshot", ".Trash-*", "desktop.ini", "lost+found", "Thumbs.db")


class DatasetError(ValueError):
    """A file of a dataset is missing, damaged or foreign; the message names it and says what is wrong with it."""


def write_atomic(path: Path, content: bytes) -> None:
    """The file with this content, or no file: written under a temporary name, flushed, renamed."""
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
    """Make the folder of a file to be; OSError where it cannot be written there, before hours of work for it."""
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
    """Remove what `write_atomic` left when it was killed."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)


def is_nonempty(folder: Path, *ours: str) -> bool:
    """Whether anything lies in the folder but files of these names, locks, junk, and what `write_atomic` left."""
    entries = folder.iterdir() if folder.exists() else ()
    return any(not (e.name in ours or e.name.endswith((".tmp", HOLDER)) or is_junk(e)) for e in entries)


def is_junk(path: Path) -> bool:
    """Whether a desktop, a file system or another computer left this file or folder."""
    return any(fnmatch.fnmatchcase(path.name, pattern) for pattern in JUNK)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a DatasetError names the file where there is none."""
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
