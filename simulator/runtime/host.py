"""Builds host code as it is, linked against the stand-ins for libcudart and libcublas."""

from collections.abc import Sequence
from pathlib import Path

from ..cache import cached, digest, run
from ..engine.library import build
from ..toolchain import nvcc


def build_host(
    sources: Sequence[Path | str], arch: str = "compute_80", flags: Sequence[str] = ()
) -> Path:
    """The host code of .cu files as nvcc compiles it, linked against the stand-ins."""
    # The kernels that run are those that were loaded, so that nvcc need not optimize its own.
    base: list[str | Path] = [nvcc(), "-std=c++17", f"-arch={arch}", "--Ofast-compile=max", *flags]
    texts = [run([*base, "-E", source]) for source in sources]
    stand_ins = [build() / "libcudart.so.13", build() / "libcublas.so.13"]
    key = digest(*texts, *map(str, base), str(build()))

    def make(path: Path) -> None:
        link = ["-Xcompiler", "-fPIC", "-shared", "-cudart", "none"]
        run([*base, *link, *sources, "-o", path, *(f"-Xlinker={library}" for library in stand_ins)])

    return cached(f"{key}-host.so", make)
