"""Whole images with their masks, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from semiseg.data.dataset import SegmentationData
from semiseg.data.transforms import MEAN, STD, Normalize, hw


def evaluation_batches(
    data: SegmentationData,
    ids: Sequence[str],
    *,
    batch: int = 1,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
    workers: int = 0,
) -> Iterator[tuple[tuple[str, ...], Tensor, Tensor]]:
    """Whole images in the given order: ids, images (B, 3, H, W) float32 normalized, masks (B, H, W) long.

    Up to `batch` neighbors of equal size share a batch; with batch = 1 every image stands alone.
    Raises ValueError for an image without mask or with a mask of another size.
    """
    normalize = Normalize(mean, std)
    images = DataLoader(_WholeImages(data, ids), batch_size=None, num_workers=workers, generator=torch.Generator())
    for keys, rows, masks in _runs_of_equal_size(images, batch):
        yield keys, normalize(torch.stack(rows)), torch.stack(masks).long()


class _WholeImages(Dataset[tuple[str, Tensor, Tensor]]):
    def __init__(self, data: SegmentationData, ids: Sequence[str]) -> None:
        self.data, self.ids = data, ids

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[str, Tensor, Tensor]:
        key = self.ids[index]
        image, mask = self.data.image(key), self.data.mask(key)
        if mask is None or mask.shape != image.shape[-2:]:
            fault = "has no mask" if mask is None else f"is {hw(image)} but its mask {hw(mask)} (height x width)"
            raise ValueError(f"{self.data.name}: image {key}, to be evaluated, {fault}")
        return key, image, mask


def _runs_of_equal_size(
    images: DataLoader[tuple[str, Tensor, Tensor]], batch: int
) -> Iterator[tuple[tuple[str, ...], list[Tensor], list[Tensor]]]:
    run: list[tuple[str, Tensor, Tensor]] = []
    for item in images:
        if run and (len(run) == batch or item[1].shape != run[0][1].shape):
            yield tuple(r[0] for r in run), [r[1] for r in run], [r[2] for r in run]
            run = []
        run.append(item)
    if run:
        yield tuple(r[0] for r in run), [r[1] for r in run], [r[2] for r in run]
