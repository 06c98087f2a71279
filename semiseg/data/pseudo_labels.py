"""Pseudo-labels on disk: per image a mask and an entropy map, two gray PNG files of one byte per pixel."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from semiseg.data.dataset import SegmentationData
from semiseg.data.transforms import Normalize

MASKS, ENTROPY = "masks", "entropy"
Group = tuple[tuple[str, ...], Tensor]  # ids and (B, 3, H, W) normalized images of one size


def coded(entropy: Tensor, classes: int) -> Tensor:
    """Entropy in nats -> uint8, 255 for ln K; half a step is 0.2 % of the range."""
    return (entropy * (255 / math.log(classes))).round().clamp(0, 255).to(torch.uint8)


class PseudoLabeled:
    """A data set whose unlabeled images have labels in a folder; ground truth stays what it was.

    Args:
        data: images and, of labeled ones, masks.
        folder: with masks/<id>.png and entropy/<id>.png, as `label_images` writes them.
    """

    def __init__(self, data: SegmentationData, folder: Path | str) -> None:
        self.data, self.folder = data, Path(folder)
        self.name, self.classes, self.palette = data.name, data.classes, data.palette
        self.train, self.val, self.mirror, self.sha256 = data.train, data.val, data.mirror, data.sha256

    def image(self, key: str) -> Tensor:
        return self.data.image(key)

    def mask(self, key: str) -> Tensor | None:
        return self.data.mask(key)

    def given(self, key: str) -> tuple[Tensor, Tensor]:
        """Label (H, W) uint8 and entropy (H, W) uint8, 255 for ln K.

        Raises FileNotFoundError for an image without label, ValueError for a damaged file or one of another size.
        """
        label, entropy = (_read(path) for path in _paths(self.folder, key))
        size = self.data.image(key).shape[-2:]
        if label.shape != size or entropy.shape != size:
            raise ValueError(f"pseudo-label of {key} in {self.folder}: size differs from the image's, {tuple(size)}")
        return label, entropy


def label_images(
    data: SegmentationData,
    ids: Sequence[str],
    folder: Path,
    predict: Callable[[Tensor], tuple[Tensor, Tensor]],
    *,
    batch: int = 1,
    rank: int = 0,
    world: int = 1,
    workers: int = 0,
    progress: str = "",
) -> None:
    """Write label and entropy of every image that has none yet; a file is whole or absent.

    An interrupted pass, called again, writes what is missing and the same bytes, because the images of a batch depend
    on `ids` and `batch` alone.

    Args:
        predict: images (B, 3, H, W), normalized, of one size -> labels (B, H, W) and entropies in nats (B, H, W).
        batch: at most so many images at once; neighbors in `ids` of one size share a call.
        rank, world: this process labels every world-th batch.
        workers: processes that read images.
        progress: text beside a bar; empty: no bar.

    Raises:
        OSError: a folder that cannot be written, a full disk.
    """
    groups = [tuple(ids[i : i + batch]) for i in range(0, len(ids), batch)][rank::world]
    todo = [group for group in groups if not all(is_labeled(folder, key) for key in group)]
    bar = tqdm(total=sum(map(len, groups)), disable=not progress, desc=progress, mininterval=2)
    bar.update(sum(map(len, groups)) - sum(map(len, todo)))
    with ThreadPoolExecutor(2) as pool:
        writing: list[Future[None]] = []
        for keys, images in whole_images(data, todo, workers):
            label, entropy = predict(images)
            planes = torch.stack((label.to(torch.uint8), coded(entropy, len(data.classes)))).cpu().numpy()
            _wait(writing)  # for the previous batch: memory stays bounded
            writing = [
                pool.submit(_write, folder, key, *planes[:, row])
                for row, key in enumerate(keys)
                if not is_labeled(folder, key)
            ]
            bar.update(len(keys))
        _wait(writing)
    bar.close()


def is_labeled(folder: Path, key: str) -> bool:
    """Whether both files of an image are there; the mask is written last."""
    return _paths(folder, key)[0].is_file()


def whole_images(data: SegmentationData, groups: Sequence[tuple[str, ...]], workers: int = 0) -> Iterator[Group]:
    """The images of each group, normalized and whole; those of one size together."""
    read = DataLoader(_Groups(data, groups), batch_size=None, num_workers=workers, generator=torch.Generator())
    for parts in read:
        yield from parts


class _Groups(Dataset[list[Group]]):
    def __init__(self, data: SegmentationData, groups: Sequence[tuple[str, ...]]) -> None:
        self.data, self.groups, self.normalize = data, groups, Normalize()

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> list[Group]:
        images = {key: self.data.image(key) for key in self.groups[index]}
        by_size: dict[torch.Size, list[str]] = {}
        for key, image in images.items():
            by_size.setdefault(image.shape, []).append(key)
        return [(tuple(keys), self.normalize(torch.stack([images[k] for k in keys]))) for keys in by_size.values()]


def _paths(folder: Path, key: str) -> tuple[Path, Path]:
    return folder / MASKS / f"{key}.png", folder / ENTROPY / f"{key}.png"


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as file:
            if file.mode != "L":
                raise ValueError(f"mode {file.mode}")
            return torch.from_numpy(np.array(file))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no pseudo-label at {path}") from error
    except Exception as error:
        raise ValueError(f"{path} is no pseudo-label: {error}; delete it and label again") from error


def _write(folder: Path, key: str, label: np.ndarray, entropy: np.ndarray) -> None:
    for path, plane in zip(reversed(_paths(folder, key)), (entropy, label), strict=True):
        part = path.with_name(f".{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(plane).save(part, "PNG", compress_level=1)
            os.replace(part, path)
        except OSError as error:
            raise OSError(
                f"cannot write pseudo-labels to {path.parent}: {error.strerror or error}; what is written stays, "
                "and the run continues there once there is space and permission"
            ) from error


def _wait(writing: Sequence[Future[None]]) -> None:
    for each in writing:
        each.result()
