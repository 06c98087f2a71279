"""semiseg train, evaluate, predict, export: make a model and use it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .train import train

Data = Annotated[
    str, typer.Option(help="digits, patchwork, voc, folder, ...; empty: the data set that the run was trained on")
]
Device = Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, cuda:N")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run, or of an exported model")]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command()(train)
    app.command()(evaluate)
    app.command()(predict)
    app.command()(export)


def evaluate(
    run: RunFolder,
    data: Data = "",
    root: Annotated[str, typer.Option(help="folder of the data set")] = "",
    classes: Annotated[str, typer.Option(help="as in training; empty: those of the model")] = "",
    train_list: Annotated[str, typer.Option(help="voc: the list of training images")] = "train_aug",
    longest: Annotated[int, typer.Option(help="as in training")] = 0,
    split: Annotated[str, typer.Option(help="val, tune, test, train, labeled, unlabeled or held_out")] = "val",
    device: Device = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="also write the scores to this file")] = None,
) -> None:
    """Score a model: IoU per class, mIoU and pixel accuracy, by the protocol that its record states."""
    from ..data.open import open_data
    from ..inference.model import evaluate_model, load_model, recorded, score_record, score_table
    from ..runs import write_text

    model = load_model(run, device)
    name = data or model.recipe.data
    images = open_data(name, root, classes or model.classes_asked(name), train_list, longest=longest)
    scores = evaluate_model(model, images, split)
    typer.echo(score_table(scores, model.classes).round(2).to_string(na_rep="-"))
    typer.echo(f"\n{images.name}, {split}: mIoU {100 * scores.miou:.2f}, pixel accuracy {scores.pixel_accuracy:.2%}")
    if known := recorded(model, images, split):
        typer.echo(f"in the record of the run: mIoU {100 * known['miou']:.2f}")
    if json_file is not None:
        write_text(json_file, json.dumps(score_record(model, images, split, scores), indent=1))


def predict(
    run: RunFolder,
    images: Annotated[list[str], typer.Argument(help="files, folders or patterns such as 'photos/**/*.jpg'")],
    out: Annotated[Path, typer.Option(help="folder for masks/, overlays/, ...")] = Path("predictions"),
    overlay: Annotated[bool, typer.Option(help="write the colors of the classes over the image")] = True,
    probabilities: Annotated[str, typer.Option(help="npy or safetensors: (K, H, W) float16; empty: none")] = "",
    entropy: Annotated[bool, typer.Option(help="write the entropy as a gray PNG")] = False,
    window: Annotated[int, typer.Option(help="side of the sliding window, pixels; 0: as the run was scored")] = 0,
    batch: Annotated[int, typer.Option(help="images of equal size predicted together")] = 1,
    overwrite: Annotated[bool, typer.Option(help="predict again what is there already")] = False,
    device: Device = "auto",
    progress: Annotated[bool, typer.Option(help="show a bar")] = True,
) -> None:
    """Predict images of any size.  Exit status 1 if some of them could not be read; all others are written."""
    from ..inference.model import load_model
    from ..inference.predict import Wanted, find_images, predict_files

    if probabilities not in ("", "npy", "safetensors"):
        raise ValueError(f"unknown format of probabilities {probabilities!r}; expected npy or safetensors")
    found, wanted = find_images(images, out), Wanted(overlay, probabilities, entropy)  # type: ignore[arg-type]
    outcome = predict_files(
        load_model(run, device), found, out, wanted, window=window or None, batch=batch, overwrite=overwrite,
        progress=progress,
    )  # fmt: skip
    there = f", {len(outcome.skipped)} were there already (--overwrite predicts them again)" if outcome.skipped else ""
    typer.echo(f"{len(outcome.written)} of {len(found)} images predicted into {out}{there}")
    if outcome.failed:
        typer.secho(f"{len(outcome.failed)} could not be read:", err=True, fg="red")
        for reason in outcome.failed.values():
            typer.echo(f"  {reason}", err=True)
        raise typer.Exit(1)


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a finished run")],
    folder: Annotated[Path, typer.Argument(help="folder to be made")],
    form: Annotated[str, typer.Option("--format", help="safetensors, or torch: also a torch.export program")] = (
        "safetensors"
    ),
    overwrite: Annotated[bool, typer.Option(help="replace an earlier export")] = False,
) -> None:
    """Write a model to hand on: weights, configuration and model card."""
    from ..inference.export import export_model
    from ..runs import Run

    made = export_model(Run.read(run), folder, form, overwrite)  # type: ignore[arg-type]
    typer.echo(f"{made}: {', '.join(sorted(p.name for p in made.iterdir()))}")
