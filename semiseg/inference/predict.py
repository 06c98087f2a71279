"""Predictions for image files: palette masks, overlays, probabilities and entropies, one folder for each."""

from __future__ import annotations

import glob
import hashlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..data.files import read_rgb
from ..runs import WEIGHTS
from .model import Model

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
MARK = "model.txt"  # in the folder of predictions, whose they are
OPACITY = 0.55  # of the color of a class over its image
Probabilities = Literal["", "npy", "safetensors"]


@dataclass(frozen=True)
class Wanted:
    """What is written for an image a/b.jpg.

    masks/a/b.png: class ids, with the classes' colors as palette.  overlays/a/b.png: the colors over the image, the
    background left clear.  probabilities/a/b.npy or .safetensors: (K, H, W) float16.  entropy/a/b.png: gray, 0 for
    certainty and 255 for equal probabilities.
    """

    overlay: bool = True
    probabilities: Probabilities = ""
    entropy: bool = False

    def __post_init__(self) -> None:
        if self.probabilities not in ("", "npy", "safetensors"):
            raise ValueError(f"unknown format of probabilities {self.probabilities!r}; expected npy or safetensors")

    def files(self, out: Path, name: str) -> dict[str, Path]:
        """Kind -> path."""
        files = {"masks": out / "masks" / f"{name}.png"}
        if self.overlay:
            files["overlays"] = out / "overlays" / f"{name}.png"
        if self.probabilities:
            files["probabilities"] = out / "probabilities" / f"{name}.{self.probabilities}"
        if self.entropy:
            files["entropy"] = out / "entropy" / f"{name}.png"
        return files


@dataclass
class Outcome:
    """Names of the images that were predicted, whose files were there before, and that could not be read, and why."""

    written: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def find_images(inputs: Sequence[str | Path], out: Path | str | None = None) -> dict[str, Path]:
    """Files, folders (all images in them, at any depth) and glob patterns -> path by name.

    The name is the path below the folder or the part of the pattern without wildcards, without its suffix.  What lies
    below `out`, where predictions go, is left out of folders and patterns.
    Raises FileNotFoundError for an input that is or matches nothing, ValueError for two images of one name.
    """
    found: dict[str, Path] = {}
    for given in inputs:
        for base, path in _expand(Path(given).expanduser(), out):
            name = path.relative_to(base).with_suffix("").as_posix()
            if name in found and found[name].resolve() != path.resolve():
                raise ValueError(
                    f"{found[name]} and {path} would both be written as {name}; predict them into different folders"
                )
            found[name] = path
    return found


def _expand(given: Path, out: Path | str | None) -> list[tuple[Path, Path]]:
    """Base folder and path of each image that an input stands for."""
    if given.is_file():
        return [(given.parent, given)]
    every: Iterable[Path]
    if given.is_dir():
        base, every = given, given.rglob("*")
        hint = f"no image in folder {given}; images end in {', '.join(SUFFIXES)}"
    else:
        wild = next((i for i, part in enumerate(given.parts) if glob.has_magic(part)), None)
        if wild is None:
            raise FileNotFoundError(f"{given} does not exist; expected an image, a folder or a pattern such as *.jpg")
        base = Path(*given.parts[:wild])
        every = map(Path, glob.iglob(str(given), recursive=True))
        hint = f"no image matches {given}; images end in {', '.join(SUFFIXES)}"
    paths = sorted(p for p in every if p.suffix.lower() in SUFFIXES and p.is_file())
    if out is not None:
        paths = [p for p in paths if Path(out).resolve() not in p.resolve().parents]
    if not paths:
        raise FileNotFoundError(hint)
    return [(base, path) for path in paths]


def read_image(path: Path | str) -> Tensor:
    """(3, H, W) uint8, turned as its EXIF orientation says, as in training.

    Gray, palette and CMYK images become RGB, transparency is dropped, 16 bits become the upper 8; of several frames
    the first counts.  Raises ValueError naming the file where it cannot be read, FileNotFoundError where there is none.
    """
    return torch.from_numpy(read_rgb(Path(path))).permute(2, 0, 1)


