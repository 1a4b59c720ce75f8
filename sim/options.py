"""Command-line options from frozen dataclasses, errors that name the valid choices, and signals that stop a command."""

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
# Sent by a closing terminal, or by a batch queue before it kills or requeues (`#SBATCH --signal=USR1@90`).
STOP_SIGNALS = (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
PACKAGES = ("sim", "data", "models", "train", "eval", "bench")
MAX_SEED = 2**32 - 1  # of NumPy's legacy generators and of lightning.seed_everything


class Stopped(KeyboardInterrupt):
    """Raised by `STOP_SIGNALS`. A KeyboardInterrupt, so that all code that handles Ctrl-C handles it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def nearest(name: str, choices: Sequence[str]) -> str:
    """The choices, with the nearest match if any: 'choose from a, b. Did you mean a?'"""
    bare = {choice.lstrip("-"): choice for choice in choices}  # leading dashes are no similarity
    near = difflib.get_close_matches(name.lstrip("-"), bare, n=1, cutoff=0.5)
    return f"choose from {', '.join(choices)}." + (f" Did you mean {bare[near[0]]!r}?" if near else "")


def check_choice(kind: str, name: str, choices: Sequence[str]) -> str:
    """Returns `name` if it is one of `choices`, else raises a ValueError that lists them with the nearest match."""
    if name not in choices:
        raise ValueError(f"unknown {kind} {name!r}: {nearest(name, choices)}")
    return name


def changed(old: Mapping[str, Any], new: Mapping[str, Any], free: Container[str] = ()) -> str:
    """The options that differ, except `free` ones: 'size 64 (now 472), seed 0 (now 1)'. Empty if none do."""
    keys = [key for key in {**old, **new} if key not in free and old.get(key) != new.get(key)]
    return ", ".join(f"{key} {old.get(key)!r} (now {new.get(key)!r})" for key in keys)


def run_command(command: Callable[[], int | None]) -> int:
    """Runs a command and returns its exit status: 2 and one line on stderr for invalid input, 128 plus the number of a
    signal that stopped it. A reader that closes the pipe is no error."""
    _begin_in_utf8()
    for stream in (sys.stdout, sys.stderr):  # file names may hold undecodable bytes
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
    """Restarts the process in Python's UTF-8 mode (PEP 540) if the locale has another encoding, because libraries
    encode file names as UTF-8 whatever the locale. Output keeps the terminal's encoding, with escapes."""
    main = sys.modules["__main__"].__spec__
    if sys.getfilesystemencoding() == "utf-8" or main is None or main.name.partition(".")[0] not in PACKAGES:
        return
    variables = {"PYTHONUTF8": "1", "PYTHONIOENCODING": f"{sys.stdout.encoding}:backslashreplace"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **variables})


@contextlib.contextmanager
def stop_signals() -> Iterator[None]:
    """Context in which `STOP_SIGNALS` raise `Stopped`. Signals that the parent ignores (nohup) stay ignored."""
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
    """Ignores stop signals in a worker process: the parent handles them, and ends its workers by SIGTERM."""
    for number in (signal.SIGINT, *STOP_SIGNALS):
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)


def stop_status(stop: KeyboardInterrupt) -> int:
    """Exit status of a command that was stopped."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def _nobody_reads(pipe: int) -> bool:
    poll = select.poll()
    poll.register(pipe, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


class Parser(argparse.ArgumentParser):
    """An argument parser that answers an unknown option with the nearest known one."""

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser: argparse.ArgumentParser = self
            for action in self._actions:
                if isinstance(
                    action, argparse._SubParsersAction
                ):  # options after a subcommand are those of the subcommand
                    parser = action.choices[getattr(parsed, action.dest)]
            known = [option for action in parser._actions for option in action.option_strings if option != "-h"]
            self.error(f"unknown option {unknown[0]!r}: {nearest(unknown[0].split('=')[0], known)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def check_least(config: object, least: int, *names: str) -> None:
    """Raises ValueError for an option below `least`, 0 or 1."""
    for name in names:
        if not getattr(config, name) >= least:
            bound = "0 or more" if least == 0 else f"at least {least}"
            raise ValueError(f"{name} is {bound}, got {getattr(config, name)}")


def check_seed(config: object, *names: str) -> None:
    """Raises ValueError for a seed that some generator would refuse; an option may hold several seeds."""
    for name in names:
        value = getattr(config, name)
        for seed in value if isinstance(value, tuple) else (value,):
            check_is_seed(name, seed)


def check_is_seed(name: str, seed: int) -> None:
    """Raises ValueError for a seed outside 0 to MAX_SEED."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{name} is 0 or more and at most {MAX_SEED}, got {seed}")


def check_fraction(config: object, *names: str) -> None:
    """Raises ValueError for an option outside 0 to 1."""
    for name in names:
        if not 0 <= getattr(config, name) <= 1:
            raise ValueError(f"{name} is between 0 and 1, got {getattr(config, name)}")


def option(default: Any, text: str) -> Any:
    """A field of an options dataclass, with its help text."""
    return dataclasses.field(default=default, metadata={"help": text})


def peek_option(arguments: Sequence[str], name: str, default: str) -> str:
    """The value of one option, before a parser is made whose defaults depend on it."""
    parser = Parser(add_help=False)
    parser.add_argument(name, dest="value", default=default)
    value: str = parser.parse_known_args(arguments)[0].value
    return value


def add_options(parser: argparse.ArgumentParser, config: type, defaults: Any = None) -> None:
    """Adds one `--option` per field of a dataclass, `-` and `_` alike. Unset options are absent from the namespace."""
    hints = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        kind = hints[field.name]
        default = getattr(defaults, field.name, field.default)
        text = ",".join(map(str, default)) if isinstance(default, tuple) else default
        shown = "required" if default is dataclasses.MISSING else f"default {'none' if text == '' else text}"
        names = [f"--{field.name.replace('_', '-')}"]
        if "_" in field.name:
            names.append(f"--{field.name}")
        description = field.metadata.get("help", "")
        parser.add_argument(
            *names,
            dest=field.name,
            type=_reader(kind),
            default=argparse.SUPPRESS,
            metavar=_metavar(kind),
            help=f"{description} ({shown})".strip(),
        )


def from_options(config: type[Config], options: dict[str, Any], **base: Any) -> Config:
    """Builds the dataclass from `base` and parsed options, which win. ValueError if a required field is missing."""
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
