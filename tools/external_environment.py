# SPDX-License-Identifier: Apache-2.0
"""Make the environments of tests/external whose packages do not belong beside ours.

    python tools/external_environment.py onnx-runtimes [--folder DIR]

Each is a file of pinned requirements in tests/external/environments and becomes a virtual environment of that name in
`.environments` (or DIR, which pytest then wants as --environments DIR).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = ROOT / "tests" / "external" / "environments"


def main() -> int:
    """Make the named environments, or all of them."""
    known = sorted(path.stem for path in REQUIREMENTS.glob("*.txt"))
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", choices=known, default=known)
    parser.add_argument("--folder", type=Path, default=ROOT / ".environments")
    chosen = parser.parse_args()
    for name in chosen.names:
        target = chosen.folder / name
        if not (target / "bin" / "python").exists():
            venv.create(target, with_pip=True)
        command = [target / "bin" / "python", "-I", "-m", "pip", "install", "-qq", "--no-compile"]
        code = subprocess.call([*map(str, command), "-r", str(REQUIREMENTS / f"{name}.txt")])
        if code:
            return code
    return 0


sys.exit(main())
