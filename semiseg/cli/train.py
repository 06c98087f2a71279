"""semiseg train: a recipe on a data set, on the CPU or on one GPU or several, without a launcher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..recipes import Recipe


def train(
    method: Annotated[str, typer.Option(help="supervised, mean_teacher, unimatch, ddfp, ...")] = "mean_teacher",
    data: Annotated[str, typer.Option(help="digits (embedded), voc, cityscapes, camvid, coco, folder")] = "digits",
    root: Annotated[str, typer.Option(help="folder of the data set")] = "",
    split: Annotated[
        str, typer.Option(help="labeled share: 1_16, 1_8, 1_4, 1_2, full; empty: 1_8, of a folder full")
    ] = "",
    scale: Annotated[str, typer.Option(help="smoke (seconds), tiny (minutes) or paper")] = "tiny",
    seed: Annotated[int, typer.Option(help="of everything random")] = 0,
    out: Annotated[Path | None, typer.Option(help="folder of the run; none: below runs/local")] = None,
    labeled_list: Annotated[str, typer.Option(help="a list file of labeled images instead of --split")] = "",
    classes: Annotated[str, typer.Option(help="names separated by commas, or a TOML file in root")] = "",
    train_list: Annotated[str, typer.Option(help="voc: the list of training images")] = "train_aug",
    unlabeled: Annotated[str, typer.Option(help="folder of further unlabeled images")] = "",
    longest: Annotated[int, typer.Option(help="shrink images to so many pixels on the longer side; 0: not")] = 0,
    upc: Annotated[bool, typer.Option("--upc", help="plug UPC in")] = False,
    wpl: Annotated[bool, typer.Option("--wpl", help="plug WPL in")] = False,
    backbone: Annotated[str, typer.Option(help="encoder; timm:NAME for one of timm")] = "",
    weights: Annotated[str, typer.Option(help="of the encoder: imagenet, a file, or none")] = "",
    crop: Annotated[int, typer.Option(help="side of the training crops, pixels; 0: the recipe's")] = 0,
    batch: Annotated[int, typer.Option(help="labeled images per step, and as many unlabeled; 0: the recipe's")] = 0,
    epochs: Annotated[int, typer.Option(help="0: the recipe's")] = 0,
    lr: Annotated[float, typer.Option(help="learning rate of the encoder; 0: the recipe's")] = 0.0,
    held_out: Annotated[float, typer.Option(help="share of the labeled images that chooses the epoch")] = 0.0,
    workers: Annotated[int, typer.Option(help="data loading processes")] = 0,
    cache: Annotated[float, typer.Option(help="GiB of memory for decoded images, per process")] = 0.0,
    devices: Annotated[int, typer.Option(help="GPUs, or processes on the CPU")] = 1,
    overwrite: Annotated[bool, typer.Option(help="train again where a finished run lies")] = False,
    progress: Annotated[bool, typer.Option(help="show a bar")] = True,
) -> None:
    """Train a recipe.  An interrupted run goes on with the same command."""
    from ..notebook import open_data, open_split, parse_split, seed_number
    from ..options import UPC, WPL
    from ..recipes import recipe
    from ..runs import LOCAL
    from ..training.folder import run_name
    from ..training.run import train as run_recipe

    share = parse_split(split or ("full" if data == "folder" else "1_8"))
    usual = recipe(method, data, share, scale, seed_number(seed))  # type: ignore[arg-type]
    made = replace(usual, upc=UPC() if upc else None, wpl=WPL() if wpl else None)
    made = _changed(made, backbone, weights, crop, batch, epochs, lr, held_out)
    images = open_data(data, root, classes, train_list, unlabeled=unlabeled, longest=longest)
    partition = open_split(images, made.split, seed, labeled_list)
    made = replace(made, split=partition.name)
    if hint := lr_hint(usual, made):
        typer.secho(hint, err=True, fg="yellow")
    folder = out or Path("runs") / LOCAL / run_name(made, images, partition)
    try:
        run = run_recipe(
            made, images, partition, folder, devices=devices, workers=workers, cache=cache, progress=progress,
            overwrite=overwrite,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        typer.echo(f"\ninterrupted; the same command continues {folder}", err=True)
        raise typer.Exit(130) from stop
    typer.echo(run.line())


def _changed(
    made: Recipe, backbone: str, weights: str, crop: int, batch: int, epochs: int, lr: float, held_out: float
) -> Recipe:
    """The recipe with what the command line says otherwise."""
    n = {"backbone": backbone, "weights": None if weights == "none" else weights}
    if weights == "" and backbone:
        n["weights"] = "imagenet" if backbone != "tiny" else None
    network = replace(made.network, **{k: v for k, v in n.items() if v != ""})  # type: ignore[arg-type]
    o = {name: v for name, v in (("crop", crop), ("batch", batch), ("epochs", epochs), ("lr", lr)) if v}
    optimization = replace(made.optimization, **o)  # type: ignore[arg-type]
    evaluation = replace(made.evaluation, held_out=held_out) if held_out else made.evaluation
    return replace(made, network=network, optimization=optimization, evaluation=evaluation)


def lr_hint(usual: Recipe, made: Recipe) -> str:
    """What to try for another batch than the recipe's: a rate proportional to it, as the papers' authors advise."""
    before, now = usual.optimization, made.optimization
    if now.batch == before.batch:
        return ""
    rate = before.lr * now.batch / before.batch
    if abs(now.lr / rate - 1) < 1e-6:
        return ""
    return (
        f"batch {now.batch} instead of the recipe's {before.batch}, learning rate {now.lr:g}: in proportion to "
        f"the batch it would be --lr {rate:g}"
    )
