"""What stops a training: a loss or a weight that is no finite number; nothing is learned, kept or exported from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn as nn
from torch import Tensor

EVERY = 20  # steps between two looks on a GPU, which would wait for each; the CPU looks after every step


class NotFinite(ArithmeticError):
    """A number of a training is infinite or none."""


class Health:
    """Watches the loss terms of each step, on the device they are on.

    Args:
        ids: step -> its labeled and unlabeled images, for the message.
        device: that trains.
    """

    def __init__(self, ids: Callable[[int], tuple[list[str], list[str]]], device: torch.device) -> None:
        self.ids, self.every = ids, 1 if device.type == "cpu" else EVERY
        self.first: dict[str, Tensor] = {}  # the step at which a term was not finite, -1 while it was

    def see(self, step: int, losses: Mapping[str, Tensor]) -> None:
        """Take in the losses of a step; raises `NotFinite`, with term, step and images, at the next look."""
        for name, value in losses.items():
            healthy = value.new_tensor(-1, dtype=torch.long)
            before, now = self.first.get(name, healthy), torch.where(value.detach().isfinite(), healthy, step)
            self.first[name] = torch.where(before < 0, now, before)
        if (step + 1) % self.every == 0:
            self.look()

    def look(self) -> None:
        """Raises `NotFinite` for a term that was not finite since training began."""
        found = {name: int(step) for name, step in self.first.items() if int(step) >= 0}
        if found:
            name, step = min(found.items(), key=lambda pair: pair[1])
            labeled, unlabeled = self.ids(step)
            images = ", ".join([*labeled[:2], *unlabeled[:2]])
            raise NotFinite(
                f"the loss term {name!r} was not finite at step {step} (images {images}, ...); the run is stopped, and "
                "its last checkpoint is from before; a lower learning rate, --set optimization.lr=..., may help"
            )

    def check_weights(self, host: nn.Module, epoch: int) -> None:
        """Raises `NotFinite` for a weight that is not finite at the end of an epoch."""
        self.look()
        tensors = {name: value for name, value in host.state_dict().items() if isinstance(value, Tensor)}
        bad = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if bad:
            raise NotFinite(
                f"{len(bad)} tensors, {bad[0]} among them, are not finite after epoch {epoch}; the run is stopped, and "
                "its last checkpoint is from before; a lower learning rate, --set optimization.lr=..., may help"
            )
