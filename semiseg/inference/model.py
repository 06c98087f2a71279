"""A trained model: the teacher of a finished run, or what `semiseg.export` made of it, ready for any image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn as nn
from safetensors.torch import load_file
from torch import Tensor

from ..build import build, without_pretraining
from ..data.dataset import SegmentationData, ids_of
from ..data.sets.digits import Digits
from ..data.sets.voc import CLASSES as VOC_CLASSES
from ..data.sets.voc import voc_palette
from ..data.splits import read_list
from ..data.transforms import Normalize
from ..evaluate import Scores, batch_of, scorer, sliding
from ..recipe import Recipe
from ..runs import RECORD, WEIGHTS, Run
from ..types import IGNORE, Host

CONFIG = "config.json"  # of an exported model
WHOLE = 4  # images with no side longer than so many evaluation sizes are taken whole where validation images were
SETS = ("val", "tune", "test")  # where a data set has them
PARTS = (*SETS, "train", "labeled", "unlabeled", "held_out")
Color = tuple[int, int, int]


@dataclass(frozen=True)
class Model:
    """network: image -> Output, in evaluation mode, on its device.

    recipe: it was trained by.
    classes, palette: name and color of each class id.
    folder: it was read from.
    """

    network: nn.Module
    recipe: Recipe
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    folder: Path

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def classes_asked(self, data: str) -> str:
        """What `data.open.open_data` needs to hear of the classes: where the model knows a part of VOC's, which."""
        return ",".join(self.classes[1:]) if data == "voc" and self.classes != VOC_CLASSES else ""

    def windows(self, height: int, width: int, window: int | None = None) -> tuple[int, int]:
        """Side and step of the sliding window for an image of that size; one that is not smaller: the whole image.

        window: its side in pixels, with steps of two thirds.  None: as the validation images were scored; but where
        those were taken whole, images larger than WHOLE times the size of the evaluation are seen by windows of it.
        """
        if window is not None:
            if window < 1:
                raise ValueError(f"window is the side of a square in pixels, at least 1; got {window}")
            return window, max(1, 2 * window // 3)
        e = self.recipe.evaluation
        if e.protocol == "sliding":
            return e.size, e.step
        longest = max(height, width)
        return (longest, longest) if longest <= WHOLE * e.size else (e.size, max(1, 2 * e.size // 3))

    @torch.no_grad()
    def probabilities(self, images: Tensor, window: int | None = None) -> Tensor:
        """(B, 3, H, W) uint8 -> class probabilities (B, K, H, W) float32 on the model's device."""
        height, width = images.shape[-2:]
        size, step = self.windows(height, width, window)
        border = self.recipe.evaluation.border if window is None else "inside"
        return sliding(self.network, Normalize()(images).to(self.device), size, step, border)

    def __call__(self, image: Tensor, window: int | None = None) -> Tensor:
        """(3, H, W) uint8 -> class ids (H, W) uint8 on the CPU."""
        return self.probabilities(image[None], window)[0].argmax(0).to(torch.uint8).cpu()


def load_model(folder: Path | str, device: str = "auto") -> Model:
    """The model of a finished run, or an exported one.

    Args:
        folder: with run.json, or config.json, and model.safetensors.
        device: "auto" (a GPU where there is one), "cpu", "cuda", "cuda:1", ...

    Raises:
        FileNotFoundError: no such folder, record or weights.
        ValueError: weights that do not belong to the record, or a device that is not there.
    """
    folder, on = Path(folder), find_device(device)
    if not (folder / RECORD).is_file() and (folder / CONFIG).is_file():
        return _exported(folder, on)
    run = Run.read(folder)
    recipe, classes = Recipe.from_dict(run.record["recipe"]), tuple(run.record["data"]["classes"])
    network = load_exported(recipe, len(classes), weights_of(run)).networks()["teacher"].eval().to(on)
    return Model(network, recipe, classes, palette_of(run.record["data"]), folder)


def weights_of(run: Run) -> Path:
    """Raises FileNotFoundError, with what to do, where a run has none: records of tables are kept without."""
    path = run.folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{run.folder} has a record but no {WEIGHTS}: records that only fill tables are kept without weights; "
            "train the run again, or choose one that has them"
        )
    return path


def _exported(folder: Path, device: torch.device) -> Model:
    path = folder / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has a {CONFIG} but no {WEIGHTS}")
    try:
        config = json.loads((folder / CONFIG).read_text())
        recipe, classes = Recipe.from_dict(config["recipe"]), tuple(config["classes"])
        palette = tuple(_color(c) for c in config["palette"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / CONFIG} is not that of an exported model: {error!r}") from error
    network = network_of(recipe, len(classes))
    try:
        network.load_state_dict(load_file(path))
    except Exception as error:
        raise ValueError(f"{path} does not hold the weights that {CONFIG} describes: {error}") from error
    return Model(network.eval().to(device), recipe, classes, palette, folder)


def network_of(recipe: Recipe, classes: int) -> nn.Module:
    """The network of a recipe with random weights; nothing is downloaded."""
    return build(without_pretraining(recipe), classes).student


def find_device(name: str) -> torch.device:
    """Raises ValueError for an unknown device, and for a GPU that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); valid are auto, cpu, cuda, cuda:N") from error
    return device


def palette_of(data: Mapping[str, Any]) -> tuple[Color, ...]:
    """Colors as the record has them; of older records those of the data set, or VOC's."""
    classes = tuple(data["classes"])
    if "palette" in data:
        return tuple(_color(c) for c in data["palette"])
    if classes == Digits.classes:
        return Digits.palette
    if set(classes) <= set(VOC_CLASSES):
        return tuple(voc_palette(len(VOC_CLASSES))[VOC_CLASSES.index(name)] for name in classes)
    return voc_palette(len(classes))


def _color(values: Any) -> Color:
    red, green, blue = values
    return int(red), int(green), int(blue)


# --- scores -------------------------------------------------------------------------------


def evaluate_model(model: Model, data: SegmentationData, part: str = "val") -> Scores:
    """The scores of a model on a data set by the protocol of its recipe, as the run's record has them.

    Args:
        part: "val", "tune" or "test"; "train": every training image with a mask; "labeled", "unlabeled", "held_out":
            the list of that name in the run's folder, images without mask left out.

    Raises:
        ValueError: a data set with other classes, or no image with a mask in that part.
    """
    if tuple(data.classes) != model.classes:
        raise ValueError(
            f"the model knows {len(model.classes)} classes ({', '.join(model.classes[:4])}, ...), "
            f"{data.name} has {len(data.classes)} ({', '.join(data.classes[:4])}, ...); they must be the same, in order"
        )
    recipe = model.recipe
    score = scorer(recipe.evaluation, data, images_of(model.folder, data, part), batch_of(recipe.data))
    return score(model.network)


def recorded(model: Model, data: SegmentationData, part: str) -> Mapping[str, Any] | None:
    """What the run's own record says about the same images; None where it says nothing."""
    if part != model.recipe.evaluation.scored or not (model.folder / RECORD).is_file():
        return None
    run = Run.read(model.folder)
    return run.exported if run.record["data"]["sha256"] == data.sha256 else None


def images_of(folder: Path, data: SegmentationData, part: str) -> tuple[str, ...]:
    """Ids of a part of a data set that have a mask."""
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}; expected one of {', '.join(PARTS)}")
    if part in SETS:
        return ids_of(data, part)
    path = folder / f"{part}.txt"
    if part != "train" and not path.is_file():
        raise FileNotFoundError(f"{folder} has no list {path.name}")
    ids = data.train if part == "train" else read_list(path, set(data.train))
    if strangers := [key for key in ids if key not in set(data.train)]:
        raise ValueError(f"{path} names {len(strangers)} images that {data.name} does not have, first: {strangers[0]}")
    with_mask = tuple(key for key in ids if data.mask(key) is not None)
    if not with_mask:
        raise ValueError(f"no image of part {part!r} has a mask to compare with")
    return with_mask


def score_table(scores: Scores, classes: tuple[str, ...]) -> pd.DataFrame:
    """Per class: IoU, recall and precision in percent, and its share of the true pixels; the means below."""
    confusion = torch.tensor(scores.confusion, dtype=torch.float64)
    hits, truth, said = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    frame = pd.DataFrame(
        {
            "IoU": [None if v is None else 100 * v for v in scores.iou],
            "recall": (100 * hits / truth).numpy(),
            "precision": (100 * hits / said).numpy(),
            "% of pixels": (100 * truth / truth.sum().clamp(min=1)).numpy(),
        },
        index=pd.Index(classes, name="class"),
        dtype=float,
    )
    mean = frame.mean()
    mean["% of pixels"] = 100.0
    return pd.concat([frame, pd.DataFrame([mean], index=pd.Index(["mean"], name="class"))])


def score_record(model: Model, data: SegmentationData, part: str, scores: Scores) -> dict[str, Any]:
    """Plain values for a JSON file, with what they are about."""
    e = model.recipe.evaluation
    return {
        "model": model.folder.name,
        "data": {"name": data.name, "sha256": data.sha256, "part": part, "classes": list(data.classes)},
        "protocol": {"name": e.protocol, "size": e.size, "step": e.step, "ignored": IGNORE},
        **vars(scores),
    }


def load_exported(recipe: Recipe, classes: int, weights: Path) -> Host:
    """The host of a finished run in evaluation mode: its teacher, and what its parts export.

    The export holds no student, so the student of this host is a copy of the teacher; CPS's second network is random.
    Raises FileNotFoundError for a missing file, ValueError for weights of another recipe.
    """
    if not weights.is_file():
        raise FileNotFoundError(f"no weights at {weights}; runs keep them as model.safetensors")
    host = build(without_pretraining(recipe), classes)
    missing, unexpected = host.load_state_dict(load_file(weights), strict=False)
    lost = sorted(set(missing) & host.exported_state().keys())
    if lost or unexpected:
        raise ValueError(f"{weights} is not of this recipe: missing {lost[:3]}, unknown {unexpected[:3]}")
    host.student.load_state_dict(host.networks()["teacher"].state_dict())
    host.eval()
    return host
