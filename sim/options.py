"""Command-line options from frozen dataclasses, and errors that name the choices."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import os
import select
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

Config = TypeVar("Config")
# What a terminal that closes, a batch queue and its requeueing (`#SBATCH --signal=USR1@90`) send before they kill.
STOP_SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PACKAGES = ("sim", "data", "models", "train", "eval", "bench")
MAX_SEED = 2**32 - 1  # of NumPy's legacy generators and of lightning.seed_everything


class Stopped(KeyboardInterrupt):
    """Ctrl-C (SIGINT), or one of `STOP_SIGNALS`: whatever handles Ctrl-C handles them all."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def nearest(name: str, choices: Sequence[str]) -> str:
    """'choose from a, b. Did you mean a?'"""
    bare = {choice.lstrip("-"): choice for choice in choices}  # that two options begin with dashes is no likeness
    near = difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.5)
    return f"choose from {', '.join(choices)}." + (f" Did you mean {bare[near[0]]!r}?" if near else "")


def check_choice(kind: str, name: str, choices: Sequence[str]) -> str:
    """`name` if it is one of `choices`, else a ValueError that lists them with the nearest match."""
    if name not in choices:
        raise ValueError(f"unknown {kind} {name!r}: {nearest(name, choices)}")
    return name


def changed(old: Mapping[str, Any], new: Mapping[str, Any], free: Container[str] = ()) -> str:
    """'size 64 (now 472), seed 0 (now 1)': the options that differ, but for the `free` ones; empty where none does."""
    keys = [key for key in {**old, **new} if key not in free and old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)!r} (now {new.get(key)!r})" for key in keys)


def run_command(command: Callable[[], int | None]) -> int:
    """Exit status of a command: an error of its input is one line and 2; a reader that has had enough is none; a signal
    that stops it is 128 and its number."""
    _begin_in_utf8()
    for stream in (sys.stdout, sys.stderr):  # a file's name may hold bytes that are no letter
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with stop_signals():
            status = command() or 0
        sys.stdout.flush()
    except KeyboardInterrupt as stop:
        print("\nstopped", file=sys.stderr)
        return stop_status(stop)
    except (ValueError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads(sys.stdout.fileno()):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at the end
            return 128 + signal.SIGPIPE
        print(f"error: {error}", file=sys.stderr)
        return 2
    return status


def _begin_in_utf8() -> None:
    """Under a locale of another encoding, begin again in Python's UTF-8 mode (PEP 540): libraries name files in UTF-8
    whatever the locale. The terminal keeps its encoding; a letter that it lacks is escaped."""
    main = sys.modules["__main__"].__spec__
    if sys.getfilesystemencoding() == "utf-8" or main is None or main.name.partition(".")[0] not in PACKAGES:
        return
    told = {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{sys.stdout.encoding}:backslashreplace"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **told})


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Within, each of `STOP_SIGNALS` raises `Stopped`; those that a parent had ignored (nohup) stay ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler is signal.SIG_DFL:
            signal.signal(number, _raise_stopped)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise_stopped(number: int, frame: object) -> None:
    raise Stopped(number)


def leave_signals() -> None:
    """In a worker process: the signals that stop a command are the parent's to handle, but for SIGTERM, by which a
    parent ends its workers."""
    for number in (signal.SIGINT, *STOP_SIGNALS):
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


def stop_status(stop: KeyboardInterrupt) -> int:
    """The exit status of a command that was stopped."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def _nobody_reads(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class Parser(argparse.ArgumentParser):
    """An argument parser that answers an unknown option with the nearest ones."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser: argparse.ArgumentParser = self
            for action in self._actions:
                if isinstance(action, argparse._SubParsersAction):  # an option after a command is the command's
                    parser = action.choices[getattr(parsed, action.dest)]
            known = [option for action in parser._actions for option in action.option_strings if option != "-h"]
            self.error(f"unknown option {unknown[0]!r}: {nearest(unknown[0].split('=')[0], known)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def check_least(config: object, least: int, *names: str) -> None:
    """ValueError for an option that is below `least`, 0 or 1."""
    for name in names:
        if not getattr(config, name) >= least:
            bound = "0 or more" if least == 0 else f"at least {least}"
            raise ValueError(f"{name} is {bound}, got {getattr(config, name)}")


def check_seed(config: object, *names: str) -> None:
    """ValueError for a seed that some generator would refuse; an option may hold several."""
    for name in names:
        value = getattr(config, name)
        for seed in value if isinstance(value, tuple) else (value,):
            check_is_seed(name, seed)


def check_is_seed(name: str, seed: int) -> None:
    """ValueError for a seed outside 0 to MAX_SEED."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{name} is 0 or more and at most {MAX_SEED}, got {seed}")


def check_part(config: object, *names: str) -> None:
    """ValueError for an option that is no part of a whole."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} is between 0 and 1, got {getattr(config, name)}")


def option(default: Any, text: str) -> Any:
    """A field of an options dataclass, with its help text."""
    return dataclasses.field(default=default, metadata={"help": text})


def add_options(parser: argparse.ArgumentParser, config: type, defaults: Any = None) -> None:
    """One `--option` per field of a dataclass, `-` and `_` alike. Unset options are absent from the namespace."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        default = getattr(defaults, field.name, field.default)
        told = ",".join(map(str, default)) if isinstance(default, tuple) else default
        shown = "required" if default is dataclasses.MISSING else f"default {'none' if told == '' else told}"
        names = [f"--{field.name.replace('_', '-')}"]
        if "_" in field.name:
            names.append(f"--{field.name}")
        text = field.metadata.get("help", "")
        parser.add_argument(
            *names,
            dest=field.name,
            type=_reader(kind),
            default=argparse.SUPPRESS,
            metavar=_metavar(kind),
            help=f"{text} ({shown})".strip(),
        )


def from_options(config: type[Config], options: dict[str, Any], **base: Any) -> Config:
    """The dataclass from `base` values overridden by parsed options; a missing required field is a ValueError."""
    names = {field.name for field in dataclasses.fields(config)}  # type: ignore[arg-type]
    values = {**base, **{key: value for key, value in options.items() if key in names}}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        if field.name not in values and field.default is dataclasses.MISSING:
            raise ValueError(f"--{field.name.replace('_', '-')} is required")
    return config(**values)


def _reader(kind: Any) -> Any:
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = next(a for a in typing.get_args(kind) if a is not type(None))
        return lambda text: None if text.lower() == "none" else _reader(inner)(text)
    if typing.get_origin(kind) is tuple:
        item = typing.get_args(kind)[0]
        return lambda text: _read_list(text, item)
    if kind is bool:
        return _read_bool
    return kind


def _read_list(text: str, item: Any) -> tuple[Any, ...]:
    try:
        return tuple(item(part) for part in text.split(",") if part)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {item.__name__}, as in A,B") from None


def _read_bool(text: str) -> bool:
    if text.lower() in ("1", "true", "yes"):
        return True
    if text.lower() in ("0", "false", "no"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not true or false")


def _metavar(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        return "A,B,..."
    return str(getattr(kind, "__name__", kind)).upper()
