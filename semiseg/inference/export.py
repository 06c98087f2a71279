"""A trained model to hand on: weights without the rest of the run, what is needed to use them, and a model card."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import torch
import torch.nn as nn
from torch import Tensor

from .. import __version__
from ..data.transforms import MEAN, STD
from ..runs import WEIGHTS, Run, write_text
from ..training.checkpoint import write_tensors
from ..training.folder import check_replaceable, move_into_place
from .model import CONFIG, Model, load_model

Format = Literal["safetensors", "torch"]
CARD, PROGRAM = "README.md", "model.pt2"
MADE = frozenset({CARD, PROGRAM, CONFIG, WEIGHTS})
TERMS = {
    "digits": "Scenes drawn from the handwritten digits of scikit-learn (Alpaydin and Kaynak, UCI, CC BY 4.0).",
    "patchwork": "Scenes of cloth, drawn from random numbers by semiseg.",
    "voc": "PASCAL VOC 2012; its photographs come from Flickr, whose terms apply to their use.",
    "cityscapes": "Cityscapes, for non-commercial purposes; see the license of the data set before passing this on.",
    "coco": "COCO; annotations CC BY 4.0, photographs under the terms of Flickr.",
    "camvid": "CamVid; for research, see the terms of the data set before passing this on.",
    "folder": "Images of the model's author; ask them for the terms.",
}


class _Logits(nn.Module):
    """images (B, 3, H, W), normalized -> logits (B, K, H, W)."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).logits


def export_model(run: Run, folder: Path | str, form: Format = "safetensors", overwrite: bool = False) -> Path:
    """Write model.safetensors, config.json and README.md (a model card) into a new folder; all of it or nothing.

    Args:
        run: a finished run with weights.
        folder: to be made.
        form: "torch" adds model.pt2, a program of torch.export for images of any number and size, kept if it computes
            what the network does.
        overwrite: replace an earlier export in the folder.

    Raises:
        FileNotFoundError: a run without weights.
        ValueError: a folder that holds something else, an unknown format, or a program that computes other logits.
    """
    folder = Path(folder)
    if form not in get_args(Format):
        raise ValueError(f"unknown format {form!r}; expected one of {', '.join(get_args(Format))}")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / CONFIG).is_file():
            raise ValueError(f"{folder} is not empty; choose a new folder")
        check_replaceable(folder, MADE, overwrite, "an earlier export")
    model = load_model(run.folder, "cpu")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as part:
        _write(run, model, Path(part) / "made", form)
        move_into_place(Path(part) / "made", folder, MADE)
    return folder


def _write(run: Run, model: Model, folder: Path, form: Format) -> None:
    folder.mkdir(parents=True)
    write_tensors({k: v for k, v in model.network.state_dict().items() if isinstance(v, Tensor)}, folder / WEIGHTS)
    config = _config(run, model, hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest())
    write_text(folder / CONFIG, json.dumps(config, indent=1))
    write_text(folder / CARD, card(run, config))
    if form == "torch":
        export_program(model, folder / PROGRAM)


def _config(run: Run, model: Model, sha256: str) -> dict[str, Any]:
    """What it takes to build the network and to feed it, and where it comes from."""
    r = run.record
    return {
        "format": 1,
        "semiseg": __version__,
        "classes": list(model.classes),
        "palette": [list(color) for color in model.palette],
        "input": {"channels": "RGB in 0..1", "mean": list(MEAN), "std": list(STD)},
        "recipe": r["recipe"],
        "source": {
            "run": run.folder.name,
            "recipe_sha256": r["recipe_sha256"],
            "data": r["data"]["name"],
            "data_sha256": r["data"]["sha256"],
            "split_sha256": r["split"]["sha256"],
            "commit": r["environment"].get("semiseg_commit"),
        },
        "weights_sha256": sha256,
    }


