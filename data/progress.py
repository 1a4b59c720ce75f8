"""Progress of a collection: a live table of tasks on a terminal, else a line every LINE_EVERY_S."""

from __future__ import annotations

import sys
import time

from data.plan import ShardJob
from data.shards import ManifestEntry, successes
from sim.tasks import TASKS

LINE_EVERY_S = 15.0
ERASE_UPWARDS = "\x1b[{}F\x1b[J"


class Progress:
    """Counts finished shards; `close` leaves the last table on the terminal."""

    def __init__(self, jobs: list[ShardJob]) -> None:
        self._tasks = {name: Tally() for name in TASKS if any(job.task == name for job in jobs)}
        for job in jobs:
            self._tasks[job.task].asked += job.last - job.first
        self._live = sys.stderr.isatty()
        self._lines = 0
        self._made = 0
        self._begin = self._printed = time.monotonic()

    def count(self, job: ShardJob, entry: ManifestEntry, seconds: float = 0.0) -> None:
        """Count a shard that took a worker `seconds`, 0 if it was on disk already."""
        tally = self._tasks[job.task]
        tally.episodes += len(entry.task)
        tally.successes += sum(successes(entry, TASKS[job.task].index))
        if seconds:
            tally.frames += entry.frames
            tally.seconds += seconds
            self._made += len(entry.task)
            if self._live:
                self._redraw()
            elif time.monotonic() - self._printed > LINE_EVERY_S:
                self._printed = time.monotonic()
                print(self._total(), file=sys.stderr)

    def say(self, text: str) -> None:
        self._erase()
        print(text, file=sys.stderr)

    def close(self) -> None:
        if self._live and self._made:
            self._redraw()
        elif self._made:
            print(self._total(), file=sys.stderr)
        self._lines = 0

    def _redraw(self) -> None:
        self._erase()
        lines = [f"{'task':<22}{'episodes':>16}{'success':>9}{'frames/s':>10}  (of one worker)"]
        for name, tally in self._tasks.items():
            rate = f"{tally.successes / tally.episodes:.1%}" if tally.episodes else "-"
            speed = f"{tally.frames / tally.seconds:.1f}" if tally.seconds else "-"
            lines.append(f"{name:<22}{f'{tally.episodes} of {tally.asked}':>16}{rate:>9}{speed:>10}")
        lines.append(self._total())
        print("\n".join(lines), file=sys.stderr, flush=True)
        self._lines = len(lines)

    def _erase(self) -> None:
        if self._lines:
            sys.stderr.write(ERASE_UPWARDS.format(self._lines))
            self._lines = 0

    def _total(self) -> str:
        tallies = self._tasks.values()
        done, asked, successful = (
            sum(getattr(t, name) for t in tallies) for name in ("episodes", "asked", "successes")
        )
        pace = self._made / (time.monotonic() - self._begin)
        remaining_s = (asked - done) / pace if pace else 0.0
        rate = f"{successful / done:.1%}" if done else "-"
        return f"{done} of {asked} episodes, success {rate}, {pace:.1f} episodes/s, {remaining_s / 60:.0f} min left"


class Tally:
    """Counts of one task."""

    def __init__(self) -> None:
        self.asked = self.episodes = self.successes = self.frames = 0
        self.seconds = 0.0
