"""Progress on standard error: a bar on a terminal, elsewhere a line every few seconds."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Protocol

from fastrnn.training.errors import require

INTERVAL = 2.0  # seconds between two lines


class Progress(Protocol):
    """What a long work tells of its progress."""

    def update(self, done: int, about: str = "") -> None:
        """Say that so much of the total is done."""

    def paused(self) -> AbstractContextManager[None]:
        """For the time that something else is printed."""


class Lines:
    """A line every `INTERVAL` seconds, from the first of several processes."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.title, self.total, self.before = title, total, done
        self.start = self.said = time.monotonic()
        self.quiet = os.environ.get("RANK", "0") != "0"

    def update(self, done: int, about: str = "") -> None:
        now = time.monotonic()
        if self.quiet or now - self.said < INTERVAL or done <= self.before:
            return
        self.said = now
        left = (now - self.start) * (self.total - done) / (done - self.before)
        parts = [f"{self.title}: {done / self.total:.0%}", about, f"{duration(left)} left"]
        print(", ".join(filter(None, parts)), file=sys.stderr, flush=True)

    def paused(self) -> AbstractContextManager[None]:
        return nullcontext()


class Bar:
    """A bar of tqdm."""

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        self.bar = require("tqdm").tqdm(total=total, initial=done, desc=title, leave=False)

    def update(self, done: int, about: str = "") -> None:
        self.bar.set_postfix_str(about, refresh=False)
        self.bar.update(done - self.bar.n)

    def paused(self) -> AbstractContextManager[None]:
        paused: AbstractContextManager[None] = self.bar.external_write_mode()
        return paused


@contextmanager
def progress(title: str, total: int, done: int = 0) -> Iterator[Progress]:
    """A bar on a terminal; lines elsewhere and where tqdm is not installed."""
    lines = Lines(title, total, done)
    if lines.quiet or not sys.stderr.isatty() or find_spec("tqdm") is None:
        yield lines
        return
    bar = Bar(title, total, done)
    try:
        yield bar
    finally:
        bar.bar.close()


def duration(seconds: float) -> str:
    """As 9 s, 4:05 min or 2:30 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02} min"
    return f"{whole // 3600}:{whole // 60 % 60:02} h"
