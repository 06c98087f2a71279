"""Which epoch is exported where labeled images are held out: the one in which the teacher scores best on those."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn as nn

from ..evaluate import Scores
from ..runs import write_text
from ..types import Host
from .checkpoint import write_tensors
from .folder import SELECTED


@dataclass(frozen=True)
class Selection:
    """Keeps the best epoch so far in a folder; an interrupted epoch that is done again writes the same once more.

    score: network -> scores on the held-out images.
    """

    folder: Path
    score: Callable[[nn.Module], Scores]

    def __call__(
        self, host: Host, rows: Sequence[Mapping[str, Any]], scores: Mapping[str, Scores], epoch: int
    ) -> dict[str, float]:
        """After a scored epoch: its held-out columns of the curve.

        Args:
            host: as trained so far.
            rows: of the epochs before.
            scores: of this epoch on the validation images, to be recorded; they do not take part in the choice.
            epoch: counted from 1.
        """
        found = {name: self.score(host.networks()[name]) for name in scores}
        if found["teacher"].miou > max((row.get("held_out_teacher", -1.0) for row in rows), default=-1.0):
            weights, about = (self.folder / name for name in SELECTED)
            self.folder.mkdir(parents=True, exist_ok=True)
            write_tensors(host.exported_state(), weights)
            chosen = {name: vars(each) for name, each in scores.items()}
            on = {name: {"miou": each.miou, "pixel_accuracy": each.pixel_accuracy} for name, each in found.items()}
            write_text(about, json.dumps({**chosen, "epoch": epoch, "held_out": on}))
        return {f"held_out_{name}": each.miou for name, each in found.items()}

    def export(self, target: Path) -> dict[str, Any]:
        """Copy the weights of the selected epoch; what the record says about it."""
        weights, about = (self.folder / name for name in SELECTED)
        part = target.with_name(target.name + ".part")
        shutil.copyfile(weights, part)
        os.replace(part, target)
        return json.loads(about.read_text())
