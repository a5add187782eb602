"""The label-free workflow, killed once in every step and resumed, beside a run that nothing interrupts.

    KERAS_BACKEND=torch python tests/benchmarks/killed_run.py --images DATA/bam_tio2/sem \\
        --outlines DATA/bam_tio2/input_masks --out /tmp/killed_torch --minutes 8
    KERAS_BACKEND=jax python tests/benchmarks/killed_run.py --tiny --out /tmp/killed_jax

Both runs are `notebooks/StartProcess.py` of the same preset, settings and seed, started at the same time in
processes of their own. One of them gets SIGKILL in every step after `--at` of its work (and half an epoch more), and is
started again. What both have made is compared step by step: weights of every network, tables, label images, generated
micrographs. `--minutes` ends both runs, whatever they are doing, and judges the steps that both have finished.

Exit code: 0 all steps were killed, resumed and equal; 1 something differs, or a run failed; 2 equal as far as it came.
"""

from __future__ import annotations

import argparse
import csv
import io as streams
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SCRIPT = ROOT / "notebooks" / "StartProcess.py"
RESULTS = {
    "look": ("images.json", "look/*.tif"),
    "outlines": ("particles.npz", "outlines/**/*.keras"),
    "masks": ("masks/masks/*.tif", "masks/labels/*.tif"),
    "translate": ("translation/**/*.keras", "translation/log.csv"),
    "pairs": ("pairs.json", "pairs/images/*.tif", "pairs/labels/*.tif"),
    "train": ("model.keras", "network/log.csv"),
    "segment": ("segmentation/**/*.tif", "segmentation/particles.csv"),
    "report": ("report.html",),
}
REPORTED_AS = {"simulate": "masks"}
_PROGRESS = re.compile(r"(\w+)\s+(\d+)/(\d+) ")


