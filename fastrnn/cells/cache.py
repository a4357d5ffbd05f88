"""Compiled cells on disk: the user's folder of them, and a file that knows what it is.

A file is a shared library with two lines behind it: a record of what is in it, and a checksum of
all before. The loader maps what the library's own header names, so it sees neither.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from fastrnn.cells.toolchain import CannotCompile

NAME_ANOTHER = "name a folder of your own in FASTRNN_CACHE_DIR"


class Record(NamedTuple):
    """What a compiled cell is, and where it runs."""

    op_name: str
    dtype: str  # of torch, without "torch."
    instruction_set: str
    machine: str  # as platform.machine() says
    layout: str  # of the headers that it was compiled from
    generator: str  # of the Python that wrote its source


def sealed(library: bytes, record: Record) -> bytes:
    """The content of a file."""
    content = library + b"\n" + json.dumps(record._asdict()).encode()
    return content + b"\n" + hashlib.sha256(content).hexdigest().encode()


def read_record(path: Path) -> Record | None:
    """The record of a file; None of one that is damaged, or is no compiled cell."""
    content, _, checksum = path.read_bytes().rpartition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != checksum:
        return None
    try:
        return Record(**json.loads(content.rpartition(b"\n")[2]))
    except (ValueError, TypeError):  # it has a checksum as ours, and another record
        return None


def holds(path: Path, record: Record) -> bool:
    """Whether a file is there, undamaged, with this in it."""
    return path.is_file() and read_record(path) == record


def write_whole(path: Path, content: bytes) -> None:
    """Write aside and rename into place: whoever looks finds all of it or nothing."""
    aside = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        with open(aside, "xb") as file:
            file.write(content)
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def user_folder() -> Path:
    """FASTRNN_CACHE_DIR, or fastrnn in the user's cache folder; made where there is none.

    Raises:
        CannotCompile: it cannot be made, or others could put code there.
    """
    try:
        folder = _named_folder().expanduser()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        raise CannotCompile(f"no folder for compiled cells ({error}); {NAME_ANOTHER}") from error
    folder = folder.resolve()  # whoever owns a link may lead it elsewhere
    status = folder.stat()
    if status.st_uid != os.geteuid():
        raise CannotCompile(f"{folder} belongs to user {status.st_uid}; {NAME_ANOTHER}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise CannotCompile(f"others may write to {folder}; call chmod go-w, or {NAME_ANOTHER}")
    return folder


def _named_folder() -> Path:
    if named := os.environ.get("FASTRNN_CACHE_DIR"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "fastrnn"


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file alone. The kernel releases it where this process is killed.

    Raises:
        CannotCompile: the folder takes no file, or its file system has no locks.
    """
    import fcntl  # Windows has none

    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(open(path.with_suffix(".lock"), "w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError as error:
            raise CannotCompile(
                f"cannot lock a file in {path.parent} ({error}); {NAME_ANOTHER}"
            ) from error
        yield
