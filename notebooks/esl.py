# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-esl)=
# # ESL: enhanced soft label
#
# {cite:t}`ma2023esl`, *Enhanced Soft Label for Semi-Supervised Semantic Segmentation*, ICCV 2023.
#
# A threshold on the teacher's confidence throws the hard pixels away: edges, rare classes, whatever is not yet learned.
# ESL keeps them. A teacher that cannot decide between *person*, *background* and *boat* is still sure that the pixel is
# one of the three, and says so in a **dynamic soft label**. What such labels blur between the classes, a contrastive
# loss sharpens again: it divides each class into **parts**, pulls a pixel to remembered vectors of its own part and
# pushes it from those of all others.
#
# **In this chapter**: both ideas beside the code that runs them; three trained models (ESL, ESL without its contrast,
# and the same with hard labels); the paper's figures drawn from these runs; the numbers; and the choices a reader of the
# paper has to make. No code was released with it, so these choices are ours. To make it your own:
#
# ```sh
# papermill notebooks/esl.ipynb out.ipynb -p split 1_16 -p seed 1
# papermill notebooks/esl.ipynb out.ipynb -p changes "esl.label=top"     # Table 3: the five likeliest classes
# papermill notebooks/esl.ipynb out.ipynb -p changes "esl.eta=0.9"       # Table 3
# papermill notebooks/esl.ipynb out.ipynb -p changes "esl.parts=1"       # Table 4: pixels against regions
# ```

# %% tags=["parameters"]
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

from semiseg.inference.model import load_exported
from semiseg.methods.esl import ESLOptions
from semiseg.notebook import repo_root
from semiseg.recipe import Recipe
from semiseg.runs import find_runs
from semiseg_book import paper_tables, pictures, tables
from semiseg_book.chapters import esl as figures
from semiseg_book.notebook import counts, prepare
from semiseg_book.style import title

prepared = prepare("esl", globals())
settings, images, partition = prepared.recipe, prepared.data, prepared.split
counts(prepared)

# %% [markdown]
# ## The idea, in equations
#
# **Host.** Student and teacher, its exponential moving average; the teacher labels the weak view of an unlabeled image,
# and the student answers on the CutMix of two such images. The objective has three terms,
#
# $$
# \mathcal{L} = \mathcal{L}_{CE} + \lambda_1 \mathcal{L}_{SCE} + \lambda_2 \mathcal{L}_{CTR},
# \qquad \lambda_1 = 0.2,\ \lambda_2 = 0.1 .
# $$ (eq-esl-objective)
#
# **Dynamic soft label.** With the probabilities $p_{(1)} \ge p_{(2)} \ge \dots$ of a pixel in descending order, the
# *dominant* classes are the fewest that together reach $\eta$, and those tied with the last of them:
#
# $$
# \mathbf{C} = \Big\{ c : p_c \ge p_{(r)} \Big\}, \quad
# r = \max\Big\{ r : \textstyle\sum_{i<r} p_{(i)} < \eta \Big\}, \qquad
# y^*_c = \frac{p_c \, \mathbf{1}[c \in \mathbf{C}]}{\sum_{c' \in \mathbf{C}} p_{c'}} .
# $$ (eq-esl-label)
#
# Where $\max_c p_c \ge \eta$ this is the hard label; with $\eta = 1$ it is the whole prediction. No pixel is filtered:
# $\mathcal{L}_{SCE}$ is the cross-entropy with $y^*$, averaged over all valid pixels.
#
# ```{literalinclude} ../semiseg/methods/esl.py
# :pyobject: DynamicLabels._least_dominant
# :language: python
# ```
#
# **Parts.** K-means divides the backbone features of each class's labeled pixels into $K$ parts with prototypes
# $P^c_1 \dots P^c_K$. A pixel of class $c$ (true, or the teacher's likeliest) belongs to the part
# $k^* = \arg\max_k \cos(E(x)_j, P^c_k)$. The mean embedding of each part of each image enters a first-in first-out queue
# of its own; the prototypes follow the encoder, $P \leftarrow \theta P + (1 - \theta) P'$.
#
# **Contrast.** Anchors $v$ are one in ten of the labeled pixels and of the unlabeled ones with $p_c > \zeta$. With one
# positive from the queue of the anchor's part, and 255 negatives from all the others,
#
# $$
# \mathcal{L}_{CTR} = \frac{1}{C} \sum_{c} \frac{1}{|\mathcal{A}_c|} \sum_{v \in \mathcal{A}_c}
# -\log \frac{e^{\cos(v, v^+) / \sigma}}{e^{\cos(v, v^+) / \sigma} + \sum_{v^-} e^{\cos(v, v^-) / \sigma}} .
# $$ (eq-esl-contrast)
#
# Other parts of the same class are negatives, too. The 255 vectors of each anchor are never gathered: a block of anchors
# is multiplied with the whole bank and the drawn products are picked, which is the same number in bounded memory.
#
# ```{literalinclude} ../semiseg/methods/esl.py
# :pyobject: PixelToPart._block
# :language: python
# ```