def card(run: Run, config: Mapping[str, Any]) -> str:
    """The model card in Markdown; every number in it is of the run's record."""
    r, scores, recipe = run.record, run.exported, run.record["recipe"]
    data, split = r["data"], r["split"]
    epoch = r.get("selected", r["last"])["epoch"]
    chosen = "chosen on held-out labeled images" if "selected" in r else "the last one"
    head = "\n".join(["---", "library_name: semiseg", "pipeline_tag: image-segmentation", "---"])
    about = [
        ("method", run.label),
        ("network", "DeepLabV3+ with {backbone}, output stride {output_stride}".format(**recipe["network"])),
        ("data", f"{data['name']}, {split['labeled']} labeled and {split['unlabeled']} unlabeled images"),
        ("split", f"{split['name']} ({split['family']}), SHA256 `{split['sha256']}`"),
        ("seed", recipe["seed"]),
        ("epoch", f"{epoch}, {chosen}"),
        ("source run", f"`{run.folder.name}`, recipe SHA256 `{r['recipe_sha256']}`"),
        ("weights", f"`{WEIGHTS}`, SHA256 `{config['weights_sha256']}`"),
    ]
    e, iou = recipe["evaluation"], [_percent(v) for v in scores["iou"]]
    how = {"whole": "whole images", "center_crop": f"center crops of {e['size']}", "sliding": f"windows of {e['size']}"}
    return "\n\n".join(
        [
            head,
            f"# {run.label} on {data['name']}",
            "A semantic segmentation network: an RGB image in, a class for every pixel out.",
            _markdown(("", ""), about),
            "## Scores",
            f"On {data['val']} validation images ({how[e['protocol']]}), from the record of the source run: "
            f"mIoU {100 * scores['miou']:.2f} %, pixel accuracy {100 * scores['pixel_accuracy']:.2f} %.",
            _markdown(("class", "IoU, %"), [*zip(data["classes"], iou, strict=True)]),
            "## Use",
            "```sh\nsemiseg predict . IMAGES --out predictions\n```",
            "```python\nfrom semiseg.inference.model import load_model\n"
            "from semiseg.inference.predict import read_image\n\n"
            'mask = load_model(".")(read_image("image.jpg"))  # (H, W) class ids\n```',
            "## Data and license",
            f"{TERMS.get(data['name'], TERMS['folder'])} The weights carry no license of their own: they are bound by "
            "the terms of the data, and of the pretrained encoder where there was one"
            f" (`{recipe['network']['weights'] or 'none'}`).",
            "## Limits",
            _limits(split["classes_without_label"], r),
        ]
    ) + "\n"  # fmt: skip


def _limits(unseen: Sequence[str], record: Mapping[str, Any]) -> str:
    o = record["recipe"]["optimization"]
    lines = [
        f"- It was trained on crops of {o['crop']} pixels, resized by {o['resize'][0]:g} to {o['resize'][1]:g}; "
        "objects much smaller or larger in the image were not seen.",
        "- Every pixel gets one of the classes above, whatever it shows; images unlike the training data get confident "
        "nonsense too.",
        "- One run with one seed: another seed scores differently.",
    ]
    if unseen:
        lines.append(f"- No labeled image showed {', '.join(unseen)}.")
    return "\n".join(lines)


def _percent(share: float | None) -> str:
    return "not present" if share is None else f"{100 * share:.2f}"


def _markdown(head: tuple[str, str], rows: Sequence[tuple[str, Any]]) -> str:
    return "\n".join(f"| {a} | {b} |" for a, b in [head, ("---", "---"), *rows])


@torch.no_grad()
def export_program(model: Model, path: Path) -> None:
    """A torch.export program of the logits for images (B, 3, H, W) of any size, saved once it agrees with the network.

    Raises ValueError where it does not, or where the encoder depends on the size of the image in Python.
    """
    wrapped, side = _Logits(model.network).eval(), max(64, model.recipe.evaluation.size // 32 * 32)
    example = torch.rand(2, 3, side, side + 32)
    batch, height, width = (torch.export.Dim(name, min=least) for name, least in (("B", 1), ("H", 32), ("W", 32)))
    sizes = ({0: batch, 2: height, 3: width},)
    try:
        program = torch.export.export(wrapped, (example,), dynamic_shapes=sizes, strict=False)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{model.recipe.network.backbone} cannot be exported as a program: {reason}") from error
    for shape in ((2, 3, side, side + 32), (1, 3, 40, 72), (3, 3, 51, 64)):
        images = torch.rand(shape)
        wanted, found = wrapped(images), program.module()(images)
        if not torch.allclose(wanted, found, rtol=1e-4, atol=1e-4):
            off = float((wanted - found).abs().max())
            raise ValueError(f"the exported program differs from the network by {off:.2g} for images {shape}")
    torch.export.save(program, path)
