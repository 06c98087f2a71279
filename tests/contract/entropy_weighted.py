"""An example of a method in one file: mean teacher whose pseudo-labels count as much as the teacher is certain.

weight = (1 - H(p) / log K)^power
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from semiseg.components import entropy
from semiseg.hosts.mean_teacher import WITHOUT_TAU, MeanTeacher, mean_teacher
from semiseg.options import Options, option, options
from semiseg.registry import Method
from semiseg.types import Output, Target

if TYPE_CHECKING:
    from semiseg.recipe import Recipe


@options
class EntropyWeightedOptions(Options):
    """Pseudo-labels weighted by certainty."""

    part = "entropy_weighted"
    power: float = option("exponent of the certainty; 0: every pixel counts the same", default=1.0, symbol="γ", ge=0)


class EntropyWeightedLabels:
    """Pseudo-labeler: the teacher's class, weighted by how certain it is."""

    def __init__(self, options: EntropyWeightedOptions) -> None:
        self.options = options

    def __call__(self, output: Output, valid: Tensor, t: float) -> Target:
        certainty = 1 - entropy(output.logits) / math.log(output.logits.shape[1])
        weight = certainty.clamp(0, 1) ** self.options.power * valid
        return Target(output.logits.max(1).indices, weight, valid.float())


def build(recipe: Recipe, classes: int) -> MeanTeacher:
    return mean_teacher(recipe, classes, label=EntropyWeightedLabels(recipe[EntropyWeightedOptions]))


METHOD = Method(
    "entropy_weighted", title="entropy-weighted", color="#8c6d31", options=EntropyWeightedOptions, build=build,
    reads=WITHOUT_TAU, plain=lambda made: made.changed({"entropy_weighted.power": 0.0}), year=2026,
)  # fmt: skip
