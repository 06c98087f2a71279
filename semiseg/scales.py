"""What each scale on each data set sets: the numbers behind `recipes.recipe`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from .host_options import AEL, CPS, STPP, U2PL, CutMixSeg, Mask2Former
from .options import DDFP, DGCL, ESL, Consistency, Detector, Evaluation, Network, Optimization

if TYPE_CHECKING:
    from .recipes import Recipe


def _same_step(channels: int) -> float:
    """The paper's epsilon = 4 at 304 channels, as the same root-mean-square change per channel at fewer."""
    return round(4 * (channels / 304) ** 0.5, 2)


def _fewer_pixels(pixels: int, embedding: int) -> DGCL:
    """DGCL's numbers of pixels for a step that shows fewer than the 8 x 129 x 129 of the released code on one GPU.

    Each shrinks as the side of a square of that area: at 32 maps of 8 x 8 to an eighth.  The scales of the neighbor
    graphs stay, so that Table 7 can be repeated with its own numbers.
    """
    side = (pixels / (8 * 129**2)) ** 0.5
    counts = {"bank": 10_000, "quota": 1_000, "pixels": 10_000, "anchors": 200, "keys": 50, "negatives": 512}
    return DGCL(embedding=embedding, **{name: round(number * side) for name, number in counts.items()})


