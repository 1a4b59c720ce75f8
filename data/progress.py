"""What a collection tells while it runs: a table of tasks that is redrawn on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time

from data.plan import ShardJob
from data.shards import Row, successes
from sim.tasks import TASKS

LINE_EVERY_S = 15.0
ERASE_UPWARDS = "\x1b[{}F\x1b[J"


class Progress:
    """Counts shards as they are finished. `close` leaves the last table on the terminal."""

    def __init__(self, jobs: list[ShardJob]) -> None:
        self._tasks = {name: Tally() for name in TASKS if any(job.task == name for job in jobs)}
        for job in jobs:
            self._tasks[job.task].asked += job.last - job.first
        self._live = sys.stderr.isatty()
        self._lines = 0
        self._made = 0
        self._begin = self._said = time.monotonic()

    def count(self, job: ShardJob, row: Row, seconds: float = 0.0) -> None:
        """A shard that took `seconds` of a worker; one that was there already took none."""
        tally = self._tasks[job.task]
        tally.episodes += len(row.task)
        tally.won += sum(successes(row, TASKS[job.task].index))
        if seconds:
            tally.frames += row.frames
            tally.seconds += seconds
            self._made += len(row.task)
            if self._live:
                self._redraw()
            elif time.monotonic() - self._said > LINE_EVERY_S:
                self._said = time.monotonic()
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
            rate = f"{tally.won / tally.episodes:.1%}" if tally.episodes else "-"
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
        done, asked, won = (sum(getattr(t, name) for t in tallies) for name in ("episodes", "asked", "won"))
        pace = self._made / (time.monotonic() - self._begin)
        left_s = (asked - done) / pace if pace else 0.0
        rate = f"{won / done:.1%}" if done else "-"
        return f"{done} of {asked} episodes, success {rate}, {pace:.1f} episodes/s, {left_s / 60:.0f} min left"


class Tally:
    """Of one task."""

    def __init__(self) -> None:
        self.asked = self.episodes = self.won = self.frames = 0
        self.seconds = 0.0
