"""semiseg train: a recipe on a data set, on the CPU or on one GPU or several, without a launcher."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from ..recipe import Recipe


def train(
    method: Annotated[str, typer.Option(help="see `semiseg methods`; none: mean_teacher, or the file's")] = "",
    plug_ins: Annotated[str, typer.Option(help="upc, wpl or both, separated by commas")] = "",
    changes: Annotated[
        list[str] | None, typer.Option("--set", help="part.option=value, as in ddfp.eps=1; may be repeated")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of a recipe, as every run has one; read first")] = None,
    data: Annotated[str, typer.Option(help="digits, patchwork (embedded), voc, cityscapes, camvid, coco, folder")] = "",
    root: Annotated[str, typer.Option(help="folder of the data set, or a pack of it")] = "",
    split: Annotated[
        str, typer.Option(help="labeled share: 1_16, 1_8, 1_4, 1_2, full; empty: 1_8, of a folder full")
    ] = "",
    scale: Annotated[str, typer.Option(help="smoke (seconds), tiny (minutes) or paper; empty: tiny")] = "",
    seed: Annotated[int | None, typer.Option(help="of everything random; none: 0")] = None,
    out: Annotated[Path | None, typer.Option(help="folder of the run; none: below runs/local")] = None,
    labeled_list: Annotated[str, typer.Option(help="a list file of labeled images instead of --split")] = "",
    family: Annotated[str, typer.Option(help="published lists the split is of: classic, cps, u2pl, ...")] = "",
    lists: Annotated[str, typer.Option(help="folder of published lists")] = "data/splits",
    classes: Annotated[str, typer.Option(help="names separated by commas, or a TOML file in root")] = "",
    train_list: Annotated[str, typer.Option(help="voc: the list of training images")] = "train_aug",
    unlabeled: Annotated[str, typer.Option(help="folder of further unlabeled images")] = "",
    longest: Annotated[int, typer.Option(help="shrink images to so many pixels on the longer side; 0: not")] = 0,
    workers: Annotated[int, typer.Option(help="data loading processes")] = 0,
    cache: Annotated[float, typer.Option(help="GiB of memory for decoded images, per process")] = 0.0,
    resident: Annotated[
        bool | None, typer.Option(help="keep images on the device and augment there; none: where a GPU has the room")
    ] = None,
    devices: Annotated[int, typer.Option(help="GPUs, or processes on the CPU")] = 1,
    overwrite: Annotated[bool, typer.Option(help="train again where a finished run lies")] = False,
    reuse: Annotated[bool, typer.Option(help="read a finished run of the same recipe, images and lists")] = False,
    progress: Annotated[bool, typer.Option(help="show a bar")] = True,
) -> None:
    """Train a recipe.  An interrupted run goes on with the same command."""
    from ..data.open import open_data, open_split, parse_split
    from ..recipe import with_plug_ins
    from ..runs import LOCAL
    from ..training.folder import run_name
    from ..training.run import train as run_recipe

    asked = {"method": method, "data": data, "scale": scale, "seed": seed}
    head = {name: value for name, value in asked.items() if value not in ("", None)}
    if split:
        head["split"] = parse_split(split, family)
    usual = with_plug_ins(_base(config, head), plug_ins)
    made = usual.changed(" ".join(changes or ()))
    images = open_data(made.data, root, classes, train_list, unlabeled=unlabeled, longest=longest)
    partition = open_split(images, made.split, made.seed, labeled_list, family, lists)
    made = replace(made, split=partition.name)
    if hint := lr_hint(usual, made):
        typer.secho(hint, err=True, fg="yellow")
    folder = out or Path("runs") / LOCAL / run_name(made, images, partition)
    try:
        run = run_recipe(
            made, images, partition, folder, devices=devices, workers=workers, cache=cache, resident=resident,
            progress=progress, overwrite=overwrite, reuse=reuse,
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        typer.echo(f"\ninterrupted; the same command continues {folder}", err=True)
        raise typer.Exit(130) from stop
    typer.echo(run.line())


def _base(config: Path | None, head: dict[str, Any]) -> Recipe:
    """The recipe of a file, or the usual one; what the command line says of method, data, ... goes before."""
    from ..recipe import from_toml, recipe

    if config is not None:
        return from_toml(config.read_text(encoding="utf-8"), **head)
    return recipe(**({"method": "mean_teacher", "split": "full" if head.get("data") == "folder" else "1_8"} | head))


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
        f"the batch it would be --set optimization.lr={rate:g}"
    )
