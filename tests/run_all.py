"""Runs all tests: the array half with keras out of reach, the network half once per backend, contracts, lint.

    python tests/run_all.py                     everything
    python tests/run_all.py --only jax          one part: arrays, jax, torch, tensorflow or lint
    python tests/run_all.py --workers 1         in one process (default: one per core, at most four)
    python tests/run_all.py -- -x -k report     arguments after -- go to pytest

The last line sums up all parts, as in `931 passed, 0 failed, 12 skipped`; the exit code is 0 only without failures.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BACKENDS = ("jax", "torch", "tensorflow")
PARTS = ("arrays", *BACKENDS, "lint")
LINT = (
    ("ruff check", ["ruff", "check", "."]),
    ("ruff format", ["ruff", "format", "--check", "."]),
    ("import contracts", ["importlinter.cli", "lint-imports"]),
)


def run_pytest(part: str, extra: list[str], workers: int) -> dict[str, int]:
    """One pytest run in processes of its own; returns counts of outcomes."""
    environment = {**os.environ, "PYTHONUTF8": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if part == "arrays":
        environment["MICROSEG_ARRAYS_ONLY"] = "1"
        environment.pop("KERAS_BACKEND", None)
    else:
        environment["KERAS_BACKEND"] = part
    if part == "jax":  # the programs are tiny: most of the time goes into optimizing them
        environment.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        command = [sys.executable, "-m", "pytest", f"--junitxml={report}"]
        if part != "arrays":  # the array half does not depend on the backend
            command += ["-m", "network and not slow and not gpu"]
        if workers > 1 and importlib.util.find_spec("xdist") is not None:
            # files stay whole: their fixtures are made once; a worker that dies ends the part instead of hanging it
            command += ["-n", str(workers), "--dist", "loadfile", "--max-worker-restart", "0"]
        command += extra
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        counts = read_counts(report)
    if code not in (0, 1, 5) or (code == 1 and not counts["failed"]):
        counts["failed"] += 1  # pytest itself broke, or a test killed the process
    return counts


def read_counts(report: Path) -> dict[str, int]:
    """Outcomes in a JUnit report; one failure when there is no report."""
    if not report.is_file():
        return {"passed": 0, "failed": 1, "skipped": 0}
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for suite in ElementTree.parse(report).getroot().iter("testsuite"):
        total, skipped = int(suite.get("tests", 0)), int(suite.get("skipped", 0))
        failed = int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        counts["failed"] += failed
        counts["skipped"] += skipped
        counts["passed"] += max(0, total - failed - skipped)
    return counts


def run_lint() -> dict[str, int]:
    """Ruff and the import contracts, each counted as one test."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    for title, command in LINT:
        module = command[0].split(".")[0]
        if importlib.util.find_spec(module) is None:
            print(f"{title}: skipped, {module} is not installed")
            counts["skipped"] += 1
            continue
        if module == "importlinter":
            code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
            arguments = [sys.executable, "-c", code, "--no-cache"]
        else:
            arguments = [sys.executable, "-m", *command]
        passed = subprocess.run(arguments, cwd=ROOT).returncode == 0
        print(f"{title}: {'passed' if passed else 'FAILED'}", flush=True)
        counts["passed" if passed else "failed"] += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, action="append", help="run this part only; may be repeated")
    parser.add_argument("--workers", type=int, default=min(os.cpu_count() or 1, 4), help="test processes")
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    parts = arguments.only or list(PARTS)
    results: dict[str, tuple[dict[str, int], float]] = {}
    for part in parts:
        print(f"\n===== {part} =====", flush=True)
        start = time.monotonic()
        if part == "lint":
            counts = run_lint()
        elif part in BACKENDS and importlib.util.find_spec(part) is None:
            print(f"{part} is not installed: skipped")
            counts = {"passed": 0, "failed": int(bool(arguments.only)), "skipped": 1}
        else:
            counts = run_pytest(part, arguments.pytest, arguments.workers)
        results[part] = counts, time.monotonic() - start
    total = {key: sum(counts[key] for counts, _ in results.values()) for key in ("passed", "failed", "skipped")}
    if not total["passed"]:
        total["failed"] += 1  # nothing ran: that is no success
    print("\n===== all parts =====")
    for part, (counts, seconds) in results.items():
        print(f"{part:<11}" + ", ".join(f"{number} {name}" for name, number in counts.items()) + f" in {seconds:.0f} s")
    print(", ".join(f"{number} {name}" for name, number in total.items()), flush=True)
    return int(total["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
