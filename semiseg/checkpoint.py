"""Checkpoints: tensors in safetensors, the rest in a file loaded with `weights_only=True`; whole or absent."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from safetensors.torch import load_file, save_file

_NAME = "checkpoint-{:07d}"


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
