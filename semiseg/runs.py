"""Run records: one folder per run with run.json (what was done, and what came out) and metrics.csv (every epoch)."""

from __future__ import annotations

import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .options import SHARED
from .registry import is_companion

if TYPE_CHECKING:  # torch and pandas take seconds, and to list records needs neither
    import pandas as pd

RECORD, METRICS, WEIGHTS = "run.json", "metrics.csv", "model.safetensors"
RECIPE = "recipe.toml"  # the complete recipe, as `semiseg train --config` reads it
DETECTIONS = "detections.safetensors"  # and .json; of runs that asked a detector
LISTS = ("labeled.txt", "unlabeled.txt", "held_out.txt")
HEAD = ("method", "data", "split", "scale", "seed")  # of a recipe
LOCAL = "local"  # runs/local is not committed
PARTIAL = ".partial"  # how the folder of an unfinished run ends


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader sees the old or the new content, never half of it."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def label_of(values: Mapping[str, Any]) -> str:
    """`Recipe.label` of the dictionary that `as_dict` wrote, without asking (and importing) what plug-ins there are."""
    shared = {*HEAD, *SHARED, values["method"]}
    others = [name for name in values if name not in shared and not is_companion(name)]
    return "+".join([values["method"], *sorted(others)])


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two recipes (`as_dict`) disagree in, as 'key: ours != theirs'."""
    found = []
    for key in sorted(ours.keys() | theirs.keys()):
        a, b = ours.get(key), theirs.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} != {b!r}")
    return found


@dataclass(frozen=True)
class Run:
    """A finished run and its folder."""

    folder: Path
    record: dict[str, Any]

    @staticmethod
    def read(folder: Path | str) -> Run:
        """Raises FileNotFoundError where no run has finished, ValueError where run.json is not one."""
        path = Path(folder) / RECORD
        if not path.is_file():
            raise FileNotFoundError(f"no finished run in {folder}: {RECORD} is missing")
        try:
            record = json.loads(path.read_text())
            for name in HEAD:
                record["recipe"][name]
            float(record["last"]["teacher"]["miou"]), float(record["duration_s"]), dict(record["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is not a run record: {error!r}") from error
        return Run(Path(folder), record)

    @property
    def metrics(self) -> pd.DataFrame:
        """One row per epoch; of a run in stages those of the last stage, the one that the record is about."""
        rows = self.stage_metrics
        if "stage" not in rows:
            return rows
        last = rows[rows.stage == rows.stage.max()].drop(columns="stage")
        return last.dropna(axis="columns", how="all").reset_index(drop=True)

    @property
    def stage_metrics(self) -> pd.DataFrame:
        """One row per epoch of every stage, which the column `stage` numbers from 1 where there are several."""
        import pandas as pd

        return pd.read_csv(self.folder / METRICS)

    @property
    def label(self) -> str:
        """The method and its plug-ins, as in 'cps+upc'."""
        return label_of(self.record["recipe"])

    @property
    def miou(self) -> float:
        """The headline: mIoU of the teacher after the last epoch, in [0, 1]."""
        return self.record["last"]["teacher"]["miou"]

    @property
    def exported(self) -> dict[str, Any]:
        """Validation scores of the exported weights: of the epoch that held-out images selected, else the last one."""
        return self.record.get("selected", self.record["last"])["teacher"]

    def line(self) -> str:
        r, recipe = self.record, self.record["recipe"]
        what = "{label} on {data} ({scale}), split {split}, seed {seed}".format(label=self.label, **recipe)
        score = f"mIoU {100 * self.miou:.2f} (teacher, last epoch)"
        if "selected" in r:
            score += f", {100 * self.exported['miou']:.2f} (epoch {r['selected']['epoch']}, by held-out images)"
        return f"{what}: {score}, {r['duration_s'] / 60:.1f} min, {self.folder}"


def find_runs(root: Path | str, local: bool = False, skip: Callable[[str], None] = warnings.warn) -> list[Run]:
    """All finished runs below a folder, by path; those under `local` only when asked for.

    skip: hears of each record that cannot be read; the other runs are found all the same.
    """
    runs = []
    for folder in (path.parent for path in sorted(Path(root).rglob(RECORD))):
        parts = folder.relative_to(root).parts
        if any(part.endswith(PARTIAL) for part in parts) or (LOCAL in parts and not local):
            continue
        try:
            runs.append(Run.read(folder))
        except (ValueError, OSError) as error:
            skip(f"skipped: {error}")
    return runs


def table(runs: list[Run]) -> pd.DataFrame:
    """One row per run: method, data, scale, split, seed, mIoU in percent (teacher, last epoch), minutes."""
    import pandas as pd

    rows = [
        {
            **{k: r.record["recipe"][k] for k in ("data", "scale", "split")},
            "method": r.label,
            "seed": r.record["recipe"]["seed"],
            "miou": 100 * r.miou,
            "student": 100 * r.record["last"]["student"]["miou"],
            "best": 100 * r.record["best"]["teacher"]["miou"],
            "minutes": r.record["duration_s"] / 60,
            "folder": r.folder.as_posix(),
        }
        for r in runs
    ]
    columns = ["data", "scale", "split", "method", "seed", "miou", "student", "best", "minutes", "folder"]
    return pd.DataFrame(rows, columns=columns)


def environment() -> dict[str, Any]:
    """Versions, hardware and commit of this process."""
    import torch

    packages = ("torch", "torchvision", "FrEIA", "torchmetrics", "lightning-fabric", "numpy")
    return {
        "python": platform.python_version(),
        "packages": {p: metadata.version(p) for p in packages},
        "semiseg_commit": _git("rev-parse", "HEAD"),
        "semiseg_changed": bool(_git("status", "--porcelain", "--untracked-files=no", "--", "semiseg")),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def peak_memory() -> dict[str, int]:
    """MiB: resident memory of the process, and allocated on the GPU."""
    import torch

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // (1024 if sys.platform != "darwin" else 1024**2)
    gpu = torch.cuda.max_memory_allocated() // 2**20 if torch.cuda.is_available() else 0
    return {"resident": resident, "gpu": gpu}


def _git(*arguments: str) -> str | None:
    try:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for row in info.read_text().splitlines():
            if row.startswith("model name"):
                return f"{row.split(':', 1)[1].strip()}, {os.cpu_count()} cores"
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def keep(folder: Path, root: Path, weights: bool = False) -> Path:
    """Copy record, curve, lists and, if asked for, exported weights of a finished run to its place in `root`."""
    parts = Run.read(folder).folder.resolve().parts
    target = root.joinpath(*parts[-2:])
    target.mkdir(parents=True, exist_ok=True)
    shown = (WEIGHTS, DETECTIONS, DETECTIONS.replace(".safetensors", ".json")) if weights else ()
    for name in (RECORD, RECIPE, METRICS, *LISTS, *shown):
        if (folder / name).is_file():
            shutil.copyfile(folder / name, target / name)
    return target
