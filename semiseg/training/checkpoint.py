"""Checkpoints: tensors in safetensors, the rest in a file loaded with `weights_only=True`; whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

from ..types import Host

_NAME = "checkpoint-{:07d}"
Epoch = int | Literal["best"]


def save_checkpoint(folder: Path, step: int, module: nn.Module, state: dict[str, Any]) -> Path:
    """Write folder/checkpoint-<step>/ and remove older ones.

    Args:
        module: its tensors go to model.safetensors, its extra states (the flow's optimizer) to state.pt.
        state: whatever else resumes the run: tensors, numbers, strings, lists and dicts of them.
    """
    everything = module.state_dict()
    tensors = {k: v.detach().cpu().contiguous() for k, v in everything.items() if isinstance(v, torch.Tensor)}
    extra = {k: v for k, v in everything.items() if k not in tensors}
    final = folder / _NAME.format(step)
    part = folder / f".{final.name}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    save_file(tensors, part / "model.safetensors")
    torch.save({"step": step, "extra": extra, **state}, part / "state.pt")
    older = checkpoints(folder)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(part, final)
    for old in older:
        if old != final:
            shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted(p for p in folder.glob("checkpoint-*") if (p / "state.pt").is_file())


def load_state(checkpoint: Path) -> dict[str, Any]:
    """The state written beside the model.  Raises ValueError for a damaged file."""
    try:
        return torch.load(checkpoint / "state.pt", map_location="cpu", weights_only=True)
    except Exception as error:
        message = f"{checkpoint / 'state.pt'} cannot be read: {error}; delete {checkpoint} to start again"
        raise ValueError(message) from error


def load_module(checkpoint: Path, module: nn.Module, state: dict[str, Any]) -> None:
    """Put the saved tensors and extra states into a module built by the same recipe."""
    try:
        tensors = load_file(checkpoint / "model.safetensors")
    except Exception as error:
        raise ValueError(f"{checkpoint / 'model.safetensors'} cannot be read: {error}") from error
    module.load_state_dict({**tensors, **state["extra"]})


def write_tensors(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    """A safetensors file, whole or absent."""
    part = path.with_name(path.name + ".part")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, part)
    os.replace(part, path)


@dataclass(frozen=True)
class Keep:
    """The weights of one of a host's networks, kept on the way: after some epochs, and where it scored best.

    network: "student" or "teacher".
    epochs: after which it is kept, counted from 1.
    best: also the one with the highest mIoU of all epochs scored: on held-out labeled images where the recipe holds
        some out, otherwise on the validation set.
    """

    network: Literal["student", "teacher"] = "student"
    epochs: tuple[int, ...] = ()
    best: bool = False

    def __call__(self, folder: Path, host: Host, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the network if the last of the rows, one per epoch so far, is one of those epochs."""
        if rows[-1]["epoch"] in self.epochs:
            self._write(self.path(folder, rows[-1]["epoch"]), host)
        by = "held_out" if any(f"held_out_{self.network}" in row for row in rows) else "miou"
        scores = [row.get(f"{by}_{self.network}", -1.0) for row in rows]
        if self.best and scores[-1] > max(scores[:-1], default=-1.0):
            self._write(self.path(folder, "best"), host)

    @property
    def last(self) -> Epoch:
        """What is kept for labeling: the best network if that is kept, otherwise the one of the last epoch."""
        return "best" if self.best else self.epochs[-1]

    @staticmethod
    def path(folder: Path, epoch: Epoch) -> Path:
        """Where the network of that epoch lies."""
        return folder / f"network-{epoch if epoch == 'best' else f'{epoch:04d}'}.safetensors"

    def _write(self, path: Path, host: Host) -> None:
        tensors = host.networks()[self.network].state_dict()
        write_tensors({k: v for k, v in tensors.items() if isinstance(v, torch.Tensor)}, path)

    def read(self, folder: Path, epoch: Epoch, host: Host) -> nn.Module:
        """That network with the weights of an epoch, in a host built like the one it came from, for evaluation.

        Raises ValueError for a missing or damaged file.
        """
        network, path = host.networks()[self.network], self.path(folder, epoch)
        try:
            network.load_state_dict(load_file(path), strict=False)
        except Exception as error:
            raise ValueError(f"{path} cannot be read: {error}; delete {folder} to train that stage again") from error
        return network.eval()
