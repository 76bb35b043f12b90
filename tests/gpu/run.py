"""Measure on a bare machine with a GPU: `python -m tests.gpu.run --data out/gpu-pack --out DIR [--minutes 9]`.

Training, embedding and prediction are compared with the bare network on batches of the same kind; trained models are
evaluated on test with their fitted decisions. `DIR/results.json` is written every few seconds. What was done is kept in
--state: the same command again does the rest, and a training that was cut goes on. --tiny takes networks and sizes that
a CPU does in seconds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

PROBE = "segmentation_models_pytorch"  # a package of the wheels: where it is there, all are
BEGUN = "CURATE_GPU_BEGUN"


def install(wheels: Path, target: Path) -> None:
    """Install the wheels and start anew, if they are needed."""
    if importlib.util.find_spec(PROBE) or not any(wheels.glob(f"{PROBE}*.whl")):
        return
    files = [str(file) for file in sorted(wheels.glob("*.whl"))]
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-index", "--no-deps", "--upgrade", "--target"]
    subprocess.run([*command, str(target), *files], check=True)
    paths = [str(target), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    os.execv(sys.executable, [sys.executable, "-m", "tests.gpu.run", *sys.argv[1:]])


class Results:
    """What was measured, by case; on disk in two places after each change, the last one at most seconds old."""

    EVERY = 3.0  # seconds

    def __init__(self, state: Path, out: Path) -> None:
        self.files = [state / "results.json", out / "results.json"]
        for file in self.files:
            file.parent.mkdir(parents=True, exist_ok=True)
        self.values: dict[str, Any] = json.loads(self.files[0].read_text()) if self.files[0].is_file() else {}
        self._written = 0.0

    def done(self, case: str) -> bool:
        return bool(self.values.get(case, {}).get("done"))

    def update(self, case: str, now: bool = False, **values: Any) -> None:
        entry = self.values.setdefault(case, {})
        if "done" in values:
            for old in ("error", "note"):
                entry.pop(old, None)
        entry.update(values)
        if now or time.monotonic() - self._written > self.EVERY:
            self._written = time.monotonic()
            for file in self.files:
                aside = file.with_suffix(".part")
                aside.write_text(json.dumps(self.values, indent=1))
                aside.replace(file)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what tests.gpu.pack wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--state", type=Path, default=Path("/tmp/curate-gpu"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", nargs="+", default=[], help="some cases")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--tiny", action="store_true")
    given = parser.parse_args()
    begun = float(os.environ.setdefault(BEGUN, str(time.monotonic())))  # what was spent on installing counts
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    install(given.data / "wheels", given.state / "site")
    from tests.gpu import cases

    results = Results(given.state, given.out)
    setting = cases.Setting(given.data, given.state, given.device, given.tiny, begun + 60 * given.minutes, results)
    results.update("machine", now=True, imports_s=round(time.monotonic() - begun, 1), **cases.machine())
    failed = 0
    for name, case in cases.CASES.items():
        if results.done(name) or (given.only and name not in given.only):
            continue
        if setting.left() < (0 if given.tiny else 20):
            results.update(name, now=True, note="no time left")
            continue
        started = time.monotonic()
        try:
            results.update(name, **case(setting), done=True)
        except cases.OutOfTime:
            results.update(name, note="cut by the clock: the same command goes on")
        except Exception as error:  # the other cases are still worth their minutes
            traceback.print_exc()
            failed += 1
            results.update(name, error=f"{type(error).__name__}: {error}"[:500])
        results.update(name, now=True, seconds=round(time.monotonic() - started, 1))
        print(name, json.dumps(results.values[name]), flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
