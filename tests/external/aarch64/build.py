# SPDX-License-Identifier: Apache-2.0
"""Compile the native core and tests/native/kernel_conformance.cpp for aarch64, as one static executable.

    python build.py [--folder DIR] [--jobs N] [--compiler "COMMAND"]

The default compiler is zig's clang (package ziglang, tests/external/environments/aarch64.txt), which brings the
headers and libraries of the target; "aarch64-linux-gnu-g++" will do as well. Objects newer than all sources are
kept. Prints the executable's path.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
NATIVE = ROOT / "native"
CONFORMANCE = ROOT / "tests" / "native" / "kernel_conformance.cpp"
ZIG = shlex.join([sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"])
# As CMakeLists.txt has them; warnings are errors here.
FLAGS = ["-std=c++20", "-O3", "-DNDEBUG", "-ffp-contract=off", "-fvisibility=hidden", "-Wno-psabi"]
WARNINGS = ["-Wall", "-Wextra", "-Werror"]
INSTRUCTION_SETS = {"scalar": [], "neon_dotprod": ["-mcpu=generic+dotprod"]}


def objects(folder: Path) -> dict[Path, tuple[Path, list[str]]]:
    """Object -> its source and flags."""
    core = [*NATIVE.glob("formats/*.cpp"), *NATIVE.glob("kernels/*.cpp"), *NATIVE.glob("engine/*.cpp"), CONFORMANCE]
    found: dict[Path, tuple[Path, list[str]]] = {
        folder / f"{source.parent.name}-{source.stem}.o": (source, []) for source in core
    }
    for name, flags in INSTRUCTION_SETS.items():
        for source in NATIVE.glob("kernels/isa/*.cpp"):
            found[folder / f"{name}-{source.stem}.o"] = source, [*flags, f"-DLILLIPUT_ISA={name}"]
    return found


def build(folder: Path, compiler: list[str], jobs: int) -> Path:
    """The executable; raises subprocess.CalledProcessError where the compiler fails."""
    folder.mkdir(parents=True, exist_ok=True)
    newest = max(path.stat().st_mtime for path in [*NATIVE.rglob("*.h"), *NATIVE.rglob("*.cpp")])
    wanted = objects(folder)

    def compile_one(item: tuple[Path, tuple[Path, list[str]]]) -> None:
        target, (source, flags) = item
        if target.exists() and target.stat().st_mtime > max(newest, source.stat().st_mtime):
            return
        command = [*compiler, *FLAGS, *WARNINGS, *flags, f"-I{NATIVE}", "-c", str(source), "-o", f"{target}.new"]
        subprocess.run(command, check=True)
        Path(f"{target}.new").replace(target)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(compile_one, sorted(wanted.items())))
    executable = folder / "kernel_conformance"
    # -O2: zig keeps its libraries, compiled for the target, apart by this.
    subprocess.run([*compiler, "-O2", "-static", *map(str, sorted(wanted)), "-o", str(executable)], check=True)
    return executable


def main() -> int:
    """The compiler's exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "aarch64")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--compiler", default=ZIG)
    chosen = parser.parse_args()
    try:
        print(build(chosen.folder.resolve(), shlex.split(chosen.compiler), chosen.jobs))
    except subprocess.CalledProcessError as error:
        return int(error.returncode)
    return 0


if __name__ == "__main__":
    sys.exit(main())
