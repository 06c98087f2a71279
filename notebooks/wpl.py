# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-wpl)=
# # WPL: pseudo-labels weighted by rank statistics and a detector
#
# {cite:t}`howlader2024wpl`, *Weighting Pseudo-Labels via High-Activation Feature Index Similarity and Object Detection*,
# ECCV 2024.
#
# A threshold on confidence lets through pixels that are sure and wrong. WPL asks for two further opinions. Pixels of one
# class tend to share their **most activated feature channels**, whatever the values; a pseudo-label whose strongest channels
# are not those of its class gets a small weight. And a **detector**, trained on the labeled images alone with boxes made
# from their masks, confirms which unlabeled pixels may shape the picture of a class. The paper adds it to UniMatch
# {cite:p}`yang2023unimatch`, AugSeg {cite:p}`zhao2023augseg`, U2PL {cite:p}`wang2022u2pl` and AEL {cite:p}`hu2021ael`.
#
# **In this chapter**: the idea beside the code that runs it; what the detector finds and what it adds; a trained model,
# its weights in pictures and numbers; and where our reading departs from the paper or its released code. It plugs into
# any host that weighs pixels:
#
# ```sh
# papermill notebooks/wpl.ipynb out.ipynb -p host augseg -p split 1_16
# papermill notebooks/wpl.ipynb out.ipynb -p changes "wpl.k=3"
# ```
#
# Every figure and table of the paper's analysis is a run of this notebook with `-p changes`, or with another argument:
#
# | paper | changes | shown under |
# |---|---|---|
# | Fig. 1, weights against confidence | | {ref}`sec-wpl-weights` |
# | Fig. 5, (a) wrong labels that are confident, (b, c) values against ranks | | {ref}`sec-wpl-weights` |
# | Fig. 6 and supplement Fig. 3, other similarities | `wpl.similarity=cosine`, `euclidean` | {ref}`sec-wpl-ablations` |
# | Fig. 7, strongest channels | `wpl.k=3` | {ref}`sec-wpl-ablations` |
# | Table 3, components | `wpl.reliable=none` (PPW alone) or nothing (RPPI and PPW), with `-p host mean_teacher` | {ref}`sec-wpl-ablations` |
# | Table 4, classes | | class by class |
# | supplement Table 1, detector | `wpl.box_score=0.9` | {ref}`sec-wpl-detector` |
# | supplement Table 2, α | none; `-p alpha 0.4` | {ref}`sec-wpl-ablations` |
# | supplement Table 3, score of a box | `wpl.box_score=0.9` | {ref}`sec-wpl-ablations` |
# | supplement Table 4, size of a bank | `wpl.memory=64` | {ref}`sec-wpl-ablations` |

# %% tags=["parameters"]
host = "unimatch"  # unimatch, augseg, ael, u2pl or mean_teacher
variant = "default"  # or WPL as paper, or as official (code) have it
alpha = 1.0  # factor of the unlabeled terms (supplement Table 2)
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
import pandas as pd
import torch
from IPython.display import Markdown, display

from semiseg.data.boxes import Detections
from semiseg.inference.model import load_exported
from semiseg.methods.detector import DetectorOptions, thing_classes
from semiseg.methods.wpl import WPLOptions, with_alpha
from semiseg.notebook import one_line, repo_root
from semiseg.recipe import Recipe
from semiseg.runs import find_runs
from semiseg_book import compare, paper_tables, pictures, tables
from semiseg_book.chapters import wpl as figures
from semiseg_book.notebook import counts, prepare

prepared = prepare(host, globals(), plug_ins="wpl", own=["host", "alpha"])
settings, images, partition = prepared.recipe, prepared.data, prepared.split
if alpha != 1:
    with one_line():
        settings = with_alpha(settings, alpha)
if scale == "smoke":
    settings = settings.changed({"wpl.sure": 0.0})  # an untrained network is sure of nothing
options, boxing = settings[WPLOptions], settings[DetectorOptions]
hosts = ("unimatch", "augseg", "ael", "u2pl", "mean_teacher")
counts(prepared)

