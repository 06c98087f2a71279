"""semiseg data: get data sets and check them."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..data.fetch.sources import SOURCES, Source
from ..data.splits import SPLITS

if TYPE_CHECKING:  # the rest is imported by the command that needs it: torch alone takes seconds
    from ..data.dataset import SegmentationData
    from ..data.splits import Split

app = typer.Typer(help=__doc__, no_args_is_help=True)
_COLORS = {"ERROR": "red", "WARNING": "yellow", "NOTE": "blue"}


@app.command("list")
def list_data(
    root: Annotated[Path, typer.Option(help="Folder where data sets are looked for.")] = Path("data"),
) -> None:
    """What is known: data sets with size, terms and how to get them, and families of published lists."""
    from ..data.families import FAMILIES, partitions

    typer.echo("\n\n".join(_described(source, root / source.name) for source in SOURCES.values()))
    typer.echo("\nPublished lists (semiseg data fetch splits --family NAME), in one family comparable:\n")
    for family, what in FAMILIES.items():
        where = root / "splits" / family
        here = f"; in {where}" if where.is_dir() else ""
        typer.echo(f"{family:16} {', '.join(partitions(family))}\n{'':16} {what}{here}")


def _described(source: Source, place: Path) -> str:
    from ..data.fetch.download import megabytes

    size = f"{megabytes(source.size)} to download" if source.size else ""
    rows = {
        "images": source.images,
        "get it": f"semiseg data fetch {source.name}" + ("" if source.urls else " says what to download by hand"),
        "size": size,
        "verified": source.checked,
        "terms": f"{source.terms}; see {source.page}",
        "here": str(place) if place.is_dir() else f"not in {place}",
    }
    lines = [f"{'':12}{name:9} {value}" for name, value in rows.items() if value]
    return "\n".join([f"{source.name:12}{typer.style(source.title, bold=True)}", *lines])


@app.command("fetch")
def fetch_data(
    name: Annotated[str, typer.Argument(help=f"{', '.join(SOURCES)} or splits (published lists).")],
    root: Annotated[Path | None, typer.Option(help="Folder to put it in.  [default: data/NAME]")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Of splits: which; may be repeated.  [default: all]")] = None,
    voc: Annotated[Path, typer.Option(help="Of sbd and splits: VOC's folder, to complete it.")] = Path("data/voc"),
    url: Annotated[list[str] | None, typer.Option(help="Another address of the same archive.")] = None,
    known: Annotated[str, typer.Option("--hash", help="Another hash to verify by, as sha256:...")] = "",
    keep: Annotated[bool, typer.Option("--keep-archive", help="Keep the archive after unpacking.")] = False,
) -> None:
    """Download, verify and unpack a data set; interrupted, the same command goes on where it was.

    Status 2: it cannot be had, or only by hand; the message says how.
    """
    from ..data.families import FAMILIES
    from ..data.fetch.sets import fetch

    place = root or Path("data") / name
    if name not in (*SOURCES, "splits"):
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(SOURCES)} or splits")
    try:
        if name == "splits":
            _fetch_splits(place, family or list(FAMILIES), voc)
        elif not SOURCES[name].urls:
            _by_hand(SOURCES[name], place)
        else:
            new = fetch(name, place, urls=tuple(url or ()), known=known, keep=keep)
            typer.echo(f"{name}: {'unpacked and verified in' if new else 'already in'} {place}")
            _next_step(name, place, voc)
    except KeyboardInterrupt:
        typer.secho("stopped; what has arrived is kept, the same command goes on from there", err=True)
        raise typer.Exit(130) from None


def _by_hand(source: Source, place: Path) -> None:
    """What to do, or what is left to do once it was done."""
    from ..data.fetch.sets import instructions

    if not all((place / folder).is_dir() for folder in source.complete):
        typer.echo(instructions(source.name, place))
        raise typer.Exit(2)
    typer.echo(f"{source.name}: in {place}")
    if source.name == "coco":
        from ..data.sets.coco import write_masks

        for part in ("train2017", "val2017"):
            typer.echo(f"{part}: {write_masks(place, part, progress=sys.stdout.isatty())} masks in {place / 'masks'}")


def _fetch_splits(folder: Path, families: list[str], voc: Path) -> None:
    from ..data.families import fetch_lists, fetch_train_list, list_files, partitions

    for family in families:
        partitions(family)  # all names are known before anything is fetched
    for family in families:
        paths = fetch_lists(family, folder)
        typer.echo(f"{family}: {len(paths)} lists, verified, in {folder / family}")
    if voc.is_dir() and any(file.data == "voc" for file in list_files() if file.family in families):
        typer.echo(f"list of all training images: {fetch_train_list(voc)}")


def _next_step(name: str, place: Path, voc: Path) -> None:
    if name == "voc":
        typer.echo(
            f"1464 masks: --data voc --root {place} --train-list train; 10582: semiseg data fetch sbd --voc {place}"
        )
    elif name == "sbd" and voc.is_dir():
        from ..data.fetch.sbd import blended_masks

        count = blended_masks(place, voc, progress=sys.stdout.isatty())
        typer.echo(f"{voc / 'SegmentationClassAug'}: masks of {count} training images")
    elif name == "sbd":
        typer.echo(f"no VOC in {voc}, so no masks were made; fetch voc, then run this again, or name it by --voc")


@app.command("check")
def check_data(
    data: Annotated[str, typer.Option(help="Kind of data set, as for notebooks: voc, ...")] = "voc",
    root: Annotated[str, typer.Option(help="Its folder.")] = "",
    classes: Annotated[str, typer.Option(help="Comma-separated names of classes, as for notebooks.")] = "",
    train_list: Annotated[str, typer.Option(help="List of training images.")] = "train_aug",
    unlabeled: Annotated[str, typer.Option(help="Folder of further unlabeled images.")] = "",
    split: Annotated[str, typer.Option(help=f"{', '.join(SPLITS)}, or a name of the family.")] = "full",
    seed: Annotated[int, typer.Option(help="Of the seeded split.")] = 0,
    labeled_list: Annotated[Path | None, typer.Option(help="Labeled images, instead of a split by name.")] = None,
    unlabeled_list: Annotated[Path | None, typer.Option(help="Unlabeled images.  [default: all others]")] = None,
    family: Annotated[str, typer.Option(help="Family of published lists that the split is of.")] = "",
    lists: Annotated[str, typer.Option(help="Folder of published lists.")] = "data/splits",
    crop: Annotated[int | None, typer.Option(help="Side of training crops in pixels, to find smaller images.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with pictures of a few pairs.")] = None,
    shown: Annotated[int, typer.Option("--pictures", help="Pairs on the page.", min=0)] = 6,
    examples: Annotated[int, typer.Option(help="Places shown per finding; the page has all.", min=1)] = 5,
) -> None:
    """Read every image and mask of a data set, and report what would spoil training.

    Status 0: no error.  1: errors were found.  2: the data set cannot be opened, or an option is wrong.
    """
    from ..data.inspect.report import inspect, to_html, to_text
    from ..data.open import open_data, open_split, parse_split
    from ..runs import write_text

    if unlabeled_list and not labeled_list:
        raise ValueError("--unlabeled-list needs --labeled-list")
    name = parse_split(split, family)
    opened = open_data(data, root, classes, train_list, unlabeled=unlabeled)
    if labeled_list:
        chosen = _as_listed(opened, labeled_list, unlabeled_list)
    else:
        chosen = open_split(opened, name, seed, family=family, lists=lists)
    if html:
        html.parent.mkdir(parents=True, exist_ok=True)
    report = inspect(opened, chosen, crop=crop, shown=shown if html else 0, progress=sys.stdout.isatty())
    typer.echo(_colored(to_text(report, examples)), nl=False)
    if html:
        write_text(html, to_html(report))
        typer.echo(f"\npage with pictures: {html}")
    raise typer.Exit(0 if report.ok else 1)


@app.command("pack")
def pack_data(
    out: Annotated[Path, typer.Argument(help="File to be made, as voc.safetensors.")],
    data: Annotated[str, typer.Option(help="Kind of data set, as for notebooks: voc, ...")] = "voc",
    root: Annotated[str, typer.Option(help="Its folder.")] = "",
    classes: Annotated[str, typer.Option(help="Comma-separated names of classes, as for notebooks.")] = "",
    train_list: Annotated[str, typer.Option(help="List of training images.")] = "train_aug",
    unlabeled: Annotated[str, typer.Option(help="Folder of further unlabeled images.")] = "",
    longest: Annotated[int, typer.Option(help="Shrink images to so many pixels on the longer side; 0: not.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace an earlier pack.")] = False,
) -> None:
    """Decode a data set into one file, which takes the place of its folder: --root FILE.

    Records of runs on it are those of runs on the folder; with --longest those of runs with the same --longest.
    """
    from ..data.open import open_data, whole_number
    from ..data.packed import pack

    opened = open_data(data, root, classes, train_list, unlabeled=unlabeled)
    side = whole_number("longest", longest, 16) if longest else 0
    made = pack(opened, out, longest=side, overwrite=overwrite, progress=sys.stdout.isatty())
    shrunk = f", shrunk to {side} pixels" if side else ""
    typer.echo(
        f"{out}: {len(made.train)} training and {len(made.val)} validation images{shrunk}, "
        f"{out.stat().st_size / 1e6:.0f} MB, data {made.sha256[:12]}, content {made.content[:12]}\n"
        f"use it: semiseg train --data {data} --root {out}"
    )


def _as_listed(data: SegmentationData, labeled: Path, unlabeled: Path | None) -> Split:
    """Lists as they are: ids that are wrong are for the report to find."""
    from ..data.splits import Split, read_list

    there = {*data.train, *data.val}
    ids = read_list(labeled, there)
    known = set(ids)
    others = read_list(unlabeled, there) if unlabeled else tuple(key for key in data.train if key not in known)
    return Split(labeled.stem, ids, others, "file")


def _colored(text: str) -> str:
    if os.environ.get("NO_COLOR"):
        return text
    return re.sub(
        r"^(ERROR|WARNING|NOTE)(?=:)", lambda m: typer.style(m[1], fg=_COLORS[m[1]], bold=True), text, flags=re.M
    )
