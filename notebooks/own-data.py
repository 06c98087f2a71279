# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-own-data)=
# # Your own images
#
# From a folder of photographs, a few of which have masks, to a trained model and its predictions: check the folder,
# train, look at the scores, predict new images. Run as it is, this notebook makes a small folder from the embedded
# scenes, so that every step can be seen at work. With your folder:
#
# ```sh
# papermill notebooks/own-data.ipynb mine.ipynb -p root /path/mine -p photos /path/new -p out /path/predictions
# ```
#
# ## How to lay out a folder
#
# ```text
# mine/images/a.jpg        mine/masks/a.png     an image and its mask, of the same name (or all as a_mask.png)
# mine/images/b.jpg                             no mask: it is unlabeled
# mine/unlabeled/c.jpg                          unlabeled too; this folder is optional
# mine/val/images/d.jpg    mine/val/masks/d.png validation; without it a fifth of the pairs is taken for it
# mine/classes.toml                             what masks hold; without it their values are the classes
# ```
#
# A mask is a PNG of the size of its image, one byte per pixel: 0 for the first class, 1 for the second, and 255 where
# nobody knows. Colored masks can be read too when `classes.toml` lists the colors. **Unlabeled images need no mask**;
# they are what semi-supervised learning lives on, so bring as many as there are.

# %% tags=["parameters"]
method = "mean_teacher"  # supervised, mean_teacher, unimatch, ddfp, ...
split = "full"  # share of the images with masks that is labeled: full, or less to see what masks are worth
longest = 0  # images are shrunk to at most so many pixels on their longer side; 0: not at all
photos = ""  # new images to predict: a file, a folder or a pattern; empty: those of the made folder, or root/images
out = ""  # folder for the predictions; empty: a temporary one
seed = 0  # of everything random
changes = ""  # options to change, as `semiseg train --set` takes them, spaces between; `semiseg methods` lists them
root = ""  # folder of the data set in its official layout; of your own: with images/ and masks/
classes = ""  # voc: to keep; folder: in the order of their ids, or a TOML file; commas between; empty: all
labeled_list = ""  # a list file of labeled images, instead of the seeded partition
workers = 0  # data loading processes
overwrite = False  # train again where this very run is finished, instead of reading it

# %% tags=["hide-input"]
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from semiseg.data.inspect.report import inspect
from semiseg.data.open import open_data
from semiseg.data.sets.digits import Digits
from semiseg.inference.model import load_model
from semiseg.inference.predict import Wanted, find_images, predict_files
from semiseg.notebook import one_line, repo_root
from semiseg.options import Evaluation
from semiseg.recipe import recipe
from semiseg_book import pictures, tables
from semiseg_book.notebook import counts, prepare

# %% [markdown]
# ## A folder made on the spot
#
# Scenes with handwriting, and a mask of its ink for a few of them. Four collages of other scenes, larger than any
# training image, stand for the new photographs. With a `root` of your own nothing is made.


# %% tags=["hide-input"]
def make_folder(folder: Path, masks: int = 24, unlabeled: int = 240, val: int = 64) -> Path:
    """Scenes in the layout above, the mask 1 where there is ink, and collages of further scenes in photos/."""
    scenes = Digits()
    places = {
        "images": scenes.train[:masks],
        "unlabeled": scenes.train[masks : masks + unlabeled],
        "val/images": scenes.val[:val],
    }
    for place, keys in places.items():
        (folder / place).mkdir(parents=True)
        for key in keys:
            Image.fromarray(scenes.image(key).movedim(0, -1).numpy()).save(folder / place / f"{key}.png")
    for place, keys in (("masks", places["images"]), ("val/masks", places["val/images"])):
        (folder / place).mkdir(parents=True)
        for key in keys:
            Image.fromarray((scenes.mask(key).numpy() > 0).astype(np.uint8)).save(folder / place / f"{key}.png")
    (folder / "photos").mkdir()
    for number in range(4):
        six = [scenes.image(key).movedim(0, -1).numpy() for key in scenes.val[val + 6 * number :][:6]]
        Image.fromarray(np.vstack([np.hstack(six[:3]), np.hstack(six[3:])])).save(
            folder / "photos" / f"collage-{number + 1}.png"
        )
    (folder / "classes.toml").write_text('names = ["background", "ink"]\ncolors = [[0, 0, 0], [230, 25, 75]]\n')
    return folder


temporary = TemporaryDirectory()
made = not root
if made:
    root = str(make_folder(Path(temporary.name) / "mine"))
