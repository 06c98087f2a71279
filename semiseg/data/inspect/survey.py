"""Facts about all images of a split, and what a finding about them is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from semiseg.data.dataset import SegmentationData
from semiseg.data.inspect.facts import Facts
from semiseg.data.splits import Split

Severity = Literal["error", "warning", "note"]
PARTS = ("labeled", "unlabeled", "val")


@dataclass(frozen=True)
class Finding:
    """Something to know before training.

    severity: an error stops training or spoils its result; a warning costs accuracy; a note is good to know.
    where: ids, each with details; all of them.
    """

    severity: Severity
    what: str
    where: tuple[str, ...]
    advice: str


@dataclass(frozen=True)
class Survey:
    """All that the rules read."""

    data: SegmentationData
    split: Split
    facts: Mapping[str, Facts]
    crop: int | None = None  # side of the training crops, pixels

    @cached_property
    def parts(self) -> dict[str, tuple[str, ...]]:
        return {"labeled": self.split.labeled, "unlabeled": self.split.unlabeled, "val": self.data.val}

    def of(self, *parts: str) -> Iterator[Facts]:
        """Facts about the images of some parts."""
        return (self.facts[key] for part in parts for key in self.parts[part] if key in self.facts)

    def pixels(self, part: str) -> NDArray[np.int64]:
        """(256,) pixels by label."""
        return sum((f.counts for f in self.of(part) if f.counts is not None), np.zeros(256, np.int64))

    def images(self, part: str) -> NDArray[np.int64]:
        """(256,) images by label."""
        return sum(((f.counts > 0).astype(int) for f in self.of(part) if f.counts is not None), np.zeros(256, np.int64))