# %% [markdown]
# ## The idea, in equations
#
# The host's teacher gives every pixel $i$ of an unlabeled image a pseudo-label $\hat y_i = c$ and a feature $z_i$, the
# input of the last 1×1 convolution. The **prototype** $P_c$ is the mean of stored features of class $c$: labeled pixels that
# are predicted rightly and surely, and unlabeled ones that both the network (surely) and a detected box call $c$. The weight
# compares sets of channels, not values,
#
# $$
# \mathcal{W}_i = \frac{s_i}{k}, \qquad
# s_i = \big|\, \mathrm{top}_k(z_i) \cap \mathrm{top}_k(P_c) \,\big| ,
# $$ (eq-wpl-weight)
#
# and multiplies the pixel's loss,
#
# $$
# \mathcal{L}_u = \frac{1}{|\mathcal{D}_u|} \sum_{x^u} \frac{1}{WH} \sum_i
# \mathbf{1}\big[\max p_i \ge \tau\big]\, \mathcal{W}_i\, \ell_{ce}\big(\hat y_i, p^s_i\big) .
# $$ (eq-wpl-loss)
#
# The released code, from which the paper's results come, has $1 + s_i / k$: a pixel that shares nothing keeps half of the
# largest weight. So do the runs of this chapter; {ref}`sec-wpl-ablations` has both.
#
# As it runs in `semiseg/methods/wpl.py`; the sets are never sorted, since a channel is in $\mathrm{top}_k(z_i)$ exactly when
# it reaches the $k$-th largest value:
#
# ```{literalinclude} ../semiseg/methods/wpl.py
# :pyobject: shared_channels
# :language: python
# ```
#
# ```{literalinclude} ../semiseg/methods/wpl.py
# :pyobject: RankWeight.observe
# :language: python
# ```

# %% [markdown]
# ## The run
#
# First the detector: Faster R-CNN {cite:p}`ren2015faster` on the labeled images of the split, with a box around every
# connected component of a mask; a fifth of these images says when to stop. Then the host, with the boxes of the unlabeled
# images at hand; they follow each image through its augmentation. Numbers are of the last epoch; the teacher is the headline.

# %% tags=["nbval-ignore-output", "remove-output"]
run = prepared.train(settings)

# %% tags=["hide-input"]
recorded = find_runs(repo_root() / "runs", local=True)
plain = settings.without("wpl").as_dict()
alone = [r for r in recorded if r.record["recipe"] == plain and r.record["split"]["sha256"] == partition.sha256][:1]
o = settings.optimization
print(f"{run.record['parameters']:,} parameters, {run.record['last']['step']} steps")
print(f"{o.batch} labeled and {o.batch} unlabeled images per step")
tables.headline(run)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-wpl-curves", "caption": "Left: validation mIoU of the teacher, with the host alone where it was run. Middle: the terms of the objective, with their weights. Right: share of pixels whose pseudo-label is kept, and how often it is right (against masks that training never sees)."}}
fig = pictures.curves(run, alone)

# %% [markdown]
# ### Class by class
#
# As Table 4 of the paper.

# %% tags=["hide-input"]
tables.per_class(run, alone)

# %% [markdown]
# (sec-wpl-detector)=
# ## What the detector adds
#
# What it finds on unlabeled images, whose masks it has never seen.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-wpl-boxes", "caption": "Unlabeled images: detected boxes above the score of the recipe (solid, with their class) and boxes around the components of the hidden masks (dotted)."}}
def host_of(r):
    return load_exported(Recipe.from_dict(r.record["recipe"]), len(images.classes), r.folder / "model.safetensors")


trained = host_of(run)
network, weigher = trained.teacher.model, trained.weigh
boxed = thing_classes(images, boxing.things)
few = partition.unlabeled[: 200 if data == "digits" else 60]
detections = None
if options.reliable == "detector":
    detections = Detections.read(run.folder / "detections.safetensors")
    fig = figures.boxes_picture(detections, images, few[:8], boxed, options.box_score)

# %% tags=["hide-input"]
accuracy = None
if detections is not None:
    learned = run.record["detector"]
    print(f"{learned['epochs']} epochs, best F1 on held-out labeled images {learned['best']['f1']:.2f}")
    counted = figures.count_boxes(detections, images, few, boxed, score=options.box_score, min_pixels=boxing.min_pixels)
    accuracy = figures.box_accuracy(counted)
accuracy

# %% [markdown]
# As the first row of supplement Table 1: a box is right where it overlaps a true one of its class by at least 0.8 of their
# union. The paper gives no recall; a detector that finds little confirms little. The other rows of that table: confident
# pixels of the trained network on unlabeled images, split by whether a detected box of the same class holds them. If boxes
# are worth asking, the second group is right more often than the first.

# %% tags=["hide-input"]
groups = None
if detections is not None:
    pixels = figures.count_groups(network, detections, images, few, score=options.box_score, sure=options.sure)
    groups = figures.three_groups(pixels)
groups

# %% [markdown]
# (sec-wpl-weights)=
# ## What the weight sees
#
# As Fig. 1 of the paper: where the network is confident and wrong (red), the weight should be low. On the embedded scenes
# look at the background too, which is most of every image: it is one class in name, but of many looks, and a mean of many
# looks shares few strongest channels with each of them.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-wpl-weights", "caption": "Unlabeled images: truth, pseudo-label, confident pixels right (blue) or wrong (red), and the weight of every pixel."}}
fig = figures.weights(network, weigher, images, few[:5], options.sure)

