# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-dgcl)=
# # DGCL: density-guided contrastive learning
#
# {cite:t}`wang2023dgcl`, *Hunting Sparsity*, CVPR 2023.
#
# Pseudo-labels say which class a pixel has; they do not say how well its feature has been learned. DGCL reads that off
# the geometry: within a class, features that lie close together are settled, features in sparse regions are not, however
# sure the classifier is of them. So the sparsest features of each class are drawn to the middle of the densest ones, and
# away from other classes. Nothing but a memory of past features and a projection head is added to self-training.
#
# **In this chapter**: the idea and its equations beside the code that runs them; a trained model and the same model
# without the contrast; where its sparse features lie and whether they are the wrong ones; how well the classes come
# apart; the numbers, with their seeds; and where our reading departs from the paper or from its released code. To make it
# your own:
#
# ```sh
# papermill notebooks/dgcl.ipynb out.ipynb -p split 1_16 -p seed 1
# papermill notebooks/dgcl.ipynb out.ipynb -p changes "dgcl.sampling=random dgcl.memory=False"
# ```

# %% tags=["parameters"]
variant = "default"  # or DGCL as paper, or as official (code) have it
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
import numpy as np
import pandas as pd
from IPython.display import Markdown, display

from semiseg.inference.model import load_exported
from semiseg.methods.dgcl import DGCLOptions
from semiseg.notebook import repo_root
from semiseg.recipe import Recipe
from semiseg.runs import find_runs
from semiseg_book import paper_tables, pictures, tables
from semiseg_book.chapters import dgcl as figures
from semiseg_book.notebook import counts, prepare

prepared = prepare("dgcl", globals(), own=["variant"])
settings, images, partition = prepared.recipe, prepared.data, prepared.split
counts(prepared)

# %% [markdown]
# ## The idea, in equations
#
# **Host.** Student and teacher {cite:p}`tarvainen2017meanteacher`; the teacher labels the weak view of an unlabeled image,
# and the student must agree on the same view with a rectangle of another image pasted into it
# {cite:p}`french2020cutmixseg`. No threshold on confidence: of each batch, the share $\beta_t$ of pixels with the highest
# entropy is left out, and that share falls to zero,
#
# $$
# \mathcal{L}_{unsup} = \frac{1}{N_u HW} \sum_{i,j} \ell_{ce}\big(p_{ij},\, y_{ij}\big)\,
# \mathbf{1}\big[\mathcal{H}(\hat p_{ij}) < \eta_{\beta_t}\big], \qquad \beta_t = \beta_0 (1 - t / T) .
# $$ (eq-dgcl-unsup)
#
# **Density.** Each class keeps a memory $\mathcal{P}^c$ of the student's features, first in, first out, with a quota per
# step so that large objects do not fill it. The density of a feature $v$ of the class is its mean cosine similarity to its
# $k$ nearest neighbors there, averaged over several $k$,
#
# $$
# d(v) = \frac{1}{n} \sum_{i=1}^{n} \frac{1}{k_i} \sum_{v' \in \mathcal{N}_{k_i}(v)} \frac{v^\top v'}{\|v\|\,\|v'\|},
# \qquad (k_1, k_2, k_3) = (8, 16, 32) .
# $$ (eq-dgcl-density)
#
# The neighborhoods are nested, so one search for 32 neighbors gives all three.
#
# **Contrast.** Of each class in the batch, the features of least density are the anchors $\mathcal{Q}^c$. The densest of
# the batch and the densest of the memory average to a center $r^c$. With a projection $g$ and negatives $n$ drawn at random
# from other classes,
#
# $$
# \mathcal{L}_{contra} = -\frac{1}{|\mathcal{C}|} \sum_{c} \frac{1}{|\mathcal{Q}^c|} \sum_{q \in \mathcal{Q}^c}
# \log \frac{e^{\cos(g(q),\, r^c) / \tau}}{e^{\cos(g(q),\, r^c) / \tau} + \sum_n e^{\cos(g(q),\, g(n)) / \tau}} .
# $$ (eq-dgcl-contrast)
#
# The objective is $\mathcal{L}_{sup} + \lambda_{unsup}\mathcal{L}_{unsup} + \lambda_{contra}\mathcal{L}_{contra}$. This is
# how a class chooses, as it runs in `semiseg/methods/dgcl.py`:
#
# ```{literalinclude} ../semiseg/methods/dgcl.py
# :pyobject: density
# :language: python
# ```
#
# ```{literalinclude} ../semiseg/methods/dgcl.py
# :pyobject: DensityContrast._choose
# :language: python
# ```

# %% [markdown]
# ## The run
#
# Epoch 1 uses labels alone; then self-training starts and the memories fill, and each class joins the contrast as soon as
# its own memory can measure density. The second run differs in one number: the weight of the contrast is 0. It is the
# *self-training* baseline of the paper's figures. Numbers below are of the last epoch; the teacher is the headline.

