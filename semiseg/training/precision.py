"""Mixed precision: what is inside a network runs in half precision, everything else in float32.

Fabric would run the whole step under autocast, or nothing of it, depending on the number of devices.  Here the blocks
of each network do it themselves and hand float32 on, so that losses, softmax, densities, ranks, banks, K-means and
the moving average never see half precision, on one device or several.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import wraps
from typing import Any, Literal

import torch
import torch.nn as nn
from lightning_fabric.plugins import MixedPrecision, Precision
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from ..options import Precisions
from ..types import Host

DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def chosen(option: Precisions, device: str) -> Literal["32-true", "bf16-mixed", "16-mixed"]:
    """What "auto" means on a device: bf16-mixed on a GPU, else 32-true.  Raises ValueError for 16-mixed without GPU."""
    if option == "16-mixed" and device == "cpu":
        raise ValueError("optimization.precision=16-mixed needs a GPU; choose bf16-mixed or 32-true")
    return ("32-true" if device == "cpu" else "bf16-mixed") if option == "auto" else option


class _OfNetworks(MixedPrecision):
    """Fabric's scaling of gradients, without its autocast."""

    def forward_context(self) -> AbstractContextManager[None]:
        return nullcontext()

    def convert_input(self, data: Any) -> Any:
        return data

    def convert_output(self, data: Any) -> Any:
        return data


def plug_in(precision: Literal["32-true", "bf16-mixed", "16-mixed"], device: str) -> Precision:
    """What Fabric is given: float32, with a gradient scaler for 16-mixed."""
    return Precision() if precision == "32-true" else _OfNetworks(precision, device)


class Mixed:
    """The blocks of a host's networks under autocast.

    Args:
        host: on its device; every network of the student's class in it is meant, teachers and second networks too.
        precision: as `chosen` says.
    """

    def __init__(self, host: Host, precision: str) -> None:
        self.dtype = DTYPES.get(precision)
        kinds = tuple({type(network) for network in host.networks().values()})
        for network in host.modules():
            if self.dtype is not None and isinstance(network, kinds):
                for block in network.children():
                    block.forward = self._inside(block.forward)

    def _inside(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(forward)
        def under_autocast(*args: Any, **kwargs: Any) -> Any:
            if self.dtype is None:
                return forward(*args, **kwargs)
            device = next(x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)).device.type
            with torch.autocast(device, dtype=self.dtype):
                return tree_map(_float, forward(*args, **kwargs))

        return under_autocast

    @contextmanager
    def off(self) -> Iterator[None]:
        """Inside, networks run in float32: for scores that an exported model has too."""
        dtype, self.dtype = self.dtype, None
        try:
            yield
        finally:
            self.dtype = dtype


def _float(x: Any) -> Any:
    return x.float() if isinstance(x, Tensor) and x.is_floating_point() else x


def channels_last(host: nn.Module, device: torch.device) -> None:
    """Lay out the weights of convolutions as a GPU's tensor cores want them; maps follow.  The CPU stays as it is."""
    if device.type == "cuda":
        host.to(memory_format=torch.channels_last)