# %% [markdown]
# The same in numbers, by the class of the pseudo-label. Within a class the weight does its work where right pixels weigh more
# than wrong ones; over all classes it also says which classes count, and there a large class of many looks counts little.

# %% tags=["hide-input"]
by_class = figures.mean_weights(network, weigher, images, few, options.sure)
both = by_class.iloc[:-1].dropna()
heavier = int((both["right: mean W"] > both["wrong: mean W"]).sum())
print(f"right pixels weigh more than wrong ones in {heavier} of {len(both)} classes that have both")
by_class

# %% [markdown]
# Over training, as Fig. 5 (a) of the paper: how many kept pseudo-labels are wrong, and what weight either kind gets. Kept are
# those above the threshold of the host, which the paper sets to 0.95.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-wpl-training", "caption": "Left: kept pseudo-labels that are right and wrong, by epoch. Right: mean weight of right, wrong and all kept pixels."}}
fig = figures.weight_curves(run)

# %% tags=["hide-input"]
end, threshold = run.metrics.iloc[-1], settings.consistency.tau
display(
    Markdown(
        f"In the last epoch {100 * (1 - end.pseudo_label_accuracy):.1f} % of the kept pseudo-labels are wrong (the host's "
        f"threshold is {threshold}). A right one weighs {end.weight_right:.2f} on average, a wrong one "
        f"{end.weight_wrong:.2f}."
    )
)

# %% [markdown]
# ### Are ranks steadier than values?
#
# As Fig. 5 (b, c): for confident, correct pixels of unlabeled images, the variance of their features relative to the mean
# square, and the Hamming distance between their strongest channels and the prototype's, relative to its largest value. The
# paper compares variance and distance on scales of their own; a common scale from 0 to 1 is ours.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-wpl-steady", "caption": "Per class: how much features vary as values, and as sets of strongest channels."}}
vectors, owners = figures.correct_features(network, images, few, options.sure)
with torch.no_grad():
    prototypes, ready = weigher.prototypes()
steady = figures.steadiness(vectors, owners, prototypes, options.k, images.classes)
fig = figures.steadiness_figure(steady) if len(steady) else None

# %% tags=["hide-input"]
print(f"prototypes: {int(ready.sum())} of {len(ready)} classes")
steadier = int((steady["indices"] < steady["values"]).sum())
print(f"on this scale sets of channels vary less than values in {steadier} of {len(steady)} classes")
steady.round(2)

# %% [markdown]
# ## Does it help?
#
# All committed runs on the embedded data, each host alone and with WPL on the same labeled images, seed by seed.

# %% tags=["hide-input"]
committed = [
    r
    for r in tables.standard(find_runs(repo_root() / "runs"))
    if (r.record["recipe"]["data"], r.record["recipe"]["scale"]) == ("digits", "tiny")
    and r.label.split("+")[0] in hosts
    and "upc" not in r.label
]
compare.summary(compare.scores(committed), "digits-tiny")

# %% tags=["hide-input"]
gains = tables.gain_summary(committed, [(f"{name}+wpl", name) for name in hosts])
gains

# %% tags=["hide-input"]
verdicts = []
for row in gains.to_dict("records"):
    verdict = "above" if row["mean"] > 0 else "below"
    spread = "one seed decides nothing"
    if row["seeds"] > 1:
        clear = "more" if abs(row["mean"]) > row["s.d."] else "less"
        spread = f"{clear} than the standard deviation of the paired difference ({row['s.d.']:.1f})"
    verdicts.append(
        f"- At split {row['split']}, {row['difference'].split(' minus ')[0]} ends {abs(row['mean']):.1f} points "
        f"**{verdict}** its host (seeds: {row['seeds']}); {spread}."
    )
Markdown("\n".join(verdicts))

# %% [markdown]
# ### On real images
#
# PASCAL VOC photographs {cite:p}`everingham2010voc` at a laptop's scale, as in {ref}`sec-ddfp`: six classes, at most 224
# pixels, the published list of 183 labeled images restricted to them, a MobileNetV2 pretrained on ImageNet in both the
# network and the detector. One seed: it shows that the pipeline runs on photographs, and decides nothing.

# %% tags=["hide-input"]
of_voc = compare.comparable(find_runs(repo_root() / "runs" / "voc-tiny"))
real = [r for r in of_voc if r.label.removesuffix("+wpl") in hosts]
tables.with_counts(real)

# %% [markdown]
# The detector of these runs, measured on all their unlabeled images: boxes at the score of the recipe that overlap a true
# one by 0.8 and by 0.5, and the three groups of pixels.