class Run:
    """A run of the script in `out`; knows how far it is, and can be killed when a step has got somewhere."""

    def __init__(self, name: str, out: Path, options: dict[str, str], environment: dict[str, str]):
        self.name, self.out, self.environment = name, out, environment
        self.command = [sys.executable, str(SCRIPT), *(f"{k}={v}" for k, v in options.items()), f"OUT={out}"]
        self.step, self.done, self.total, self.unit = "", 0, 0, 0.0
        self.waiting: list[str] = []  # steps in which it shall be killed
        self.kill_at, self.is_armed = 0.0, True
        self.kills: dict[str, str] = {}
        self.starts = 0
        self.begun = time.monotonic()
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        self.starts, self.step, self.is_armed = self.starts + 1, "", True
        self.changed = self.began = time.monotonic()
        self.process = subprocess.Popen(
            self.command, env=self.environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        threading.Thread(target=self._watch, args=(self.process,), daemon=True).start()

    def _watch(self, process: subprocess.Popen) -> None:
        """Follow the printed progress; the text also goes to a log beside the folder."""
        with open(self.out.parent / f"{self.name}.log", "ab") as log:
            rest = b""
            while chunk := os.read(process.stdout.fileno(), 65536):
                log.write(chunk)
                log.flush()
                *lines, rest = re.split(rb"[\r\n]", rest + chunk)
                lines.append(rest)
                for line in lines:
                    if match := _PROGRESS.match(line.decode(errors="replace")):
                        self._moved(process, *match.groups())

    def _moved(self, process: subprocess.Popen, step: str, done: str, total: str) -> None:
        step, now = REPORTED_AS.get(step, step), time.monotonic()
        if step not in RESULTS or (step == self.step and int(done) == self.done):
            return
        if step != self.step:
            self.began, self.unit = now, 0.0
        elif int(done) > self.done:
            self.unit = (now - self.changed) / (int(done) - self.done)
        self.step, self.done, self.total, self.changed = step, int(done), int(total), now
        steps = list(RESULTS)
        while self.waiting and steps.index(self.waiting[0]) < steps.index(step) and self.is_armed:
            self.waiting.pop(0)  # over before it could be killed
        reached = max(1, self.total * self.kill_at) <= self.done < self.total
        if self.is_armed and self.waiting[:1] == [step] and reached:
            where = f"{self.done}/{self.total}, {now - self.began + self.unit / 2:.1f} s"
            self.is_armed = False
            threading.Timer(min(self.unit / 2, 20), self._kill, (process, step, where)).start()

    def _kill(self, process: subprocess.Popen, step: str, where: str) -> None:
        if process.poll() is None and self.statuses().get(step) != "done":
            self.kills[step] = where
            process.send_signal(signal.SIGKILL)
        self.waiting.pop(0)
        self.is_armed = True

    def kill_report(self) -> None:
        """The last step prints nothing: it is killed when the manifest calls it started."""
        if self.waiting == ["report"] and self.is_armed and self.statuses().get("report") == "started":
            self.is_armed = False
            self._kill(self.process, "report", "just begun")

    def statuses(self) -> dict[str, str]:
        try:
            steps = json.loads((self.out / "manifest.json").read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError):
            return {}
        return {name: record["status"] for name, record in steps.items()}

    def seconds(self, step: str) -> str:
        try:
            steps = json.loads((self.out / "manifest.json").read_text(encoding="utf-8"))["steps"]
        except (OSError, ValueError, KeyError):
            return ""
        seconds = steps.get(step, {}).get("seconds")
        return "" if seconds is None else f"{seconds:.0f} s"

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def compare(step: str, a: Path, b: Path) -> tuple[int, list[str]]:
    """Number of files compared, and how they differ."""
    problems, count = [], 0
    for pattern in RESULTS[step]:
        found = [sorted(p.relative_to(root).as_posix() for p in root.glob(pattern)) for root in (a, b)]
        if found[0] != found[1] or not found[0]:
            problems.append(f"{pattern}: {len(found[0])} and {len(found[1])} files")
        for name in sorted(set(found[0]) & set(found[1])):
            count += 1
            if difference := differ(a / name, b / name):
                problems.append(f"{name}: {difference}")
    return count, problems


def differ(a: Path, b: Path) -> str:
    """How two files differ; empty when they say the same (times and comments aside)."""
    if a.suffix == ".html" or a.read_bytes() == b.read_bytes():
        return ""
    if a.suffix == ".json":
        return "" if json.loads(a.read_text()) == json.loads(b.read_text()) else "other values"
    if a.suffix == ".csv":
        return "" if rows(a) == rows(b) else "other values"
    if a.suffix in (".keras", ".npz"):
        x, y = arrays(a), arrays(b)
    else:
        from keras_microseg import io

        x, y = ({"pixels": np.asarray(io.open_image(path).data)} for path in (a, b))
    if x.keys() != y.keys():
        return "other arrays"
    wrong = {name: y[name] for name in x if not np.array_equal(x[name], y[name], equal_nan=x[name].dtype.kind == "f")}
    if not wrong:
        return ""
    largest = max(float(np.abs(x[name].astype(float) - value.astype(float)).max()) for name, value in wrong.items())
    return f"{len(wrong)} of {len(x)} arrays differ, by {largest:.2g} at most"


def rows(path: Path) -> list[dict[str, str]]:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(lines)]


def arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".npz":
        return dict(np.load(path))
    import h5py

    found: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(path) as file, h5py.File(streams.BytesIO(file.read("model.weights.h5"))) as weights:
        weights.visititems(lambda name, v: found.update({name: v[()]}) if isinstance(v, h5py.Dataset) else None)
    return found


