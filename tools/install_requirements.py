# SPDX-License-Identifier: Apache-2.0
"""Install what pyproject.toml asks for, with the extras that development needs, at the versions of constraints.txt."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("quantize", "bench", "onnx", "dev")

project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
requirements = [*project["dependencies"], *(r for extra in EXTRAS for r in project["optional-dependencies"][extra])]
command = [sys.executable, "-m", "pip", "install", "-qq", "--no-compile", "-c", str(ROOT / "constraints.txt")]
raise SystemExit(subprocess.call([*command, *requirements]))