prepared = prepare(method, globals() | {"data": "folder"}, own=["method", "longest", "photos", "out"])
with one_line():
    if longest:
        prepared = replace(prepared, data=open_data("folder", root, classes, longest=longest))
    if made:  # images of the embedded set get its numbers, and few epochs
        small = recipe(method, "digits", prepared.split.name, "tiny", seed)
        small = replace(small, data="folder", evaluation=Evaluation("whole", 32))
        small = small.changed("optimization.epochs=4 optimization.epoch_steps=80").changed(changes)
        prepared = replace(prepared, recipe=small)
settings, images, partition = prepared.recipe, prepared.data, prepared.split
counts(prepared)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-scenes", "caption": "Labeled images of the folder above their masks: if a mask is empty, shifted or in the wrong colors, it shows here."}}
fig = pictures.scenes(images, partition.labeled[:8])

# %% [markdown]
# ## Check it first
#
# Wrong masks are the most frequent reason for a training that goes nowhere. `inspect` opens every image and mask and
# says what it finds: pairs of different sizes, values that are no class, masks saved with 0 and 255, unreadable files,
# one image in two parts, a class that no labeled image shows. `semiseg data check` does the same from a shell, and
# writes the report as a page with pictures.

# %%
report = inspect(images, partition, crop=settings.optimization.crop)
print(f"{report.verdict}")
for finding in report.findings:
    print(f"{finding.severity}: {finding.what}: {', '.join(finding.where[:5]) or finding.advice}")

# %%
report.classes

# %% [markdown]
# ## Train
#
# The recipe's numbers for images of any size start from ImageNet weights and crops of 128 pixels; they are made to see
# a first result within minutes. For a result that counts, take a larger encoder and crop and train longer, for example
# `-p changes "network.backbone=resnet50 optimization.crop=321 optimization.epochs=80"`, on a GPU. The made folder has
# 32-pixel images and gets the encoder and the numbers of the embedded set.
#
# `semiseg methods network`, `optimization` and `evaluation` say what can be changed. Another batch than the recipe's?
# A learning rate in proportion to it is the rule of thumb; `semiseg train` prints it.

# %%
run = prepared.train()
print(f"the run: {run.folder.relative_to(repo_root())}")
tables.per_class(run)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-curves", "caption": "Left: validation mIoU after each epoch; if it still rises at the end, train longer. Middle: the loss terms. Right: the share of pixels that get a pseudo-label, and how many of those are right where a mask is there to tell."}}
fig = pictures.curves(run)

# %% [markdown]
# The scores are those of the last epoch. If the curve falls at the end, do not pick the best epoch by the validation
# images, which would then judge what they chose: hold out a part of the *labeled* images with
# `-p changes "evaluation.held_out=0.2"`. They choose the epoch, and the record names it.
#
# ## Predict
#
# `load_model` reads the run's teacher; `predict_files` takes images of any size, those too large for one pass in
# overlapping windows, and writes masks with the classes' colors as palette, overlays, and here the entropy as well.

# %%
model = load_model(run.folder)
inputs = photos or Path(root) / ("photos" if made else "images")
target = Path(out) if out else Path(temporary.name) / "predictions"
found = find_images([inputs], target)
outcome = predict_files(model, found, target, Wanted(entropy=True), overwrite=True)
print(f"{len(outcome.written)} predicted, {len(outcome.failed)} unreadable")
print(*sorted({path.relative_to(target).parts[0] for path in target.rglob("*.png")}), sep=", ")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-predictions", "caption": "New images, the classes laid over them, and the entropy of the prediction (light: unsure). The model was trained on single scenes and sees six at once; it is least sure along the outlines of the strokes."}}
fig = pictures.predicted(found, target, list(found)[:4], images)

# %% tags=["hide-cell", "remove-cell"]
temporary.cleanup()

# %% [markdown]
# ## The same from a shell
#
# ```sh
# semiseg data check --data folder --root /path/mine
# semiseg train --data folder --root /path/mine --split full --method mean_teacher \
#   --set evaluation.held_out=0.2 --out runs/local/mine
# semiseg evaluate runs/local/mine --root /path/mine
# semiseg predict runs/local/mine '/path/new/**/*.jpg' --out /path/predictions --entropy
# semiseg export runs/local/mine /path/model
# ```
#
# `semiseg export` writes what can be handed on: weights, configuration and a model card; `--format torch` adds a
# program that runs without this package.
