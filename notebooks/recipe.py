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
# python -m semiseg_book missing --limit 5
# ```
#
# A change is written `part.option=value`; several are separated by spaces. `semiseg methods cps` lists the parts and
# options that a method reads, with what they mean.
#
# ```sh
# papermill notebooks/recipe.ipynb out.ipynb -p method cps -p plug_ins upc -p changes "upc.select=random"
# papermill notebooks/recipe.ipynb out.ipynb -p method ddfp -p changes "ddfp.step=vat ddfp.eps=1.0" -p seed 1
# ```

# %% tags=["parameters"]
method = "cps"  # supervised, mean_teacher, cps, unimatch, ..., ddfp, dgcl, esl
plug_ins = ""  # upc, wpl
split = "1_8"  # labeled share: 1_16, 1_8, 1_4, 1_2 or full; with a family, one of its names
data = "digits"  # digits (embedded), voc, cityscapes, camvid, coco, or folder (your own images and masks)
scale = "tiny"  # smoke (seconds), tiny (minutes), paper (the numbers of the paper; not for digits and camvid)
seed = 0  # of everything random
changes = ""  # options to change, as `semiseg train --set` takes them, spaces between; `semiseg methods` lists them
root = ""  # folder of the data set in its official layout; of your own: with images/ and masks/
classes = ""  # voc: to keep; folder: in the order of their ids, or a TOML file; commas between; empty: all
train_list = "train_aug"  # voc: name of the list of training images; others: a file below root; unchanged: all
labeled_list = ""  # a list file of labeled images, instead of the seeded partition
family = ""  # published lists the split is of, as cps (`semiseg data fetch splits`); empty: the seeded ones
workers = 0  # data loading processes
overwrite = False  # train again where this very run is finished, instead of reading it

# %% tags=["hide-input"]
from semiseg.notebook import repo_root
from semiseg.runs import find_runs
from semiseg_book import pictures, tables
from semiseg_book.notebook import counts, prepare
from semiseg_book.style import title

prepared = prepare(method, globals(), plug_ins=plug_ins, own=["method", "plug_ins"])
counts(prepared)

# %% tags=["nbval-ignore-output", "remove-output"]
run = prepared.train()

# %% [markdown]
# ## What came out

# %% tags=["hide-input"]
comparable = tables.same_setting(run, find_runs(repo_root() / "runs", local=True))
baselines = {r.label: r for r in tables.standard(comparable) if r.label != run.label}
baselines = [baselines[m] for m in ("supervised", prepared.recipe.method) if m in baselines]
print(f"{title(run.label)}{', ' + changes if changes else ''}: split {prepared.split.name}, seed {seed}")
print(f"{run.record['parameters']:,} parameters, {run.record['last']['step']} steps")
tables.headline(run)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-recipe-curves", "caption": "Left: validation mIoU of the teacher after each epoch, with the baselines of the same seed and labeled images where they were run. The other panels: the terms of the objective, and how pseudo-labels fare, where the method has them."}}
fig = pictures.curves(run, baselines)

# %% tags=["hide-input"]
tables.per_class(run, baselines)
