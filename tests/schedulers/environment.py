"""Virtual environments for schedulers: one each, since they ask for versions that exclude one another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT


def build_environment(folder: Path, *requirements: str) -> Path:
    """Where the programs are of a fresh virtual environment with this project and what else is required."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=120)
    programs = folder / "bin"
    command = [str(programs / "pip"), "install", "--quiet", str(ROOT), *requirements]
    done = subprocess.run(command, check=False, timeout=900, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return programs