# %% tags=["hide-input"]
for r in real:
    if (r.folder / figures.RECORD).is_file():
        found, by_overlap, of_pixels = figures.read_record(r.folder)
        print(f"{found['split']['labeled']} labeled images, {found['images']} unlabeled ones, score {found['score']}")
        print(
            f"{found['training']['epochs']} epochs, best F1 on held-out labeled images {found['training']['best']['f1']:.2f}"
        )
        display(pd.concat(by_overlap, axis=1))
        if of_pixels is not None:
            print(f"pixels of {found['groups']['images']} images, probability from {found['groups']['sure']}")
            display(of_pixels)

# %% [markdown]
# (sec-wpl-ablations)=
# ### Ablations in miniature
#
# Table 3 (what feeds the prototypes), Fig. 6 (similarity), Fig. 7 ($k$) and supplement Tables 2 to 4 for runs that were
# made; each row is a run of the notebook with one option changed. `offset = 0.0` is Eq. 6, where a class without prototype has
# weight 0, or 1 (`unknown = 1.0`, more than any class that has one). Beside mIoU stands the accuracy of the pseudo-labels in the last
# epoch, *plain* and *weighted* as the weights count them (Fig. 6 and supplement Fig. 1).

# %% tags=["hide-input"]
figures.ablations(find_runs(repo_root() / "runs" / "digits-tiny"))

# %% [markdown]
# Weights can feed back on the labels, and *plain* shows where: U2PL has no threshold on confidence, so when right pixels of the
# background count little or nothing (`offset = 0.0`), uncertain ones of other classes take over, and the next labels are worse.

# %% [markdown]
# ## The paper's tables
#
# What the paper prints, and what our records of the same recipe say: at its scale in columns of their own, on the
# embedded set in a table below. An empty cell has a command that fills it.

# %% tags=["hide-input"]
paper_tables.show("wpl", 1)

# %% tags=["hide-input"]
paper_tables.show("wpl", 2)

# %% tags=["hide-input"]
paper_tables.show("wpl", 3)

# %% tags=["hide-input"]
paper_tables.show("wpl", 4)

# %% tags=["hide-input"]
paper_tables.show("wpl", "S1")

# %% tags=["hide-input"]
paper_tables.show("wpl", "S2")

# %% tags=["hide-input"]
paper_tables.show("wpl", "S3")

# %% tags=["hide-input"]
paper_tables.show("wpl", "S4")

# %% tags=["hide-input"]
paper_tables.show("wpl", "S5")

# %% tags=["hide-input"]
paper_tables.show("wpl", "S6")

# %% [markdown]
# ## Deviations
#
# Where paper and released code (cvlab-stonybrook/Weighting-Pseudo-Labels at commit b049223) disagree, both readings are
# options of `semiseg.methods.wpl.WPLOptions`; `-p variant paper` and `-p variant official` choose all of them at once.
#
# | topic | paper | released code | here |
# |---|---|---|---|
# | weight | $s/k$ in [0, 1] | $1 + s/k$ in [1, 2] | `offset=1`, since the paper's results come from it; `0` |
# | divisor of the loss | number of pixels | sum of the weights, so that only relative weights matter | `in_divisor=True`; `False` is Eq. 5 |
# | class without prototype | not stated | $s = 0$: weight 1, the least | $s = 0$, the least; `unknown` is any other weight |
# | where ranks are taken | pixel features | features brought to image size, all 256 channels sorted at every pixel | on the feature grid, compared with the pseudo-label of every pixel; `resolution="full"` |
# | ties, channels at 0 | not stated | broken arbitrarily by an unstable sort | ties at the $k$-th place all count, channels at 0 never |
# | whose features | EMA teacher's | UniMatch has none: the network itself, pasted pixels in evaluation mode | the host's teacher; on UniMatch the network itself |
# | α | 0.4 is best | not in the code | 1, the host's own weights; `-p alpha` |
# | detector's boxes | connected components of semantic masks | components for 3 of 11 classes, instance annotations for the others | components only |
# | detector's data | labeled images of the split | a folder that cannot be matched with the split | labeled images of the split |
# | detector's stop | not stated | lowest training loss | F1 on held-out labeled images |
# | detector's encoder | "from scratch" | ImageNet-pretrained ResNet-50 | ImageNet at paper scale, none on the embedded data |
# | box threshold | 0.85 VOC, 0.95 Cityscapes | 0.95 | 0.85; `wpl.box_score` |
# | classes with boxes | 10 on Cityscapes | 11 trained, 13 accepted | 10 |
# | hosts, data sets | four hosts, three data sets | UniMatch on Cityscapes runs; VOC and COCO raise exceptions | every host that weighs, every data set with masks |
# | pasted labeled pixels (AugSeg, UPC) | not stated | not there | weight 1 |