def predict_files(
    model: Model,
    images: Mapping[str, Path],
    out: Path | str,
    wanted: Wanted | None = None,
    *,
    window: int | None = None,
    batch: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> Outcome:
    """Predict images and write files, each of them whole or not at all.

    Args:
        images: path by name, as `find_images` gives them.
        out: folder.
        window: side of the sliding window, pixels; None: see `Model.windows`.
        batch: neighbors of equal size that are predicted together.
        overwrite: also images whose files are all there.
        progress: show a bar on stderr, if that is a terminal.

    Returns:
        What happened; an image that cannot be read stops nothing.

    Raises:
        ValueError: `out` holds predictions of another model, and they are not to be overwritten.
    """
    wanted, out = wanted or Wanted(), Path(out)
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    outcome, mark = Outcome(), _mark(model)
    if not overwrite and (out / MARK).is_file() and (out / MARK).read_text() != mark:
        raise ValueError(
            f"{out} holds predictions of another model, {(out / MARK).read_text().strip()}; choose another folder "
            "(--out), or overwrite them (--overwrite)"
        )
    with tqdm(total=len(images), disable=None if progress else True, file=sys.stderr, unit="image") as bar:
        for group in _groups(images, out, wanted, batch, overwrite, outcome, bar.update):
            stack = torch.stack([image for _, image in group])
            for (name, image), p in zip(group, model.probabilities(stack, window), strict=True):
                _write(model, image, p, wanted, wanted.files(out, name))
                outcome.written.append(name)
                bar.update()
    if outcome.written:
        with _whole(out / MARK) as part:
            part.write_text(mark)
    return outcome


def _mark(model: Model) -> str:
    """What tells the predictions of a model from those of another: its folder and the hash of its weights."""
    with (model.folder / WEIGHTS).open("rb") as file:
        return f"{model.folder.name}, weights {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}\n"


def _groups(
    images: Mapping[str, Path], out: Path, wanted: Wanted, batch: int, overwrite: bool, outcome: Outcome,
    update: Callable[[], object],
) -> Iterator[list[tuple[str, Tensor]]]:  # fmt: skip
    """Readable images still to be predicted, neighbors of equal size together."""
    group: list[tuple[str, Tensor]] = []
    for name, path in images.items():
        if not overwrite and all(file.is_file() for file in wanted.files(out, name).values()):
            outcome.skipped.append(name)
            update()
            continue
        try:
            image = read_image(path)
        except (FileNotFoundError, ValueError) as error:
            outcome.failed[name] = str(error)
            update()
            continue
        if group and (len(group) == batch or group[0][1].shape != image.shape):
            yield group
            group = []
        group.append((name, image))
    if group:
        yield group


def _write(model: Model, image: Tensor, p: Tensor, wanted: Wanted, files: Mapping[str, Path]) -> None:
    ids = p.argmax(0).to(torch.uint8).cpu()
    _save_image(palette_image(ids, model.palette), files["masks"])
    if wanted.overlay:
        _save_image(overlay(image, ids, model), files["overlays"])
    if wanted.entropy:
        nats = -torch.special.xlogy(p, p).sum(0) / math.log(len(p))
        _save_image(Image.fromarray((255 * nats.clamp(0, 1)).round().to(torch.uint8).cpu().numpy()), files["entropy"])
    if wanted.probabilities:
        _save_probabilities(p.half().cpu(), files["probabilities"])


def palette_image(ids: Tensor, palette: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Class ids (H, W) uint8 -> an image of palette mode; 255 (ignore) is light gray."""
    height, width = ids.shape
    picture = Image.frombytes("P", (width, height), ids.contiguous().numpy().tobytes())
    colors = [(224, 224, 224)] * 256
    colors[: len(palette)] = palette
    picture.putpalette([v for color in colors for v in color])
    return picture


def overlay(image: Tensor, ids: Tensor, model: Model) -> Image.Image:
    """The colors of the classes over an image (3, H, W) uint8; a class named background is left clear."""
    colors = np.array(model.palette, np.float32)[ids.numpy()]
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    covered = np.full(ids.shape, OPACITY, np.float32)
    if "background" in model.classes:
        covered[ids.numpy() == model.classes.index("background")] = 0
    mixed = pixels + covered[..., None] * (colors - pixels)
    return Image.fromarray(mixed.round().astype(np.uint8))


def _save_image(image: Image.Image, path: Path) -> None:
    with _whole(path) as part:
        image.save(part, format="PNG")


def _save_probabilities(p: Tensor, path: Path) -> None:
    with _whole(path) as part:
        if path.suffix == ".npy":
            with part.open("wb") as file:
                np.save(file, p.numpy())
        else:
            save_file({"probabilities": p.contiguous()}, part)


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file to write to, which becomes `path` when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