# %% [markdown]
# ## The runs
#
# The first epoch uses labels alone. The first steps after it gather labeled features for K-means, then the contrast
# starts. Two more runs, equal in all else, tell the ideas apart, as Table 2 of the paper: without the contrast, and
# without the contrast and with hard labels.

# %% tags=["nbval-ignore-output", "remove-output"]
run = prepared.train()
run_alone = prepared.train(settings.changed({"esl.parts": 0}))
run_hard = prepared.train(settings.changed({"esl.parts": 0, "esl.label": "hard"}))

# %% tags=["hide-input"]
comparable = tables.same_setting(run, find_runs(repo_root() / "runs", local=True))
baselines = {r.label: r for r in comparable}
baselines = [baselines[m] for m in ("supervised", "mean_teacher") if m in baselines]
o = settings.optimization
print(
    f"{run.record['parameters']:,} parameters, {run.record['last']['step']} steps of {o.batch} labeled and "
    f"{o.batch} unlabeled images, eta {settings[ESLOptions].eta}, {settings[ESLOptions].parts} parts of each class"
)
tables.headline(run)

# %% [markdown]
# One seed's answer to Table 2; the paper's numbers are for ResNet-101 on PASCAL VOC.

# %% tags=["hide-input"]
ablation = {
    "hard labels": run_hard,
    "dynamic soft labels": run_alone,
    "dynamic soft labels and contrast": run,
}
pd.DataFrame({"mIoU, %": {name: 100 * r.miou for name, r in ablation.items()}}).round(2)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-esl-curves", "caption": "Left: validation mIoU of the teacher, with the baselines of the same seed and labeled images where they were run. Middle: the terms of the objective, with their weights. Right: share of pixels supervised, and how often their likeliest class is right (against masks that training never sees)."}}
fig = pictures.curves(run, baselines)

# %% [markdown]
# ### Class by class

# %% tags=["hide-input"]
tables.per_class(run, baselines)


# %% [markdown]
# ### Predictions


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-esl-predictions", "caption": "Validation images, predictions of the teachers, ground truth."}}
def host_of(r):
    return load_exported(Recipe.from_dict(r.record["recipe"]), len(images.classes), r.folder / "model.safetensors")


host, host_alone = host_of(run), host_of(run_alone)
networks = {title(r.label): host_of(r).teacher.model for r in baselines if (r.folder / "model.safetensors").is_file()}
shown = [images.val[i] for i in np.linspace(0, len(images.val) - 1, min(7, len(images.val))).astype(int)]
fig = pictures.predictions(images, shown, networks | {"ESL": host.teacher.model})

# %% [markdown]
# ## Who hesitates, and between what
#
# The paper's Fig. 1: an unlabeled image, the entropy of the teacher's prediction, and the probabilities at its least
# certain pixel. Red classes are dominant: they share the label.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-esl-hesitation", "caption": "An unlabeled image, entropy of the prediction, and the probabilities at the cross; dominant classes in red."}}
some = partition.unlabeled[:32] or images.val[:32]
doubtful = figures.most_hesitant(host.teacher.model, images, some)
fig, at_cross = figures.hesitation(host.teacher.model, images, doubtful, host.label)

# %% tags=["hide-input"]
at_cross[at_cross.dominant].sort_values("probability", ascending=False).set_index("class").drop(
    columns="dominant"
).round(3)

# %% [markdown]
# Its Fig. 3: pixels with one, two, or more dominant classes. Hesitation sits at the edges.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-esl-dominant", "caption": "Validation images and the number of dominant classes of each pixel."}}
fig, dominant = figures.dominant_maps(host.teacher.model, images, shown, host.label)

