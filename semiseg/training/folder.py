"""Where a run lies: the name of its folder, and what may be replaced there."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Set
from pathlib import Path
from tempfile import TemporaryDirectory

from ..data.dataset import SegmentationData, folders_of
from ..data.splits import Split
from ..recipe import Recipe, usual
from ..runs import DETECTIONS, LISTS, METRICS, PARTIAL, RECIPE, RECORD, WEIGHTS, Run

STARTED, LOCK = "started.json", "lock"
SELECTED = ("selected.safetensors", "selected.json")  # of the best epoch so far
LABELS = "labels"  # what stages of training wrote
MADE = frozenset({
    RECORD, RECIPE, METRICS, WEIGHTS, DETECTIONS, DETECTIONS.replace(".safetensors", ".json"), LABELS, *LISTS,
    STARTED, LOCK, *SELECTED,
})  # fmt: skip


def run_name(recipe: Recipe, data: SegmentationData, split: Split) -> str:
    """Data, scale, method, plug-ins, split and seed; where they differ, a hash of the recipe and one of the images.

    A recipe as `usual` needs no hash, and neither do the embedded images in a seeded partition, of which there is one.
    """
    name = recipe.name
    if usual(recipe.as_dict()).sha256 != recipe.sha256:
        name += f"-{recipe.sha256[:8]}"
    if folders_of(data) or split.family != "seeded":
        name += f"-{hashlib.sha256(f'{data.sha256} {split.sha256}'.encode()).hexdigest()[:8]}"
    return name


def check_folder(folder: Path, data: SegmentationData, overwrite: bool = False) -> None:
    """Refuse a folder in which something could be lost; nothing is written or removed.

    Args:
        folder: of a run to be made.
        data: it learns from.
        overwrite: a finished run there may be replaced, if nothing else lies beside it.

    Raises:
        ValueError: the folder lies in, above or at one of the data set; it holds a finished run, or anything that no
            run has made; or the folder of its unfinished part does.
    """
    place = folder.resolve()
    for root in (root.resolve() for root in folders_of(data)):
        if place == root or place.is_relative_to(root) or root.is_relative_to(place):
            raise ValueError(
                f"a run in {folder} would mix with the images in {root}; choose a folder outside of it and not above it"
            )
    for path, marks in ((folder, (RECORD,)), (partial_of(folder), (RECORD, STARTED, LOCK))):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file; choose another folder for the run")
        if (there := _content(path)) and not any(mark in there for mark in marks):
            raise ValueError(f"{path} holds files that are of no run, as {there[0]}; choose another folder")
    if (folder / RECORD).is_file():
        Run.read(folder)
        check_replaceable(folder, MADE, overwrite, "a finished run")


def check_replaceable(folder: Path, made: Set[str], overwrite: bool, what: str) -> None:
    """Raise ValueError unless the folder may be overwritten and holds nothing but files of these names."""
    if strangers := [name for name in _content(folder) if name not in made]:
        raise ValueError(f"{folder} holds {strangers[0]} beside {what}; move it, or choose another folder")
    if not overwrite:
        raise ValueError(f"{folder} holds {what}; choose another folder, or ask to overwrite it")


def partial_of(folder: Path) -> Path:
    """Where a run lies until it is finished."""
    return folder.with_name(folder.name + PARTIAL)


def move_into_place(part: Path, folder: Path, made: Set[str] = MADE) -> None:
    """Rename a finished folder; of what lay in its place only files of these names are removed."""
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent, ignore_cleanup_errors=True) as aside:
        old = Path(aside) / folder.name
        if folder.exists():
            folder.rename(old)
        try:
            part.rename(folder)
        except BaseException:
            if old.exists():
                old.rename(folder)
            raise
        _remove(old, made)
        if old.exists():  # came there after it was checked
            old.rename(folder.with_name(f"{folder.name}.{Path(aside).name.rpartition('.')[2]}"))


def _remove(folder: Path, made: Set[str]) -> None:
    """Remove the files of these names; a folder that then holds anything stays."""
    for name in made & set(_content(folder)):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if folder.is_dir() and not _content(folder):
        folder.rmdir()


def _content(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
