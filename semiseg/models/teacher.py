"""The teacher: an exponential moving average of the student."""

from __future__ import annotations

import copy

import torch
import torch.nn as nn
from torch import Tensor

from ..types import Output


class Teacher(nn.Module):
    """Exponential moving average (Tarvainen & Valpola, 2017) with the project's one rule for parameters and buffers.

    After each step  t = a t + (1 - a) s,  a = min(1 - 1 / (it + 1), decay).

    * `own_statistics=False` (default): floating buffers are averaged like parameters, integer buffers copied, and the
      teacher always predicts in evaluation mode.
    * `own_statistics=True`: parameters only; the teacher predicts in training mode with the statistics of its batch
      and its dropout active, and keeps its own running statistics for validation (U2PL and its descendants).

    "Parameters only" with "evaluation mode only" is the one combination that goes wrong, so it cannot be asked for.
    decay=0 makes the teacher the student itself after every step.
    """

    steps: Tensor

    def __init__(self, student: nn.Module, decay: float = 0.999, own_statistics: bool = False) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"teacher decay must be in [0, 1), got {decay}")
        self.model = copy.deepcopy(student).requires_grad_(False)
        self.decay, self.own_statistics = decay, own_statistics
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.train()

    def train(self, mode: bool = True) -> Teacher:
        super().train(mode)
        self.model.train(mode and self.own_statistics)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Output:
        """x (B, 3, H, W) -> Output without gradient."""
        return self.model(x)

    @torch.no_grad()
    def copy(self, student: nn.Module, counted: bool = False) -> None:
        """Become the student, buffers included (warm-up).

        counted: a step of the average, so that its ramp goes on (released code of AugSeg and DGCL).
        """
        self.steps += counted
        for mine, other in zip(self.model.state_dict().values(), student.state_dict().values(), strict=True):
            mine.copy_(other)

    @torch.no_grad()
    def follow(self, student: nn.Module) -> None:
        """One step of the average."""
        self.steps += 1
        a = min(1 - 1 / (self.steps.item() + 1), self.decay)
        pairs: list[tuple[Tensor, Tensor]] = list(zip(self.model.parameters(), student.parameters(), strict=True))
        if not self.own_statistics:
            pairs += list(zip(self.model.buffers(), student.buffers(), strict=True))
        floating = [(t, s) for t, s in pairs if t.is_floating_point()]
        torch._foreach_lerp_([t for t, _ in floating], [s.detach() for _, s in floating], 1 - a)
        for t, s in pairs:
            if not t.is_floating_point():
                t.copy_(s)
