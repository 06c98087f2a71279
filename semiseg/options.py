"""Options: the numbers of a recipe, each declared once, in the class that reads it, and checked when it is set.

The parts that all methods share are here; a method's own stand in its file.  A default is what the field uses, or the
better founded reading of a paper; where paper and released code disagree, a method's readings choose one side of all.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, TypeVar, dataclass_transform

from pydantic import ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from .models.names import BACKBONES, PREFIX, Stem, check_encoder

Divisor = Literal["kept", "valid", "kept_scaled", "kept_scaled_known"]  # of `losses.pixel_cross_entropy`
Precisions = Literal["auto", "32-true", "bf16-mixed", "16-mixed"]

T = TypeVar("T")


def option(
    meaning: str, *, default: Any, symbol: str = "", equation: str = "", unit: str = "", later: bool = False,
    **limits: Any,
) -> Any:  # fmt: skip
    """A field of an options class.

    Args:
        meaning: what it is, in a few words.
        default: its value before a scale and the method's `settings` have their say.
        symbol, equation: how the paper writes it, and where.
        unit: of a number, as in "pixels".
        later: it was added after records were written: a record leaves it out while it has its default.
        limits: pydantic's gt, ge, lt, le, min_length, ...
    """
    more: dict[str, Any] = {"symbol": symbol, "equation": equation, "unit": unit, "later": later}
    return Field(default, description=meaning, json_schema_extra={k: v for k, v in more.items() if v}, **limits)


@dataclass_transform(frozen_default=True, field_specifiers=(option,))
def options(made: type[T]) -> type[T]:
    """Make a subclass of `Options` a frozen dataclass whose values are checked against their types and limits."""
    cls: Any = dataclass(frozen=True, config=ConfigDict(extra="forbid"))(made)
    checked = cls.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            checked(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError(_message(cls, error)) from None

    cls.__init__ = init
    return cls


class Described(NamedTuple):
    """What is known of an option."""

    name: str
    default: Any
    meaning: str
    symbol: str
    equation: str
    unit: str
    later: bool


class Options:
    """What every class of options can do; a subclass is decorated with `options` and names its part of a recipe."""

    part: ClassVar[str]
    if TYPE_CHECKING:
        __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[Any]]]

    @classmethod
    def described(cls) -> Iterator[Described]:
        """Every option, in the order of the class."""
        for name, field in cls.__pydantic_fields__.items():  # type: ignore[attr-defined]
            more = field.json_schema_extra or {}
            symbol, equation, unit = (more.get(key, "") for key in ("symbol", "equation", "unit"))
            meaning, later = field.description or "", bool(more.get("later"))
            yield Described(name, field.default, meaning, symbol, equation, unit, later)

    def as_dict(self) -> dict[str, Any]:
        """Values by name; those added after records were written only where they are not the default."""
        return {o.name: value for o in self.described() if (value := getattr(self, o.name)) != o.default or not o.later}


def unknown(what: str, value: object, valid: Iterable[object]) -> str:
    """'unknown method ddpf; did you mean ddfp? Valid are ...'"""
    names = [str(name) for name in valid]
    near = difflib.get_close_matches(str(value), names, 1)
    guess = f"; did you mean {near[0]!r}? Valid are" if near else "; expected one of"
    return f"unknown {what} {value!r}{guess} {', '.join(names)}"


def one_of(what: str, value: object, valid: Iterable[object]) -> None:
    """Raise ValueError with the nearest and all valid values when `value` is none of them."""
    names = tuple(valid)
    if value not in names:
        raise ValueError(unknown(what, value, names))


def _message(cls: type[Options], error: ValidationError) -> str:
    """What is wrong with the first of the values, in one line."""
    found = error.errors(include_url=False)[0]
    if found["type"] == "value_error":  # of __post_init__
        return str(found["ctx"]["error"])
    place, value = found["loc"][0], found.get("input")
    name = [o.name for o in cls.described()][place] if isinstance(place, int) else place
    if found["type"] == "unexpected_keyword_argument":
        return unknown(f"option of {cls.part}", name, [o.name for o in cls.described()])
    text = {"missing": "has too few values", "too_short": "should have more values"}.get(found["type"], found["msg"])
    text = text.removeprefix("Input ")
    return f"{cls.part}.{name} {text[:1].lower() + text[1:]}, got {value!r}"


@options
class Network(Options):
    """DeepLabV3+ and its encoder."""

    part = "network"
    backbone: str = option(f"encoder, one of {', '.join(BACKBONES)}, or {PREFIX}NAME", default="resnet101")
    output_stride: Literal[8, 16] = option("size of the image over size of the encoder's last map", default=16)
    weights: str | None = option(
        '"imagenet", "imagenet_v1" (torchvision\'s first ones), a file, or none', default="imagenet"
    )
    width: int = option("channels of the decoder", default=256, gt=0)
    low_width: int = option("channels of the low-level map in the decoder", default=48, gt=0)
    rates: tuple[int, ...] = option("dilations of the pyramid", default=(6, 12, 18))
    dropout: float = option("share of channels dropped before the classifier", default=0.1, ge=0, lt=1)
    stem: Stem = option("of a ResNet: one 7x7 convolution, or deep: three of 3x3", default="resnet", later=True)
    multi_grid: tuple[int, ...] = option(
        "factors of the dilation in each block of a ResNet's last stage", default=(1, 1, 1), later=True
    )
    projection: Literal[1, 3] = option("kernel of the convolution after the pyramid", default=3, later=True)
    pyramid_dropout: float | None = option(
        "share of channels dropped after that convolution; none: as dropout", default=None, later=True, ge=0, lt=1
    )
    auxiliary: float = option(
        "weight of a second classifier on a ResNet's last stage but one; 0: none", default=0.0, later=True, ge=0
    )

    def __post_init__(self) -> None:
        if self.backbone.startswith(PREFIX):
            from .models.timm_encoders import check_name  # torch and timm: only for this

            check_name(self.backbone)
        else:
            one_of("backbone", self.backbone, (*BACKBONES, f"{PREFIX}NAME"))
        check_encoder(self.backbone, self.stem, self.multi_grid, self.auxiliary)


@options
class Optimization(Options):
    """Data order, augmentation, optimizer and schedule; the rate decays as (1 - t)^power."""

    part = "optimization"
    crop: int = option("side of the training crops", default=513, unit="pixels", gt=0)
    resize: tuple[float, float] = option("bounds of the random scale before the crop", default=(0.5, 2.0))
    batch: int = option("labeled images per step, and as many unlabeled", default=16, gt=0)
    epochs: int = option("passes, each of epoch_steps", default=80, gt=0)
    epoch_steps: int | None = option("steps of an epoch; none: one pass over the unlabeled images", default=None, gt=0)
    optimizer: Literal["sgd", "adamw"] = option("with momentum, or AdamW", default="sgd")
    lr: float = option("learning rate of the encoder", default=1e-3, gt=0)
    head_lr_factor: float = option("rate of everything else over that of the encoder", default=10.0, gt=0)
    momentum: float = option("of SGD", default=0.9, ge=0, lt=1)
    weight_decay: float = option("of all parameters", default=1e-4, ge=0)
    power: float = option("of the decay of the rate", default=0.9, ge=0)
    ohem: bool = option("the labeled loss over hard pixels only", default=False)
    ohem_share: float | None = option(
        "share of the pixels of a process's labeled images that counts as hard at least; none: 100,000 pixels",
        default=None, later=True, gt=0, le=1,
    )  # fmt: skip
    strong_labels: bool = option(
        "colors of the strong view on labeled images too: the control for augmentation alone", default=False
    )
    clip_norm: float | None = option(
        "longest gradient of all parameters together; none: any", default=None, later=True, gt=0
    )
    decay_norms: bool = option(
        "False: biases, and scales and shifts of normalizations, do not decay", default=True, later=True
    )
    resize_base: int | None = option(
        "long side that the random scale is of; none: the image's own", default=None, unit="pixels", later=True, gt=0
    )
    resize_law: Literal["uniform", "halves"] = option(
        "uniform: in the bounds of the random scale; halves: below 1 as often as above, uniform in each half",
        default="uniform", later=True,
    )  # fmt: skip
    scales: tuple[float, ...] | None = option(
        "random scales, each as likely; none: any in the bounds of resize", default=None, later=True, min_length=1
    )
    padding: Literal["corner", "center"] = option(
        "of images smaller than the crop: to the right and bottom, or around them", default="corner", later=True
    )
    padding_color: Literal["black", "mean"] = option(
        "of padding; mean: ImageNet's mean color, as a byte", default="black", later=True
    )
    precision: Precisions = option(
        "of what is inside networks, all else is float32; auto: bf16-mixed on a GPU, else 32-true", default="auto",
        later=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not 0 < self.resize[0] <= self.resize[1]:
            raise ValueError(f"optimization.resize must be 0 < low <= high, got {self.resize}")
        if self.scales and min(self.scales) <= 0:
            raise ValueError(f"optimization.scales must be positive factors, got {self.scales}")
        if self.resize_law == "halves" and not self.resize[0] <= 1 <= self.resize[1]:
            raise ValueError(f"optimization.resize_law=halves needs bounds of resize around 1, got {self.resize}")


@options
class Consistency(Options):
    """The mean-teacher host, and what other hosts share with it.  Epochs are counted from 0."""

    part = "consistency"
    tau: float = option("probability from which a pseudo-label is learned", default=0.95, symbol="τ", ge=0, lt=1)
    decay: float = option("of the teacher's moving average", default=0.999, ge=0, lt=1)
    cutmix_p: float = option("probability that a batch is mixed", default=0.5, ge=0, le=1)
    cutmix_area: float = option("share of the image that the pasted box covers", default=0.5, gt=0, le=1)
    divisor: Divisor = option(
        "of the unlabeled loss: kept pixels (DDFP's code), valid ones (papers), or kept_scaled (DGCL's code); "
        "kept_scaled_known: the same of pixels that are not padding",
        default="kept",
    )
    teacher: Literal["ema", "self", "ema_train"] = option(
        "ema (papers); self: the student itself (what DDFP's code does in effect); ema_train: parameters only and "
        "training mode, so that the batch normalizes itself (DGCL's code)",
        default="ema",
    )
    unlabeled_from_epoch: int = option("first epoch with unlabeled images", default=1, unit="epochs", ge=0)
    unlabeled_weight: float = option("of the unlabeled loss", default=1.0, later=True, ge=0)
    cutmix_sides: Literal["log", "width"] = option(
        "log: height and width share the area on a log scale; width: the width is a uniform integer (DDFP's code)",
        default="log", later=True,
    )  # fmt: skip
    box_sides: Literal["round", "int"] = option(
        "sides of the boxes of UniMatch and ST++: rounded, or rounded down (released code)", default="round", later=True
    )


@options
class Evaluation(Options):
    """How the validation set is scored, and how often."""

    part = "evaluation"
    protocol: Literal["whole", "center_crop", "sliding"] = option(
        "whole images, their center, or sliding windows", default="center_crop"
    )
    size: int = option("side of the center or of the window", default=513, unit="pixels", gt=0)
    step: int = option("distance of two windows", default=0, unit="pixels", ge=0)
    border: Literal["inside", "cut"] = option(
        "the last window of a row or column: moved back inside the image, or cut at its border",
        default="inside", later=True,
    )  # fmt: skip
    every: int = option("epochs between two scores; the last one is always scored", default=1, unit="epochs", gt=0)
    scored: Literal["val", "tune", "test"] = option(
        "which images: val; tune, for choices; test, for final results", default="val", later=True
    )
    held_out: float = option(
        "share of the labeled images, not learned from, that chooses the epoch to export",
        default=0.0,
        later=True,
        ge=0,
        lt=1,
    )

    def __post_init__(self) -> None:
        if self.protocol == "sliding" and not 0 < self.step <= self.size:
            raise ValueError(f"sliding evaluation needs 0 < step <= size, got step={self.step}, size={self.size}")


SHARED: dict[str, type[Options]] = {cls.part: cls for cls in (Network, Optimization, Consistency, Evaluation)}