# %% tags=["nbval-ignore-output", "remove-output"]
run = prepared.train()
alone = prepared.train(settings.changed({"dgcl.weight": 0.0}))

# %% tags=["hide-input"]
comparable = tables.same_setting(run, find_runs(repo_root() / "runs", local=True))
baselines = {r.label: r for r in comparable if r.label != "dgcl"}
baselines = [baselines[m] for m in ("supervised", "mean_teacher") if m in baselines]
o, d = settings.optimization, settings[DGCLOptions]
print(f"{run.record['parameters']:,} parameters, {run.record['last']['step']} steps")
print(f"{o.batch} labeled and {o.batch} unlabeled images per step")
print(f"per class: memory of {d.bank}, {d.anchors} anchors, {d.keys} + {d.keys} keys, {d.negatives} negatives")
tables.headline(run)

# %% tags=["hide-input"]
both = pd.DataFrame({"self-training": [100 * alone.miou], "DGCL": [100 * run.miou]}, index=["mIoU, %"])
both.round(2)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dgcl-curves", "caption": "Left: validation mIoU of the teacher, with the baselines of the same seed and labeled images where they were run. Middle: the terms of the objective, with their weights. Right: share of pixels whose pseudo-label is kept, and how often it is right (against masks that training never sees)."}}
fig = pictures.curves(run, baselines)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dgcl-contrast", "caption": "Left: mean density of keys, of all pixels and of anchors in their class. Right: share of unlabeled pixels with a pseudo-label, share that takes part in the contrast under its stricter filter, and share of the classes of a batch whose memory is ready."}}
fig, logged = figures.contrast_curves(run.metrics)

# %% tags=["hide-input"]
logged.round(3).tail(1).T

# %% [markdown]
# ### Class by class

# %% tags=["hide-input"]
tables.per_class(run, baselines)

# %% [markdown]
# ### Predictions
#
# As Fig. 4 of the paper: self-training and DGCL on validation images, beside the truth.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dgcl-predictions", "caption": "Validation images, predictions of the teachers, ground truth."}}
def teacher_of(r):
    made = Recipe.from_dict(r.record["recipe"])
    return load_exported(made, len(images.classes), r.folder / "model.safetensors").teacher.model


networks = {"self-training": teacher_of(alone), "DGCL": teacher_of(run)}
shown = [images.val[i] for i in np.linspace(0, len(images.val) - 1, min(7, len(images.val))).astype(int)]
fig = pictures.predictions(images, shown, networks)

# %% tags=["hide-input"]
figures.image_scores(networks, images, shown).round(1)

# %% [markdown]
# ## Dense and sparse features
#
# The paper's Fig. 1, by t-SNE {cite:p}`maaten2008tsne`: features of validation pixels, of the classes predicted most often, all
# with high confidence. The classifier is equally sure of every one of them; their density within the class differs all the same.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dgcl-density", "caption": "t-SNE of features of confident validation pixels: (a) by predicted class, (b) by density within the class."}}
seen = {name: figures.pixels(network, images, images.val[:64]) for name, network in networks.items()}
largest = figures.largest_classes(seen["DGCL"])
threshold = 0.95 if scale != "smoke" else 0.0  # an untrained network is sure of nothing
fig, points = figures.density_map(
    seen["DGCL"], images.classes, images.palette, shown=largest, threshold=threshold, seed=seed
)

# %% [markdown]
# Does density tell what confidence does not? The same pixels, in quarters by density within their class:

# %% tags=["hide-input"]
figures.density_and_mistakes(points).round({"density": 3, "right": 1})

# %% [markdown]
# ## How well the classes come apart
#
# The paper's Fig. 3 and Table 4: validation features with and without the contrast, classes as predicted, truth not used.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dgcl-tsne", "caption": "t-SNE of validation features, colored by predicted class: self-training alone, and with the density-guided contrast."}}
fig, layout = figures.feature_maps(seen, images.classes, images.palette, most=300, drawn=150, seed=seed)

# %% tags=["hide-input"]
scores = figures.clustering(seen)
scores.round(3)

# %% tags=["hide-input"]
better = {"Silhouette": 1, "Calinski-Harabasz": 1, "Davies-Bouldin": -1}
gained = [name for name, sign in better.items() if sign * (scores[name]["DGCL"] - scores[name]["self-training"]) > 0]
display(Markdown(f"With the contrast, {len(gained)} of 3 scores are better ({', '.join(gained) or 'none'})."))

# %% [markdown]
# ## Does it help?
#
# All committed runs of this setting, on the same labeled images, seed by seed. A difference is *paired*: two runs of one
# seed share data, labeled images, initial encoder and length. DGCL pastes but does not change colors, as in its paper;
# `mean_teacher` does both, and marks confident pixels by a threshold.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-dgcl-seeds", "caption": "mIoU of the teacher after the last epoch: every seed, and the mean as a bar."}}
committed = [
    r
    for r in tables.standard(find_runs(repo_root() / "runs"))
    if (r.record["recipe"]["data"], r.record["recipe"]["scale"]) == ("digits", "tiny")
    and r.label in ("supervised", "mean_teacher", "dgcl")
]
fig = pictures.seeds(tables.table(committed))

