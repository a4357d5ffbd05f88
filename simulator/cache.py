"""What compilers made is kept by a hash of everything that went into it, and shared by test processes.

The cache lies in $SIMULATOR_CACHE, else among the temporary files. Files appear in it whole, by
renaming, and a lock lets one process make each.
"""

import contextlib
import fcntl
import functools
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path


class BuildError(RuntimeError):
    pass


def cache_folder() -> Path:
    named = os.environ.get("SIMULATOR_CACHE")
    folder = Path(named) if named else Path(tempfile.gettempdir()) / "cuda-simulator"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def digest(*parts: str | bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()[:24]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One process at a time makes a file: workers that need the same kernel compile it once.

    The system frees the lock of a process that dies. The lock's own file stays, for whoever waits.
    """
    with open(cache_folder() / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def cached(name: str, make: Callable[[Path], object]) -> Path:
    """The file of that name in the cache, made at a temporary path first if it is missing."""
    path = cache_folder() / name
    if path.exists():
        return path
    with locked(name):
        if not path.exists():  # another process may have made it meanwhile
            with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
                unfinished = Path(temporary) / name
                make(unfinished)
                unfinished.replace(path)
    return path


def run(command: Sequence[str | Path], folder: Path | None = None) -> str:
    done = subprocess.run([str(c) for c in command], cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


@functools.cache
def version_of(command: str) -> str:
    """What a compiler says of itself: another version makes other files."""
    return run([command, "--version"])
