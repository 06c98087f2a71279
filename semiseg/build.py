"""From a recipe to a training scheme: what the `build` of methods has in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from . import registry
from .losses import hard_pixel_cross_entropy, labeled_cross_entropy
from .models.backbones import make_backbone
from .models.deeplabv3plus import DeepLabV3Plus
from .types import Host, Mixer, Output, PixelWeighter, Target

if TYPE_CHECKING:
    from .recipe import Recipe

Criterion = Callable[[Output, Target], Tensor]


def criterion(recipe: Recipe, usual: Criterion = labeled_cross_entropy) -> Criterion:
    """The labeled term that the recipe asks for."""
    o = recipe.optimization
    return partial(hard_pixel_cross_entropy, share=o.ohem_share) if o.ohem else usual


def make_student(
    recipe: Recipe, classes: int, *, embedding: int = 0, projector: Literal["features", "decoder"] = "features",
    second_bn: bool = False,
) -> DeepLabV3Plus:  # fmt: skip
    """The student, weights as the recipe says.

    embedding, projector, second_bn: what the method adds, see `DeepLabV3Plus`.
    """
    n = recipe.network
    backbone = make_backbone(n.backbone, n.output_stride, n.weights, stem=n.stem, multi_grid=n.multi_grid)
    return DeepLabV3Plus(
        backbone, classes, width=n.width, low_width=n.low_width, rates=n.rates, projection=n.projection,
        dropout=n.dropout, pyramid_dropout=n.pyramid_dropout, auxiliary=n.auxiliary, second_bn=second_bn,
        embedding=embedding, projector=projector,
    )  # fmt: skip


def teacher_options(recipe: Recipe) -> dict[str, Any]:
    """Decay and statistics of the teacher, as a host's arguments."""
    c = recipe.consistency
    return {"decay": 0.0 if c.teacher == "self" else c.decay, "own_statistics": c.teacher != "ema"}


def mixer(recipe: Recipe, usual: Mixer | None, classes: int) -> Mixer | None:
    """The plug-in that mixes, or what the scheme usually pastes."""
    return _plugged(recipe, "mix", classes) or usual


def weigher(recipe: Recipe, classes: int) -> PixelWeighter | None:
    """The plug-in that weighs pixels; None: every pixel counts the same."""
    return _plugged(recipe, "weigh", classes)


def mixes(recipe: Recipe) -> bool:
    """Whether a plug-in mixes, which brings donors of its own."""
    return any(registry.plug_in(name).component == "mix" for name in recipe.plug_ins)


def _plugged(recipe: Recipe, component: str, classes: int) -> Any:
    found = (registry.plug_in(name) for name in recipe.plug_ins)
    made = (each.build(recipe, recipe.network.width, classes) for each in found if each.component == component)
    return next(made, None)


def build(recipe: Recipe, classes: int) -> Host:
    """The training scheme of a recipe; of one in stages, that of the last."""
    return registry.method(recipe.method).build(recipe, classes)


def without_pretraining(recipe: Recipe) -> Recipe:
    """The recipe with random weights of the encoder and without auxiliary head, for a network that gets its weights
    from elsewhere and learns no more."""
    return replace(recipe, network=replace(recipe.network, weights=None, auxiliary=0.0))
