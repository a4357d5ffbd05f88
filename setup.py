"""Build fastrnn's kernels into one library, fastrnn/_C.abi3.so.

The library registers torch operators and knows no Python: no PyInit, no Python.h (python3-dev need
not be installed), no libtorch_python. It speaks torch's stable ABI, so one file serves every
torch >= 2.10 and every Python >= 3.10. torch.ops.load_library loads it.

Environment:
    CXX                   C++ compiler; unset: the first of c++, g++, clang++ that compiles the
                          kernels
    MAX_JOBS              how many files to compile at once; unset: one per core and two more
    USE_CUDA              1: build the CUDA kernels or fail; 0: do not; unset: where possible
    CUDA_HOME             a CUDA toolkit; unset: that of nvcc on PATH or of NVIDIA's wheels
    TORCH_CUDA_ARCH_LIST  GPU architectures to compile for
    FASTRNN_SANITIZE      sanitizers to compile in, for instance address,undefined
    FASTRNN_ONLY          build the kernels of one instruction set alone: avx512, avx2, neon or
                          plain, or best, this machine's; best,float32: of float32 alone, which
                          takes a tenth of the time
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from types import ModuleType


def load_toolchain() -> ModuleType:
    """fastrnn/cells/toolchain.py, which is needed before fastrnn can be imported."""
    path = Path(__file__).parent / "fastrnn/cells/toolchain.py"
    spec = importlib.util.spec_from_file_location("toolchain", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toolchain = load_toolchain()

CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0")
NVCC_FLAGS = "-std=c++20 -O3 --expt-relaxed-constexpr -Xcompiler -fvisibility=hidden"
NVCC_FLAGS += " -Xptxas -warn-spills"


def find_compiler() -> str:
    """The command of a C++20 compiler: $CXX, or the first of the usual ones that can."""
    try:
        return toolchain.find_compiler(toolchain.candidates()).command
    except toolchain.CannotCompile as error:
        raise SystemExit(f"fastrnn: {error}") from None


# Instruction sets with float32 kernels, best first: the flags in /proc/cpuinfo that each needs.
CPU_FLAGS = {
    "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "avx2": {"avx2", "fma", "f16c"},
    "neon": {"asimd"},
    "plain": set(),
}


def only_instruction_set(wanted: str, cpuinfo: str) -> str:
    """The instruction set that FASTRNN_ONLY names; best is the first one that the machine has."""
    if wanted == "best":
        flags = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
        here = set(flags[1].split()) if flags else set()
        return next(name for name, needed in CPU_FLAGS.items() if needed <= here)
    if wanted not in CPU_FLAGS:
        expected = ", ".join(["best", *CPU_FLAGS])
        raise SystemExit(f"fastrnn: FASTRNN_ONLY is {wanted!r}, expected one of {expected}")
    return wanted


# What a build with every dtype has on top of an instruction set, as csrc/cpu/kernels.h names it.
EXTENSIONS = {
    "avx512": {"amx": "kAmx", "avx512_bf16": "kAvx512Bf16"},
    "neon": {"neon_bf16": "kNeonBf16"},
}


def cpu_sources(
    only: str | None = None, float32_alone: bool = False, duals: bool = True
) -> list[str]:
    """What the CPU kernels are compiled from: of all instruction sets, or of one.

    A file takes the compiler up to half a minute, so there is one an instruction set and dtype.
    """
    kernels = set(glob("csrc/cpu/isa_*.cpp"))
    shared = set(glob("csrc/cpu/*.cpp") + glob("csrc/stream/*.cpp")) - kernels
    if only and float32_alone:
        kernels = {f"csrc/cpu/isa_{only}.cpp", f"csrc/cpu/isa_{only}_float32.cpp"}
    elif only:
        extensions = {f"csrc/cpu/isa_{name}.cpp" for name in EXTENSIONS.get(only, {})}
        kernels = set(glob(f"csrc/cpu/isa_{only}*.cpp")) | extensions
    return [path for path in shared | kernels if duals or not path.endswith("_duals.cpp")]


def only_macros(only: str, float32_alone: bool) -> list[tuple[str, str | None]]:
    """What tells csrc/ which kernels a build has: FASTRNN_ONLY is a list of sets, best first."""
    extensions = [] if float32_alone else list(EXTENSIONS.get(only, {}).values())
    sets = ",".join(f"&{name}" for name in [*extensions, f"k{only.capitalize()}"])
    macros: list[tuple[str, str | None]] = [("FASTRNN_ONLY", sets)]
    return macros + [("FASTRNN_FLOAT32_ALONE", None)] * float32_alone


@dataclass
class Toolkit:
    """Where nvcc, the headers and the libraries are: of a CUDA toolkit, or of NVIDIA's wheels."""

    root: Path  # of nvcc
    wheels: list[Path]  # roots in site-packages, which hold what torch loads

    @classmethod
    def find(cls, site_packages: Path, torch_cuda: str | None = None) -> Toolkit | None:
        """torch_cuda is torch's CUDA version, which loads no other's libraries; None: of any."""
        of_torch = torch_cuda.split(".")[0] if torch_cuda else "[0-9]*"
        wheels = sorted(site_packages.glob(f"nvidia/cu{of_torch}"), reverse=True)
        homes = [Path(home) for home in (os.environ.get("CUDA_HOME"),) if home]
        folders = [home / "bin" for home in homes]
        folders += [Path(folder) for folder in os.environ["PATH"].split(os.pathsep)]
        folders += [root / "bin" for root in wheels] + [Path("/usr/local/cuda/bin")]
        nvcc = shutil.which("nvcc", path=os.pathsep.join(map(str, folders)))
        if nvcc is None:
            return None
        # nvcc may be a script or a link; it prints its real folder.
        said = subprocess.run([nvcc, "--dryrun", "x.cu"], text=True, capture_output=True).stderr
        here = re.search(r"^#\$ _HERE_=(.*)$", said, re.MULTILINE)
        return cls((Path(here[1]) if here else Path(nvcc).parent).parent, wheels)

    def architectures(self) -> str:
        """TORCH_CUDA_ARCH_LIST: those of ours that this nvcc knows, and code for GPUs to come."""
        nvcc = self.root / "bin/nvcc"
        said = subprocess.run([nvcc, "--list-gpu-arch"], text=True, capture_output=True).stdout
        known = re.findall(r"compute_(\d+)", said)
        return ";".join(a for a in CUDA_ARCHITECTURES if a.replace(".", "") in known) + "+PTX"

    def includes(self) -> list[str]:
        # nvcc's own headers come first: the wheels' ones need some that only a compiler brings.
        roots = [self.root, *self.wheels]
        return [str(root / "include") for root in roots if (root / "include").is_dir()]

    def library(self, name: str) -> str | None:
        """The path of a shared library: the one torch loads, so that the library asks for it."""
        for root in [*self.wheels, self.root]:
            for folder in (root / "lib64", root / "lib"):
                if libraries := sorted(folder.glob(f"lib{name}.so*")):
                    return str(libraries[0])
        return None

    def missing(self) -> list[str]:
        """What the CUDA kernels need and this toolkit lacks."""
        headers = ("cuda_runtime_api.h", "crt/host_defines.h", "cublas_v2.h")
        lacking = [
            header
            for header in headers
            if not any((Path(folder) / header).exists() for folder in self.includes())
        ]
        return lacking + [f"lib{name}" for name in ("cudart", "cublas") if not self.library(name)]