# %% tags=["hide-input"]
by_place = dominant.groupby(["place", "dominant"]).pixels.sum().unstack()
(100 * by_place.div(by_place.sum(axis=1), axis=0))[list(figures.NUMBERS)].round(1)

# %% [markdown]
# Over training: how many pixels are in doubt, how often their likeliest class is right, and how often the truth is at
# least among the dominant classes. This last share is what a threshold would have thrown away.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-esl-labels", "caption": "Left: unlabeled pixels by number of dominant classes. Middle: share of them whose likeliest class is right, and share of those with several dominant classes that keep the true one. Right: mean cosine of anchors with positives and negatives."}}
fig, over_epochs = figures.label_curves(run)

# %% [markdown]
# ## Are the labels more balanced?
#
# The paper's Fig. 7b: each class's share of the unlabeled pixels, by the truth, by the hard labels of the run trained
# with them, and by dynamic soft labels, in the last epoch of each run. The distance to the truth (total variation: the
# share of pixels that would have to change class) puts a number on it.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-esl-shares", "caption": "Share of unlabeled pixels per class; log axis."}}
shares = figures.class_shares(run_alone, run_hard)
fig, shares = figures.class_distribution(shares)

# %% tags=["hide-input"]
shares.groupby("source", sort=False).distance_to_truth.first().map("{:.4f}".format).to_frame()

# %% [markdown]
# Fig. 7a asks what soft labels add as the number of labeled images grows: all runs of both kinds without contrast that
# are here.

# %% tags=["hide-input", "nbval-ignore-output"] mystnb={"figure": {"name": "fig-esl-hard-soft", "caption": "mIoU with hard and with dynamic soft labels, both without contrast; bands are standard deviations over seeds."}}
of_this_kind = [
    r
    for r in find_runs(repo_root() / "runs", local=True)
    if (r.record["recipe"]["data"], r.record["recipe"]["scale"]) == (settings.data, settings.scale)
]
fig, compared = figures.hard_against_soft(figures.label_runs(of_this_kind))

# %% [markdown]
# ## Parts, and the pairs they make
#
# The paper's Fig. 4: images of one class, each pixel in the color of its class and the shade of its part. For the anchor
# in the yellow circle, green arrows lead to parts that are positives, red ones to some of the negatives.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-esl-parts", "caption": "Images (top) and parts (bottom). Yellow: an anchor; green: its positives; red: some of its negatives."}}
fig, paired = figures.pairs(host, images, figures.of_one_class(images, images.val[:64], 5))

# %% tags=["hide-input"]
print(f"the anchor is of class {paired.anchor_class.iloc[0]}; mean cosine of the teacher's embeddings:")
paired.groupby("role").cosine.agg(["mean", "min", "max", "size"]).round(2)

# %% [markdown]
# ## What the contrast changes
#
# Fig. 5 of the paper: predictions without and with it. A red box holds the pixels where the two differ; the table counts
# how often each is right near the edges of the true masks and inside of them, over all validation images.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-esl-edges", "caption": "Input, truth, and the predictions of the runs without and with the contrast."}}
both = {"without contrast": host_alone.teacher.model, "with contrast": host.teacher.model}
fig, _ = figures.at_edges(images, shown[:4], both)

# %% tags=["hide-input"]
counted = figures.right_by_place(images, images.val[:256], both)
(100 * counted.pivot(index="network", columns="place", values="share_right")).round(2)

# %% [markdown]
# Fig. 6: t-SNE {cite:p}`maaten2008tsne` of the embeddings of four classes, two parts of each. Without the contrast there is no
# projection head to look at, so the left map shows the features that the classifier reads.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-esl-space", "caption": "t-SNE of pixel embeddings of validation images, without and with the contrast. Color: class; pale: second part."}}
four = list(range(1, min(5, len(images.classes))))
samples = {
    name: figures.embedding_sample(h, images, images.val[:96], four)
    for name, h in (("without contrast", host_alone), ("with contrast", host))
}
fig, space = figures.embedding_maps(samples, dict(zip(images.classes, images.palette, strict=True)))

# %% [markdown]
# ## Does it help?
#
# All committed runs of this setting, seed by seed, on the same labeled images; a difference is paired by seed.