def digits(base: Recipe) -> Recipe:
    """The embedded set; calibrated with supervised and mean_teacher only."""
    return replace(
        base,
        network=Network("tiny", 8, None, width=64, low_width=16, rates=(1, 2)),
        optimization=Optimization(
            crop=32,
            resize=(0.8, 1.25),
            epochs=10,
            epoch_steps=160,
            optimizer="adamw",
            lr=3e-3,
            head_lr_factor=1.0,
            weight_decay=1e-2,
        ),
        consistency=Consistency(tau=0.8, decay=0.99),
        ddfp=DDFP(eps=_same_step(64 + 16), flow_hidden=64),
        dgcl=_fewer_pixels(2 * 16 * 8 * 8, embedding=64),
        esl=ESL(embedding=2 * 64, collect_steps=1024 // 16),
        detector=Detector("tiny", None, 64, batch=16, epochs=60, patience=20, lr=3e-3, min_pixels=8, most=5),
        evaluation=Evaluation("whole", 32),
    )


def smoke(base: Recipe) -> Recipe:
    """Every phase of training in a few seconds, whatever the data."""
    tiny = digits(base)
    return replace(
        tiny,
        network=replace(tiny.network, width=16, low_width=8),
        optimization=replace(tiny.optimization, crop=32, batch=4, epochs=4, epoch_steps=2),
        consistency=replace(tiny.consistency, tau=0.0),  # an untrained network is sure of nothing
        ddfp=replace(tiny.ddfp, flow_hidden=16),
        dgcl=DGCL(embedding=16, bank=32, quota=8, pixels=64, scales=(2, 4), anchors=8, keys=4, negatives=16),
        esl=replace(tiny.esl, embedding=2 * 16, sure=0.0, collect_steps=1),
        detector=replace(tiny.detector, epochs=1),
        evaluation=Evaluation("whole", 32, every=2),
    )


def voc_tiny(base: Recipe) -> Recipe:
    """Small VOC images on a laptop: MobileNetV2, crop 128, AdamW because there is no time for SGD to converge."""
    return replace(
        base,
        network=Network("mobilenet_v2", 16, "imagenet", width=96, low_width=24, rates=(2, 4, 6)),
        optimization=Optimization(
            crop=128,
            batch=8,
            epochs=10,
            epoch_steps=30,
            optimizer="adamw",
            lr=5e-4,
            head_lr_factor=4.0,
            weight_decay=1e-2,
        ),
        consistency=Consistency(tau=0.95, decay=0.99),
        ddfp=DDFP(eps=_same_step(96 + 24), flow_hidden=128),
        dgcl=_fewer_pixels(2 * 8 * 32 * 32, embedding=96),
        esl=ESL(embedding=2 * 96, collect_steps=60),
        detector=Detector("mobilenet_v2", size=224, epochs=40, patience=8, lr=3e-4, min_pixels=16, most=20),
        evaluation=Evaluation("whole", 224, every=5),
    )


def coco_paper(base: Recipe) -> Recipe:
    """UniMatch's released numbers for COCO, but for its encoder, Xception-65: 8 images per step, evaluated whole."""
    return replace(
        base,
        optimization=Optimization(crop=513, batch=8, epochs=30, lr=4e-3, head_lr_factor=10.0),
        evaluation=Evaluation("whole", 513),
    )


def any_size(make: Callable[[Recipe], Recipe]) -> Callable[[Recipe], Recipe]:
    """A scale for images of which nothing is known: evaluated in windows, small ones whole."""

    def made(base: Recipe) -> Recipe:
        found = make(base)
        return replace(found, evaluation=replace(found.evaluation, protocol="sliding", size=512, step=342))

    return made


def voc_paper(base: Recipe) -> Recipe:
    """Sec. 4.1 of DDFP for PASCAL VOC, and of DGCL, which agrees; classic and blended differ in lists alone."""
    return base


def cityscapes_paper(base: Recipe) -> Recipe:
    """DDFP Sec. 4.1 for Cityscapes; OHEM is not in the paper, the released class has 0.7 and 100,000.

    DGCL: OHEM (Sec. 4.1); output stride, rates, ten epochs of labels alone and the window are the released code's.
    """
    city = replace(
        base,
        optimization=Optimization(769, batch=16, epochs=200, lr=1e-2, head_lr_factor=1.0),
        consistency=Consistency(tau=0.7),
        evaluation=Evaluation("sliding", 801, 534),
    )
    if base.method != "dgcl":
        return city
    return replace(
        city,
        network=Network("resnet101", 8, rates=(12, 24, 36)),
        optimization=replace(city.optimization, ohem=True),
        consistency=Consistency(unlabeled_from_epoch=10),
        dgcl=DGCL(exclude=()),
        evaluation=Evaluation("sliding", 800, 533),
    )


def _esl(base: Recipe) -> Recipe:
    """Where ESL trains otherwise than DDFP: every batch is mixed, and at paper scale its Sec. 4.1.

    Output stride, decay and sliding step are not in the paper; they are those of U2PL, whose settings it shares.
    """
    consistency = replace(base.consistency, cutmix_p=1.0, decay=0.99)
    if base.scale != "paper":
        return replace(base, consistency=consistency)
    optimization = replace(base.optimization, batch=8, head_lr_factor=10.0)
    base = replace(base, network=replace(base.network, output_stride=8))
    if base.data != "cityscapes":
        return replace(base, optimization=optimization, consistency=consistency)
    return replace(
        base,
        optimization=replace(optimization, weight_decay=5e-4, ohem=True),
        consistency=replace(consistency, unlabeled_from_epoch=0),
        evaluation=Evaluation("sliding", 769, 513),
    )


def _classic(base: Recipe) -> Recipe:
    """The published decay; every batch is mixed; off paper scale the same threshold as the other methods."""
    consistency = replace(base.consistency, decay=0.99, cutmix_p=1.0)
    options = CutMixSeg() if base.scale == "paper" else CutMixSeg(tau=base.consistency.tau)
    return replace(base, consistency=consistency, cutmix_seg=options)


def _cps(base: Recipe) -> Recipe:
    """At paper scale the stored configurations of charlesCXK/TorchSemiSeg @ 5e0c29c: CPS with CutMix, ResNet-101."""
    base = replace(base, consistency=replace(base.consistency, decay=0.99))
    if base.scale != "paper":
        return base
    city = base.data == "cityscapes"
    epochs = (128, 137, 160, 240) if city else (32, 34, 40, 60)  # by share, which keeps the number of steps alike
    of_split = dict(zip(("1_16", "1_8", "1_4", "1_2"), epochs, strict=True))
    optimization = Optimization(
        crop=800 if city else 512, batch=8, epochs=of_split.get(base.split, epochs[-1]), lr=2e-2 if city else 1e-2,
        head_lr_factor=1.0, ohem=city,
    )  # fmt: skip
    evaluation = Evaluation("sliding", 800, 533) if city else Evaluation("sliding", 512, 341)
    return replace(base, optimization=optimization, evaluation=evaluation, cps=CPS(weight=5.0 if city else 1.0))


def _unimatch(base: Recipe) -> Recipe:
    """UniMatch's released numbers at paper scale; its divisor counts every pixel that is not padding."""
    base = replace(base, consistency=replace(base.consistency, divisor="valid"))
    if base.scale != "paper":
        return base
    if base.data != "cityscapes":
        return replace(base, optimization=Optimization(321, batch=8), evaluation=Evaluation("whole", 321))
    return replace(
        base,
        optimization=Optimization(801, batch=8, epochs=240, lr=5e-3, head_lr_factor=1.0, ohem=True),
        consistency=replace(base.consistency, tau=0.0),
    )


def _augseg(base: Recipe) -> Recipe:
    """AugSeg's released numbers at paper scale; its divisor counts every pixel, ours those that are not padding."""
    base = replace(base, consistency=replace(base.consistency, divisor="valid"))
    if base.scale != "paper":
        return base
    if base.data != "cityscapes":
        return replace(base, evaluation=Evaluation("whole", 513))
    return replace(
        base,
        optimization=Optimization(800, batch=16, epochs=240, lr=1e-2, head_lr_factor=1.0, weight_decay=5e-4, ohem=True),
        consistency=replace(base.consistency, tau=0.0, decay=0.996),
        evaluation=Evaluation("sliding", 800, 534),
    )


def _ael(base: Recipe) -> Recipe:
    """AEL's released numbers at paper scale: OHEM on both data sets."""
    base = replace(base, consistency=replace(base.consistency, decay=0.99))
    if base.scale != "paper":
        return base
    city = base.data == "cityscapes"
    optimization = replace(base.optimization, lr=1e-2, head_lr_factor=10.0, ohem=True)
    return replace(
        base,
        network=replace(base.network, output_stride=8),
        optimization=optimization,
        consistency=replace(base.consistency, tau=0.0 if city else 0.7),
        ael=AEL(least_area=0.005, paste_classes=3) if city else base.ael,
    )


def _stpp(base: Recipe) -> Recipe:
    """At paper scale ST++'s own numbers, 16 images per step: 8 labeled and 8 unlabeled, or 16 labeled ones.

    Off paper scale the last training has the steps of the other methods and the first two have half of them; labels
    are made at the scales that training shows.
    """
    o, s = (
        base.optimization,
        STPP(epochs=(max(3, base.optimization.epochs // 2), max(1, base.optimization.epochs // 2))),
    )
    if base.scale != "paper":
        low, high = o.resize
        return replace(base, stpp=replace(s, scales=(low, 1.0, high)) if base.data == "digits" else s)
    optimization = replace(o, batch=8, crop=321, epochs=80, lr=1e-3, head_lr_factor=10.0)
    network = replace(base.network, output_stride=8, rates=(12, 24, 36))
    if base.data == "cityscapes":
        optimization = replace(optimization, crop=721, epochs=240, lr=4e-3)
        return replace(base, network=network, optimization=optimization, stpp=STPP(epochs=(240, 240)))
    return replace(
        base, network=network, optimization=optimization, stpp=STPP(), evaluation=Evaluation("whole", every=1)
    )


def _mask2former(base: Recipe) -> Recipe:
    """UPC's numbers at paper scale: 16 images per step, 30k steps on labels, then 60k of 8 labeled and 8 unlabeled.

    What UPC does not state is the released configuration's: rate of the backbone, clipping, queries, points.  It gives
    Cityscapes 90k steps, divided here as those of PASCAL VOC.  Off paper scale a small network and fewer points; on
    digits half the images per step, because a step costs twice that of the other methods.
    """
    o = base.optimization
    if base.scale == "paper":
        city = base.data == "cityscapes"
        optimization = Optimization(
            crop=1024 if city else 512, batch=8, epochs=60, epoch_steps=1000, optimizer="adamw", lr=1e-5,
            head_lr_factor=10.0, weight_decay=5e-4 if city else 1e-4, clip_norm=0.01,
        )  # fmt: skip
        return replace(base, optimization=optimization, evaluation=Evaluation("whole", optimization.crop, every=5))
    small = Mask2Former(
        epochs=max(1, o.epochs // 2), queries=12, encoder_layers=1, decoder_layers=3, heads=4, feedforward=(128, 128),
        points=128,
    )  # fmt: skip
    if base.scale == "smoke":
        network = replace(base.network, width=32)
        return replace(
            base, network=network, mask2former=replace(small, decoder_layers=1, heads=2, feedforward=(32, 32))
        )
    if base.data == "voc":
        network = replace(base.network, backbone="resnet18", width=96)
        return replace(base, network=network, mask2former=replace(small, queries=30, heads=3, points=1024))
    optimization = replace(o, batch=8, lr=1.5e-3, clip_norm=1.0)
    return replace(base, optimization=optimization, mask2former=replace(small, epochs=o.epochs))


def _u2pl(base: Recipe) -> Recipe:
    """U2PL's released settings; off paper scale fewer pixels, each count shrunk as the side of their square.

    The evaluation of Cityscapes is that of its released test script.
    """
    consistency = replace(base.consistency, decay=0.99, divisor="kept_scaled", teacher="ema_train")
    o = base.optimization
    if base.scale != "paper":
        side, usual = (2 * o.batch * (o.crop // 4) ** 2 / (32 * 129**2)) ** 0.5, U2PL()
        options = U2PL(
            embedding=base.network.width, queue=round(usual.queue * side), first_queue=round(usual.first_queue * side),
            quota=round(3_000 * side), anchors=round(usual.anchors * side),
            sure=0.0 if base.scale == "smoke" else usual.sure,  # an untrained network is sure of nothing
        )  # fmt: skip
        return replace(base, consistency=consistency, u2pl=options)
    base = replace(base, network=replace(base.network, output_stride=8, rates=(12, 24, 36)))
    if base.data != "cityscapes":
        return replace(base, consistency=consistency)
    return replace(
        base,
        optimization=replace(o, weight_decay=5e-4, ohem=True),
        consistency=replace(consistency, unlabeled_from_epoch=0),
        evaluation=Evaluation("sliding", 769, 513),
    )


_PAPERS = {
    "esl": _esl,
    "mean_teacher_mse": _classic,
    "cutmix_seg": _classic,
    "cps": _cps,
    "unimatch": _unimatch,
    "augseg": _augseg,
    "ael": _ael,
    "stpp": _stpp,
    "mask2former": _mask2former,
    "u2pl": _u2pl,
}


def as_its_paper(base: Recipe) -> Recipe:
    """Where a method trains otherwise than the scale says for all.

    Of the papers' settings for PASCAL VOC, those for COCO and for own images replace what depends on the images.
    """
    made = _PAPERS[base.method](base) if base.method in _PAPERS else base
    if base.data == "coco" and base.scale == "paper":
        return replace(made, optimization=base.optimization, evaluation=base.evaluation)
    if base.data == "folder":
        return replace(made, evaluation=base.evaluation)
    return made


MAKERS: dict[str, dict[str, Callable[[Recipe], Recipe]]] = {
    "digits": {"smoke": smoke, "tiny": digits},
    "voc": {"smoke": smoke, "tiny": voc_tiny, "paper": voc_paper},
    "cityscapes": {"smoke": any_size(smoke), "tiny": any_size(voc_tiny), "paper": cityscapes_paper},
    "camvid": {"smoke": smoke, "tiny": voc_tiny},
    "coco": {"smoke": smoke, "tiny": voc_tiny, "paper": coco_paper},
    "folder": {"smoke": any_size(smoke), "tiny": any_size(voc_tiny), "paper": any_size(voc_paper)},
}
