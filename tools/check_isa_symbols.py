# SPDX-License-Identifier: Apache-2.0
"""Check that code compiled per instruction set shares no function with another instruction set.

An untagged inline function or template in native/kernels/isa/ becomes a weak symbol in several objects; the linker
keeps one copy, and the portable path may then execute AVX-512. Every weak function must carry its set's namespace.
Usage: check_isa_symbols.py [BUILD_DIR], by default the newest folder under build/. Needs `nm` (binutils).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTRUCTION_SETS = ("scalar", "avx2", "avx_vnni", "avx512_vnni", "neon_dotprod")


def untagged_functions(listing: str, instruction_set: str) -> list[str]:
    """Weak functions of an `nm -C` listing that lack the namespace of their instruction set."""
    names = (line.split(maxsplit=2) for line in listing.splitlines())
    weak = (parts[2] for parts in names if len(parts) == 3 and parts[1] in "WV")
    # DW.ref.* are the compiler's own references to the exception handler.
    return sorted(name for name in weak if f"::{instruction_set}::" not in name and not name.startswith("DW.ref."))


def newest_build() -> Path | None:
    """The folder under build/ that was built last and holds kernel objects."""
    builds = [folder.parent.parent for folder in ROOT.glob("build/*/CMakeFiles/lilliput_scalar.dir")]
    return max(builds, key=lambda folder: folder.stat().st_mtime, default=None)


def main(arguments: list[str]) -> int:
    """Print each untagged symbol; 1 if there is any or if there is nothing to check."""
    build = Path(arguments[0]) if arguments else newest_build()
    objects = [] if build is None else sorted(build.glob("CMakeFiles/lilliput_*.dir/native/kernels/isa/*.o"))
    if not objects:
        print("check_isa_symbols: no kernel objects found; build the native core first", file=sys.stderr)
        return 1
    found = 0
    for path in objects:
        instruction_set = next(name for name in INSTRUCTION_SETS if f"/lilliput_{name}.dir/" in path.as_posix())
        listing = subprocess.run(["nm", "-C", str(path)], check=True, capture_output=True, text=True).stdout
        for name in untagged_functions(listing, instruction_set):
            print(f"{path.name}: {name} lacks the namespace {instruction_set}", file=sys.stderr)
            found += 1
    return min(found, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
