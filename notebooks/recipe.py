# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-recipe)=
# # Any recipe
#
# The chapters train their own methods. This notebook trains any of them, and every training scheme, with any plug-in and
# any option changed; it fills the cells of the papers' tables. What is still wanted, as commands ready to run:
#
# ```sh
# semiseg runs missing --limit 5
# ```
#
# A change is written `part.option=value`; several are separated by spaces. Parts and options are the fields of
# `semiseg.recipes.Recipe`:
#
# ```sh
# papermill notebooks/recipe.ipynb out.ipynb -p method cps -p plug_ins upc -p changes "upc.select=random"
# papermill notebooks/recipe.ipynb out.ipynb -p method ddfp -p changes "ddfp.step=vat ddfp.eps=1.0" -p seed 1
# ```

# %% tags=["parameters"]
method = "cps"  # supervised, mean_teacher, cps, unimatch, ..., ddfp, dgcl, esl
plug_ins = ""  # upc, wpl
changes = ""  # changed options, written as above
split = "1_8"  # labeled share: 1_16, 1_8, 1_4, 1_2 or full; with a family, one of its names
data = "digits"  # digits (embedded), voc, cityscapes, camvid, coco, or folder (your own images and masks)
scale = "tiny"  # smoke (seconds), tiny (minutes), paper (the numbers of the paper; not for digits and camvid)
seed = 0
root = ""  # folder of the data set in its official layout; of your own: with images/ and masks/
classes = ""  # voc: to keep; folder: in the order of their ids, or a TOML or JSON file; commas between; empty: all
train_list = "train_aug"  # voc: name of the list of training images; others: a file below root; unchanged: all
labeled_list = ""  # a list file of labeled images, instead of the seeded partition
family = ""  # published lists the split is of: classic, cps, u2pl, ... (`semiseg data fetch splits`); empty: seeded
weights = ""  # of the encoder: imagenet or a file; empty: by scale
workers = 0  # data loading processes

# %% tags=["hide-input"]
from dataclasses import replace

import pandas as pd

from semiseg.notebook import (
    choice,
    open_data,
    open_split,
    parse_split,
    repo_root,
    seed_number,
    train_or_reuse,
    whole_number,
)
from semiseg.recipes import METHODS, SCALES
from semiseg.runs import find_runs
from semiseg.variants import variant
from semiseg_book import pictures, tables
from semiseg_book.style import title, use_style

split, seed, workers = parse_split(split, family), seed_number(seed), whole_number("workers", workers, 0)
settings = variant(
    choice("method", method, METHODS),
    plug_ins,
    changes,
    data=data,
    split=split,
    scale=choice("scale", scale, SCALES),
    seed=seed,
)
if weights:
    encoder, boxes_encoder = settings.network, settings.detector
    settings = replace(settings, network=replace(encoder, weights=weights))
    settings = replace(settings, detector=replace(boxes_encoder, weights=weights))
images = open_data(data, root, classes, train_list)
partition = open_split(images, split, seed, labeled_list, family)
settings = replace(settings, split=partition.name)
use_style()
# %config InlineBackend.figure_formats = ["retina"]
pd.DataFrame(
    {
        "images": [len(partition.labeled), len(partition.unlabeled), len(images.val)],
    },
    index=pd.Index(["labeled", "unlabeled", "validation"], name=f"{images.name}, split {partition.name}"),
)

# %% tags=["nbval-ignore-output", "remove-output"]
run = train_or_reuse(settings, images, partition, workers=workers)

# %% [markdown]
# ## What came out

# %% tags=["hide-input"]
comparable = tables.same_setting(run, find_runs(repo_root() / "runs", local=True))
baselines = {r.label: r for r in tables.standard(comparable) if r.label != run.label}
baselines = [baselines[m] for m in ("supervised", settings.method) if m in baselines]
print(f"{title(run.label)}{', ' + changes if changes else ''}: split {partition.name}, seed {seed}")
print(f"{run.record['parameters']:,} parameters, {run.record['last']['step']} steps")
tables.headline(run)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-recipe-curves", "caption": "Left: validation mIoU of the teacher after each epoch, with the baselines of the same seed and labeled images where they were run. The other panels: the terms of the objective, and how pseudo-labels fare, where the method has them."}}
fig = pictures.curves(run, baselines)

# %% tags=["hide-input"]
tables.per_class(run, baselines)