def why_no_cuda(
    use_cuda: str,
    torch_cuda: str | None,
    nvcc: str | None,
    sources: list[str],
    parts: Sequence[str] = (),
) -> str | None:
    """The reason to leave the CUDA kernels out; None to build them. No GPU has to be present.

    use_cuda is $USE_CUDA, torch_cuda the CUDA version of torch, nvcc the path of the compiler,
    parts what of the toolkit is missing.
    """
    if use_cuda not in ("", "0", "1"):
        raise SystemExit(f"fastrnn: USE_CUDA is {use_cuda!r}, expected 0 or 1")
    if use_cuda == "0":
        return "USE_CUDA=0"
    missing = [] if sources else ["this version has no CUDA sources"]
    missing += [] if torch_cuda else ["the installed torch is a CPU build"]
    missing += [] if nvcc else ["nvcc was not found"]
    missing += [f"{part} was not found" for part in parts]
    if missing and use_cuda == "1":
        raise SystemExit(f"fastrnn: USE_CUDA=1, but {', '.join(missing)}")
    return ", ".join(missing) or None


def write_cell_layout(folder: Path) -> None:
    """Write the header by which csrc/torch/cells.cpp knows the layout; a flag would compile every
    file anew."""
    header = folder / "cell_layout.h"
    text = f'#define FASTRNN_CELL_LAYOUT "{toolchain.cell_layout(Path("csrc"))}"\n'
    if not header.exists() or header.read_text() != text:
        folder.mkdir(parents=True, exist_ok=True)
        header.write_text(text)


def copy_cell_headers(csrc: Path, folder: Path) -> None:
    """Copy what a user's cells are compiled from; a header that an earlier build left goes."""
    shutil.rmtree(folder, ignore_errors=True)
    for path in toolchain.cell_headers(csrc):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(csrc / path, folder / path)