def make_options(arguments: argparse.Namespace) -> dict[str, str]:
    options = {"PRESET": arguments.preset, "seed": str(arguments.seed)}
    if arguments.tiny:
        sys.path.insert(0, str(ROOT / "tests" / "workflows"))
        import small_sem_run

        folder = arguments.out / "inputs"
        images, outlines = folder / "images", folder / "outlines"
        if not images.exists():
            small_sem_run.make_inputs(folder)
        options |= {name: repr(value) for name, value in small_sem_run.SMALL.items()}
    else:
        images, outlines = arguments.images, arguments.outlines
    options |= {"INPUT_IMAGES": str(images.resolve()), "INPUT_MASKS": str(outlines.resolve())}
    return options | dict(change.split("=", 1) for change in arguments.set)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--outlines", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="new folder; gets whole/, killed/ and their logs")
    parser.add_argument("--preset", default="fast")
    parser.add_argument("--tiny", action="store_true", help="simulated images and the settings of the tests")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the workflow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", type=float, default=0.3, help="share of each step's work before it is killed")
    parser.add_argument("--minutes", type=float, default=60, help="limit; both runs end then")
    arguments = parser.parse_args()
    if not arguments.tiny and not (arguments.images and arguments.outlines):
        parser.error("--images and --outlines, or --tiny")
    arguments.out = arguments.out.resolve()
    arguments.out.mkdir(parents=True, exist_ok=True)
    if any((arguments.out / name).exists() for name in ("whole", "killed")):
        parser.error(f"{arguments.out} holds an earlier comparison")
    options = make_options(arguments)
    environment = {
        "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2", "PYTHONUNBUFFERED": "1",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TF_FORCE_GPU_ALLOW_GROWTH": "true",
        "TMPDIR": tempfile.gettempdir(),
    } | os.environ  # fmt: skip
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # A process that is started again need not compile again; the uninterrupted run shares nothing with it.
    cached = environment | {"JAX_COMPILATION_CACHE_DIR": str(arguments.out / "jax_cache")}
    whole = Run("whole", arguments.out / "whole", options, environment)
    killed = Run("killed", arguments.out / "killed", options, cached)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended from outside"))
    print(f"backend {environment['KERAS_BACKEND']}, preset {arguments.preset}, seed {arguments.seed}", flush=True)
    try:
        failed = follow(whole, killed, arguments)
    finally:
        whole.stop()
        killed.stop()
    return judge(whole, killed, failed)


def follow(whole: Run, killed: Run, arguments: argparse.Namespace) -> list[str]:
    """Until both have ended or the time is over; returns what went wrong."""
    end, failed = time.monotonic() + 60 * arguments.minutes, []
    told, shown = set(), 0.0
    killed.waiting, killed.kill_at = list(RESULTS), arguments.at
    whole.start()
    killed.start()
    while time.monotonic() < end:
        killed.kill_report()
        for run in (whole, killed):
            code = run.process.poll()
            if run is killed and code == -signal.SIGKILL:
                print(f"  killed in {list(run.kills)[-1]} at {list(run.kills.values())[-1]}", flush=True)
                run.start()
            elif code not in (None, 0):
                failed.append(f"{run.name} ended with {code}; see {run.out.parent / run.name}.log")
        if failed or (whole.process.poll() == 0 and killed.process.poll() == 0):
            break
        both = [run.statuses() for run in (whole, killed)]
        for step in RESULTS:
            if step not in told and all(s.get(step) == "done" for s in both) and step != "report":
                told.add(step)
                count, problems = compare(step, whole.out, killed.out)
                print(f"  {step}: {'equal' if not problems else problems[0]} ({count} files)", flush=True)
        if time.monotonic() - shown > 30:
            shown = time.monotonic()
            print(
                f"{shown - whole.begun:5.0f} s  "
                + ";  ".join(f"{r.name}: {r.step} {r.done}/{r.total}" for r in (whole, killed)),
                flush=True,
            )
        time.sleep(0.02 if killed.waiting == ["report"] and killed.step == "segment" else 0.2)
    return failed


def judge(whole: Run, killed: Run, failed: list[str]) -> int:
    both = [run.statuses() for run in (whole, killed)]
    print(f"\n{'step':<10} {'killed at (work, time)':<26} {'uninterrupted':>14} {'files':>6}  result")
    different, open_steps = [], []
    for step in RESULTS:
        text, count = "not reached by both", 0
        if all(statuses.get(step) == "done" for statuses in both):
            count, problems = compare(step, whole.out, killed.out)
            text = "; ".join(problems[:3]) or "equal"
            different += problems
        if text == "not reached by both" or step not in killed.kills:
            open_steps.append(step)
        print(f"{step:<10} {killed.kills.get(step, 'not killed'):<26} {whole.seconds(step):>14} {count:>6}  {text}")
    for text in failed:
        print(text)
    times = f"{time.monotonic() - whole.begun:.0f} s, {killed.starts} starts of the killed run"
    if failed or different:
        print(f"VERDICT: {'failed' if failed else 'the resumed run differs'} ({times})")
        return 1
    if open_steps:
        print(f"VERDICT: equal as far as both came; open: {', '.join(open_steps)} ({times})")
        return 2
    print(f"VERDICT: killed in every step, resumed, and equal in every file ({times})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