# %% tags=["hide-input"]
tables.over_seeds(committed)

# %% tags=["hide-input"]
gains = tables.gain_summary(committed, [("dgcl", "supervised"), ("dgcl", "mean_teacher")])
gains

# %% [markdown]
# ## Ablations
#
# Every row of the paper's Tables 5, 6 and 7 is a run of this notebook with `-p changes`:
#
# | table | row | changes |
# |---|---|---|
# | 5 | I: supervised | another method: `notebooks/recipe.ipynb` with `-p method supervised` |
# | 5 | II: + $\mathcal{L}_{unsup}$ | `dgcl.weight=0` |
# | 5, 6 | III: random anchors, average as center | `dgcl.sampling=random dgcl.memory=False` |
# | 5 | IV: density in the batch | `dgcl.memory=False` |
# | 5, 6, 7 | V: density with memory, multi-scale | none |
# | 6 | low and high confidence | `dgcl.sampling=confidence` |
# | 7 | one scale $k$ | `dgcl.scales=k` |

# %% [markdown]
# ## The paper's tables
#
# What the paper prints, and what our records of the same recipe say: at its scale in columns of their own, on the
# embedded set in a table below. An empty cell has a command that fills it.

# %% tags=["hide-input"]
paper_tables.show("dgcl", 1)

# %% tags=["hide-input"]
paper_tables.show("dgcl", 2)

# %% tags=["hide-input"]
paper_tables.show("dgcl", 3)

# %% tags=["hide-input"]
paper_tables.show("dgcl", 4)

# %% tags=["hide-input"]
paper_tables.show("dgcl", 5)

# %% tags=["hide-input"]
paper_tables.show("dgcl", 6)

# %% tags=["hide-input"]
paper_tables.show("dgcl", 7)

# %% [markdown]
# ## Deviations
#
# Where paper and released code (Gavinwxy/DGCL at commit 5f41130) disagree, both readings are options of
# `semiseg.methods.dgcl.DGCLOptions`; `-p variant paper` and `-p variant official` choose all of them at once.
#
# | topic | paper | released code | here |
# |---|---|---|---|
# | denominator of {eq}`eq-dgcl-contrast` | negatives alone | positive and negatives | `positive_in_denominator=True`; `False` |
# | similarity | inner product | cosine | `cosine=True`; `False` |
# | over anchors and classes | sum | mean | `reduction="mean"`; `"sum"` |
# | center | projection of the mean feature | mean of projections, those of the memory as old as it is | `center="projections"`; `"features"`, `"fresh_projections"` |
# | anchors, keys per class | 256, 256 + 256 | 200, 50 + 50 | 200, 50 + 50; 256, 256 + 256 |
# | negatives | a draw per anchor | a draw per class | `negatives_of="class"`; `"anchor"`, out of 8 times as many |
# | weights of the two terms | 1, 1 | 0.5, 0.5; the second once more divided by the number of processes | 0.5, 0.5; 0.125 in `official` on VOC |
# | divisor of {eq}`eq-dgcl-unsup` | all pixels | kept pixels, times all over kept | `divisor="kept"`; `"valid"`, `"kept_scaled"` |
# | fall of $\beta_t$ | each step, from the start | each epoch, from the first with unlabeled images | each step, from there; `drop_falls` |
# | labels of the contrast | as the pseudo-labels | a stricter filter of 80 % falling to 10 % | `contrast_drop=(0.8, 0.1)`; `None` |
# | background | contrasted | negatives only, on Cityscapes the class *road* | `exclude=(0,)`, none on Cityscapes; `()` |
# | contrast begins | not stated | when the memories of all classes are full; never, if one class does not occur | class by class; `ready="all"` |
# | density of a class of 32 pixels or fewer | not stated | 1 | measured; `equal_when_few=True` |
# | neighbors | memory and the feature itself | memory | `own_neighbor=False`; `True` |
# | memory of a class | fixed size | 10,000, at most 1,000 per step | the same, smaller with smaller images |
# | memory of the background | kept | kept, never read | not kept where it is not contrasted |
# | teacher's batch normalization | not stated | training mode with dropout | averaged buffers, evaluation mode; `"ema_train"` |
# | input of the projection | 512 channels | 256 | the decoder's width |
# | the first convolution of the head | linear layer with bias | the same | without, as batch normalization follows; its statistics include the pasted images |
# | several processes | not stated | memory gathered from all | the same, the quota shared among them |
# | reported epoch | not stated | best of all epochs and of both networks on the validation set | last epoch, teacher; the best is shown beside it |
# | numbers of pixels on small images | 129 × 129 features | same | in proportion to the side of the area of a step; neighbors stay 8, 16, 32 |
#
# At `scale="tiny"` the network, the images and the schedule are small; only `scale="paper"` on PASCAL VOC is comparable
# with the paper's tables, and takes days on one GPU.