def library() -> dict:
    """The arguments of setup() that build the library. Exits with one line if a tool is missing."""
    # The ninja of a virtual environment that is not activated lies beside its python.
    os.environ["PATH"] += os.pathsep + sysconfig.get_path("scripts")
    try:
        import torch
    except ModuleNotFoundError:
        raise SystemExit(
            "fastrnn: the build found no torch. Install torch >= 2.10, setuptools and ninja, then: "
            "pip install --no-build-isolation -e ."
        ) from None
    if torch.torch_version.TorchVersion(torch.__version__) < (2, 10):
        raise SystemExit(f"fastrnn: torch {torch.__version__} is too old, expected >= 2.10")
    if not shutil.which("ninja"):
        raise SystemExit("fastrnn: no ninja found. Install it: pip install ninja")
    os.environ["CXX"] = find_compiler()  # the same one compiles and links

    cuda_sources = glob("csrc/cuda/*.cu") + glob("csrc/cuda/*.cpp")
    cuda_sources += glob("csrc/torch/cuda_*.cpp")
    toolkit = Toolkit.find(Path(torch.__file__).parents[1], torch.version.cuda)
    no_cuda = why_no_cuda(
        os.environ.get("USE_CUDA", ""),
        torch.version.cuda,
        toolkit and str(toolkit.root / "bin/nvcc"),
        cuda_sources,
        toolkit.missing() if toolkit and torch.version.cuda else (),
    )
    if toolkit and not no_cuda:
        os.environ["CUDA_HOME"] = str(toolkit.root)  # read where cpp_extension is imported
        os.environ.setdefault("TORCH_CUDA_ARCH_LIST", toolkit.architectures())

    from setuptools.command.build_py import build_py
    from torch.utils import cpp_extension

    sanitize = []
    if sanitizers := os.environ.get("FASTRNN_SANITIZE"):
        sanitize = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=undefined"]
        # Python's own compile flags bring -fwrapv, which hides signed overflow.
        # Lines are enough for a report: to track variables takes the compiler twice as long.
        sanitize += ["-fno-wrapv", "-fno-omit-frame-pointer", "-g1", "-O1"]
        # What the address sanitizer reports anyway, and scopes of locals, would take the compiler
        # three times as long.
        sanitize += ["-fno-sanitize=null,object-size", "-fno-sanitize-address-use-after-scope"]
        sanitize += ["-DFASTRNN_WITHOUT_DUALS"]
    system = [
        f"-isystem{path}" for path in cpp_extension.include_paths()
    ]  # no warnings about others' headers

    cpuinfo = Path("/proc/cpuinfo")
    only, _, dtype = os.environ.get("FASTRNN_ONLY", "").partition(",")
    if dtype not in ("", "float32"):
        raise SystemExit(f"fastrnn: FASTRNN_ONLY asks for {dtype!r}, expected float32 or nothing")
    only = only and only_instruction_set(only, cpuinfo.read_text() if cpuinfo.exists() else "")
    float32_alone = bool(dtype)
    macros = only_macros(only, float32_alone) if only else []
    on_every_device = set(glob("csrc/torch/*.cpp")) - set(glob("csrc/torch/cuda_*.cpp"))
    sources = [*on_every_device, *cpu_sources(only, float32_alone, duals=not sanitize)]
    libraries, link, nvcc_flags = [], [], NVCC_FLAGS.split()
    if toolkit and not no_cuda:
        sources += cuda_sources
        system += [f"-isystem{path}" for path in toolkit.includes()]
        nvcc_flags += [f"-isystem={path}" for path in toolkit.includes()]
        nvcc_flags += ["--threads", os.environ.get("MAX_JOBS") or "0"]
        macros += [("USE_CUDA", None)]  # torch's stable headers declare more then
        libraries = ["c10_cuda", "torch_cuda"]
        link = [toolkit.library("cudart"), toolkit.library("cublas")]  # torch has them loaded
    written = Path("build/include")
    write_cell_layout(written)
    module = cpp_extension.CppExtension(
        "fastrnn._C",
        sources=sorted(sources),
        include_dirs=[os.path.abspath("csrc"), str(written.absolute())],
        # one byte 2, one byte 10
        define_macros=[("TORCH_TARGET_VERSION", "0x020a000000000000"), *macros],
        extra_compile_args={
            "cxx": toolchain.CXX_FLAGS.split() + system + sanitize,
            "nvcc": nvcc_flags,
        },
        libraries=libraries,
        extra_link_args=[*sanitize, *link],
        py_limited_api=True,  # defines Py_LIMITED_API and leaves libtorch_python out
    )

    class Build(cpp_extension.BuildExtension):
        def finalize_options(self) -> None:
            super().finalize_options()
            # One folder per torch that outlives the build, which editable installs do not give:
            # ninja then compiles what changed, headers included, however the build is started.
            kind = "sanitize-" if sanitize else f"{only}{dtype}-" if only else ""
            self.build_temp = f"build/{kind}torch-{torch.__version__}"

        def run(self) -> None:
            print("fastrnn: CUDA kernels:", f"not built ({no_cuda})" if no_cuda else "built")
            super().run()

    class BuildPython(build_py):
        def run(self) -> None:
            super().run()
            if not self.editable_mode:  # a checkout has csrc itself
                copy_cell_headers(Path("csrc"), Path(self.build_lib) / "fastrnn/include")

    return {
        "ext_modules": [module],
        "cmdclass": {"build_ext": Build, "build_py": BuildPython},
        "options": {"bdist_wheel": {"py_limited_api": "cp310"}},
    }


if __name__ == "__main__":
    from setuptools import setup

    # Packing the sources needs neither torch nor a compiler; MANIFEST.in names the files.
    packing = {"egg_info", "sdist"}.intersection(sys.argv)
    setup(**({} if packing else library()))
