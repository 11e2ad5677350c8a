"""The benchmarks run: every scenario, tiny, with the same rows for all. Their numbers mean nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import SCENARIOS
from tests.conftest import ROOT

pytestmark = pytest.mark.slow


def run_tiny(folder: Path, *scenarios: str) -> subprocess.CompletedProcess[str]:
    """`python -m benchmarks --tiny`; on a busy machine it takes minutes."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--tiny", "--results", str(folder / "results"), *scenarios],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "DLT_DATA_DIR": str(folder / "dlt")},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_every_scenario_runs_and_its_contenders_load_the_same_rows(tmp_path: Path) -> None:
    done = run_tiny(tmp_path)

    results = tmp_path / "results"
    assert done.returncode == 0, done.stderr
    assert sorted(path.stem for path in results.iterdir()) == sorted(SCENARIOS)
    for name in SCENARIOS:
        found = json.loads((results / f"{name}.json").read_text())
        assert f"### {name}\n" in done.stdout
        assert found["machine"]["cpus"]
        assert found["versions"]["dlt"]
        assert found["runs"]
        claims = [claim for claim in found["claims"] if "rows are equal" in claim["text"]]
        assert claims, name
        assert [claim for claim in claims if not claim["holds"]] == []


def test_a_scenario_that_does_not_exist_is_refused_by_name(tmp_path: Path) -> None:
    done = run_tiny(tmp_path, "no_such")

    assert done.returncode == 2
    assert "no scenario no_such; there are extract" in done.stderr