# %% tags=["hide-input"]
committed = [
    r
    for r in tables.standard(find_runs(repo_root() / "runs"))
    if (r.record["recipe"]["data"], r.record["recipe"]["scale"]) == ("digits", "tiny")
    and r.label in ("supervised", "mean_teacher", "esl")
]
tables.over_seeds(committed)

# %% tags=["hide-input"]
tables.gain_summary(committed, [("esl", "supervised"), ("esl", "mean_teacher")])

# %% [markdown]
# ## The paper's tables
#
# What the paper prints, and what our records of the same recipe say: at its scale in columns of their own, on the
# embedded set in a table below. An empty cell has a command that fills it.

# %% tags=["hide-input"]
paper_tables.show("esl", "1a")

# %% tags=["hide-input"]
paper_tables.show("esl", "1b")

# %% tags=["hide-input"]
paper_tables.show("esl", "1c")

# %% tags=["hide-input"]
paper_tables.show("esl", 2)

# %% tags=["hide-input"]
paper_tables.show("esl", 3)

# %% tags=["hide-input"]
paper_tables.show("esl", 4)

# %% tags=["hide-input"]
paper_tables.show("esl", "F7a")

# %% [markdown]
# ## Deviations, and points the paper leaves open
#
# The authors announced code that did not appear. What the text does not say had to be chosen; where it says something
# that cannot be meant, that is said here. Everything in the last column is an argument.
#
# | topic | paper | here, and why |
# |---|---|---|
# | rank that ends the dominant classes | first whose cumulative sum reaches $\eta$ | the same, stated by the sum of the *better* ranks: in single precision many pixels never sum to 1, and at $\eta = 1$ the literal rule would turn them into hard labels |
# | divisor of $\mathcal{L}_{SCE}$ | all $HW$ pixels | valid pixels; padding supervises nothing |
# | hard label of Table 2 | one-hot of the likeliest class | the same, without a threshold: `label="hard"` |
# | features for K-means | of all labeled images, encoder as pretrained, before training | of the first `collect_steps` labeled batches after the warm-up, augmented, at most 4,096 per class: the encoder of the embedded set is not pretrained, and clusters of random features would mean nothing; without warm-up the first batches see the pretrained encoder |
# | K-means | Euclidean by name, cosine in use | on normalized features, prototypes are means of the raw ones: by distance, clusters would split by length, which the cosine cannot see |
# | class with fewer features than parts, or none | not stated | fewer prototypes; a class not yet seen starts with the mean of its first labeled image |
# | size of features and embedding | "equal to $H \times W$ originally" | both at the embedding's grid, a quarter of the image; at full size the features of one image would take 2.2 GB |
# | queue length $q$ | not stated | 128: about as many steps as the teacher's average spans |
# | order of push and draw | not stated | push first: the queue of an anchor's part is then never empty |
# | remembered vectors of unlabeled images | of the image | of the mixed image, the one the anchors are in: two images' pixels of one part become one vector |
# | anchors | 10 % "from either one case" | 10 % of labeled and confident unlabeled pixels of a class together, at least 1, at most 1,024 (`max_anchors=None`: the paper) |
# | negatives | other queues, not stated how | uniform over the vectors held; `draw="classes"`: uniform over queues |
# | sum over classes | divided by all $C$ | the same; `divisor="present"`: by those with anchors |
# | absent parts in the update of prototypes | not excluded | unchanged; the formula with $P' = 0$ would shrink them at every step |
# | projection head | three Conv-BN-ReLU blocks | two 1×1 convolutions on the decoder's features, the last one linear: a final ReLU would make every cosine positive |
# | strong view | CutMix alone | the same, in every batch, half of the area; `color=True` adds the host's color jitter |
# | teacher | exponential moving average | decay 0.99, batch-norm statistics averaged, evaluation mode |
# | warm-up | not stated | one epoch of labels alone on VOC and the embedded set, none on Cityscapes |
# | reported epoch | not stated | last epoch, teacher; the best is shown beside it |
#
# At `scale="tiny"` the network, the images and the schedule are small: shares, probabilities, temperatures and momenta
# are the paper's, the projection keeps its proportion (twice the decoder's width), and nothing was tuned. Only
# `scale="paper"` on PASCAL VOC is comparable with the paper's tables, and takes days on one GPU.
