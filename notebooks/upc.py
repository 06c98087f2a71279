# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-upc)=
# # UPC: uncertain patches replaced by labeled ones
#
# {cite:t}`fang2023upc`, *Locating Noise is Halfway Denoising for Semi-Supervised Segmentation*, ICCV 2023.
#
# The wrong pixels of a pseudo-label stand together, mostly along the outline of objects, and the network doubts that whole
# region. UPC therefore does not weigh or drop single pixels. It divides an unlabeled image into patches, takes the few with
# the largest **sum of entropy**, and **replaces** them, image and label, by the same patches of a labeled image. It changes
# neither network nor loss, so it plugs into every host that pastes.
#
# **In this chapter**: the idea beside the code that runs it; a trained model, what it doubts and what is replaced; whether
# doubt finds the noise; whether replacing it helps, and why on the embedded scenes it mostly does not; and what the paper
# leaves open. There is no released code.
#
# ```sh
# papermill notebooks/upc.ipynb out.ipynb -p host stpp -p changes "upc.k=5 upc.select=random"
# ```

# %% tags=["parameters"]
host = "mean_teacher"  # any scheme with unlabeled images: stpp, cps, u2pl, ... (all ablations of the paper: stpp)
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
from IPython.display import Markdown, display

from semiseg.data.loader import training_batches
from semiseg.inference.model import load_exported
from semiseg.methods.upc import UPCOptions
from semiseg.notebook import repo_root
from semiseg.recipe import Recipe
from semiseg.registry import methods
from semiseg.runs import find_runs
from semiseg_book import paper_tables, pictures, tables
from semiseg_book.chapters import upc as figures
from semiseg_book.notebook import counts, prepare

prepared = prepare(host, globals(), plug_ins="upc", own=["host"])
settings, images, partition = prepared.recipe, prepared.data, prepared.split
n, k = settings[UPCOptions].n, settings[UPCOptions].k
counts(prepared)

# %% [markdown]
# ## The idea, in equations
#
# A teacher predicts probabilities $p_{i,j}^c$ for the pixels of an unlabeled image $x^u$. Their entropy
#
# $$
# \mathcal{H}_{i,j} = - \sum_{c=1}^{C} p_{i,j}^c \log p_{i,j}^c
# $$ (eq-upc-entropy)
#
# is summed in each patch $G$ of an $N \times N$ grid, **Patch Split**,
#
# $$
# \mathcal{H}_G = \sum_{(i,j) \in G} \mathcal{H}_{i,j} ,
# $$ (eq-upc-patch)
#
# ```{literalinclude} ../semiseg/methods/upc.py
# :pyobject: patch_sums
# :language: python
# ```
#
# and a mask marks the $k$ patches $G_k$ with the largest sums,
#
# $$
# M_k(x, y) = \begin{cases} 1, & (x, y) \in G_k \\ 0, & (x, y) \notin G_k . \end{cases}
# $$ (eq-upc-mask)
#
# ```{literalinclude} ../semiseg/methods/upc.py
# :pyobject: top_patches
# :language: python
# ```
#
# **Patch CutMix** takes these patches from a labeled image $P^l = (x^l, y^l)$, in the same place, image and label alike,
#
# $$
# \begin{aligned}
# f(z^u, z^l, M) &= z^l \times M + z^u \times (1 - M) , \\
# P^t(k) &= \big( f(x^u, x^l, M_k),\; f(\hat y^u, y^l, M_k) \big) ,
# \end{aligned}
# $$ (eq-upc-cutmix)
#
# and the **redundant augmentation strategy** (RAS) does so with $k_1, k_2, k_3 = 2, 3, 5$ and three labeled images,
#
# $$
# P^t(k_r) = \big( f(x^u, x^l_{i_r}, M_{k_r}),\; f(\hat y^u, y^l_{i_r}, M_{k_r}) \big), \qquad r = 1, 2, 3 .
# $$ (eq-upc-ras)
#
# ```{literalinclude} ../semiseg/methods/upc.py
# :pyobject: PatchCutMix.__call__
# :language: python
# ```
#
# ```{literalinclude} ../semiseg/methods/pasting.py
# :pyobject: draw_donors
# :language: python
# ```
#
# The student learns from the labeled batch and from the changed one, at the host's own weight $\lambda$,
#
# $$
# \mathcal{L} = \mathcal{L}_l + \lambda \mathcal{L}_u .
# $$ (eq-upc-loss)

# %% [markdown]
# ## The run
#
# The host as it is, but for what it pastes; beside it the host alone, where that run exists. Numbers are of the last epoch;
# the teacher is the headline.

# %% tags=["nbval-ignore-output", "remove-output"]
run = prepared.train()

# %% tags=["hide-input"]
recorded = find_runs(repo_root() / "runs", local=True)
plain = settings.without("upc").as_dict()
alone = [r for r in recorded if r.record["recipe"] == plain and r.record["split"]["sha256"] == partition.sha256][:1]
rows = len(k) if settings[UPCOptions].rows == "all" else 1
o = settings.optimization
print(f"{run.record['parameters']:,} parameters, {run.record['last']['step']} steps")
print(f"{o.batch} labeled and {o.batch} unlabeled images per step, {rows} row(s) of each")
tables.headline(run)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-upc-curves", "caption": "Left: validation mIoU of the teacher, with the host alone where it was run. Middle: the terms of the objective, with their weights. Right: share of pixels whose pseudo-label is kept, and how often it is right (against masks that training never sees)."}}
fig = pictures.curves(run, alone)

# %% [markdown]
# ### Class by class

# %% tags=["hide-input"]
tables.per_class(run, alone)

# %% [markdown]
# ## What is located, and what is replaced
#
# A batch of training as the trained network sees it. Labeled images take turns here; in training they are drawn.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-upc-located", "caption": "As Fig. 3 of the paper. Upper lines: an unlabeled crop; its entropy, the most uncertain patches numbered; the crop with 2, 3 and 5 patches of labeled images. Lower lines: pseudo-label, its errors (red; right blue), and the label of each mixed crop. Gray: no label."}}
def network_of(r):
    host_of = load_exported(Recipe.from_dict(r.record["recipe"]), len(images.classes), r.folder / "model.safetensors")
    return host_of.teacher.model


network = network_of(run)
crops = training_batches(images, partition, crop=o.crop, batch=o.batch, steps=1, seed=seed, scale=o.resize)
own, labeled = figures.look(network, next(iter(crops)))
shown = [i for i in (1, 2) if i < len(own.image)]
numbers = [each for each in k if each] or [min(5, n**2)]
fig = figures.located(own, labeled, images, shown, n, numbers)

# %% [markdown]
# The alternative is to drop the same number of most uncertain **pixels**. They follow the outline of the object, so what is
# left has another shape than the object (Fig. 1a of the paper); a patch keeps its inside and outside together.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-upc-erased", "caption": "As Fig. 1a of the paper: pseudo-label, errors (red), the label without its most uncertain pixels (gray), and the label and image in which as many pixels are replaced patch by patch (outlined)."}}
fig = figures.erased_or_replaced(own, labeled, images, range(min(4, len(own.image))), n, max(numbers))

# %% [markdown]
# Over training: how wrong the labels are that the student learns from, before and after pasting.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-upc-training", "caption": "Left: error rate of supervised pixels whose truth is known, as pseudo-labeled and after pasting. Right: share of pixels from labeled images, and of pseudo-labels that the host keeps."}}
fig = figures.mixing_curves(run)

# %% [markdown]
# ## Does doubt find the noise?
#
# The paper says that patches of high uncertainty are those with most noise, and shows it in its supplement. Here: every patch
# of unlabeled images, its sum of entropy, and the number of its pixels whose pseudo-label is wrong.

# %% tags=["hide-input"]
few = partition.unlabeled[: 200 if data == "digits" else 60]
stats = figures.image_stats(network, images, few, n)
if stats.empty:
    print("no unlabeled image has a true mask: what follows cannot be measured")
else:
    print(
        f"{stats.image.nunique()} images, {len(stats)} patches, {100 * stats.noise_area.sum() / stats.n_valid.sum():.1f} % of pixels wrong"
    )
    display(figures.correlations(stats).round(2))
    display(stats.drop(columns=["image", "n"]).head(3).round(2).T)

# %% [markdown]
# If the first $k$ patches go, how much of the noise goes (recall), and how much of what goes is noise (precision)? The oracle
# takes the patches with the lowest mean IoU with the truth (Table 7), or those with most wrong pixels; for random patches the
# expectation is shown.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-upc-noise", "caption": "Left: wrong pixels in the patches, by rank. Middle: share of all wrong pixels that lie in the first k patches. Right: share of wrong pixels in these patches."}}
shares = pd.DataFrame() if stats.empty else figures.found(stats)
fig = None if stats.empty else figures.noise_found(shares, stats)

# %% [markdown]
# ### What goes with it
#
# Replacing is not free: right labels go too. *foreground* is the share of all foreground pixels, by the true masks, that lie in
# the first $k$ patches, *lost per found* the number of rightly labeled foreground pixels that go with every wrong pixel.

# %% tags=["hide-input"]
marks = sorted({min(each, n**2) for each in (2, 3, 5)})
costs = None
if not stats.empty:
    costs = shares[shares.k.isin(marks)].set_index(["selector", "k"]).round(1)
    costs = costs.rename(columns={"foreground_share": "share of foreground", "lost_per_found": "lost per found"})
costs

# %% tags=["hide-input"]
left = None if stats.empty else figures.objects_left(stats, marks).round(1)
None if left is None else left.rename(columns={"less_than_half": "less than half"})

# %% tags=["hide-input"]
if not stats.empty:
    at = shares.set_index(["selector", "k"])
    most = marks[-1]
    doubt, chance, oracle = (at.loc[(name, most)] for name in ("uncertainty", "random", "oracle"))
    finds = "finds the noise" if doubt.recall > 1.5 * chance.recall else "hardly finds the noise"
    marked = "doubt tells errors from the rest of the object"
    if doubt.lost_per_found > 0.9 * chance.lost_per_found:
        marked = "doubt marks objects, the right and the wrong pixels of them alike"
    display(
        Markdown(
            f"**Doubt {finds}**: {most} of {n**2} patches, {doubt.area:.0f} % of the pixels, hold {doubt.recall:.0f} % of the "
            f"wrong ones (oracle {oracle.recall:.0f} %, random {chance.recall:.0f} %). "
            f"**They also hold {doubt.foreground:.0f} % of all foreground pixels**; "
            f"{left.less_than_half[most]:.1f} % of the images keep less than half of their foreground. "
            f"For every wrong pixel {doubt.lost_per_found:.1f} right foreground pixels go; with random patches it would be "
            f"{chance.lost_per_found:.1f}, with the oracle's {oracle.lost_per_found:.1f}: {marked}."
        )
    )

# %% [markdown]
# ## Does it help?
#
# All committed runs on the embedded data, each host alone and with UPC on the same labeled images, seed by seed.

# %% tags=["hide-input"]
committed = [
    r
    for r in find_runs(repo_root() / "runs")
    if (r.record["recipe"]["data"], r.record["recipe"]["scale"]) == ("digits", "tiny")
]
pairs = figures.beside_host(tables.standard(committed), [name for name, each in methods().items() if each.unlabeled])
pairs

# %% tags=["hide-input"]
for row in pairs.to_dict("records"):
    verdict = "above" if row["difference"] > 0 else "below"
    spread = "one seed decides nothing"
    if row["seeds"] > 1:
        clear = "more" if abs(row["difference"]) > row["s.d."] else "less"
        spread = f"{clear} than the standard deviation of the paired difference ({row['s.d.']:.1f})"
    display(
        Markdown(
            f"At split {row['split']}, {row['host']} + UPC ends {abs(row['difference']):.1f} points **{verdict}** its host "
            f"(seeds: {row['seeds']}); {spread}."
        )
    )

# %% [markdown]
# ### Why
#
# The paper reports gains for every host and split (its Table 1 is below). What UPC did to the
# labels of each host here, in the last epoch:

# %% tags=["hide-input"]
noise = figures.noise_of_hosts(tables.standard(committed))
noise

# %% tags=["hide-input"]
if len(pairs) and len(noise):
    better = pairs[pairs.difference > 0]
    fell = (noise["wrong, after"] < noise["wrong, before"]).sum()
    text = (
        f"UPC makes the labels of {fell} of {len(noise)} hosts less wrong. Yet it raises {len(better)} of {len(pairs)} rows "
        f"above. Alone the hosts end between {pairs.alone.min():.1f} and {pairs.alone.max():.1f}, with UPC between "
        f"{pairs['with UPC'].min():.1f} and {pairs['with UPC'].max():.1f}. "
    )
    if len(better) and len(better) < len(pairs):
        text += (
            f"The mean mIoU alone is {better.alone.mean():.1f} where UPC helps and "
            f"{pairs[pairs.difference <= 0].alone.mean():.1f} where it does not."
        )
    display(Markdown(text))

# %% [markdown]
# So the noise is found and removed, as the paper says, and that is not what decides here. Three things weigh against it.
#
# - A scene of the embedded set shows one thin digit on a plain ground. Whatever can be wrong lies in the few patches that the
#   digit crosses, and these are what goes: the tables above count how little of the foreground remains. The unlabeled images
#   were to show new handwriting in new colors; what is left of them is mostly ground.
# - What takes its place are pieces of other digits, from the few labeled images that the student sees whole in every epoch
#   anyway. They are right, but nothing new, and a piece of a digit in another digit's place is no shape to learn.
# - UPC takes the place of the host's own pasting. Mean teacher, CutMix-Seg, CPS and U2PL paste unlabeled images into each other
#   and lose that; ST++, Mask2Former and mean teacher with MSE have nothing to lose. `-p changes "upc.k=0"` trains a host that
#   pastes nothing, and tells the two apart (the table below). And a host that rejects unsure pixels (mean teacher) has little
#   noise left to remove. Mask2Former is asked for one mask per class that an image shows, and pieces of digits add classes to every image:
#   its class loss, in the records, falls far less than alone.
#
# On photographs, with objects larger than a patch, doubt follows outlines and the inside of an object stays, so the balance may
# be another one. The embedded scenes cannot tell; `-p data voc` measures all of the above on other images.

# %% tags=["hide-input"]
figures.without_pasting(committed)

# %% [markdown]
# ### Ablations in miniature
#
# Tables 5 to 8 of the paper, for runs that were made: `replace` is Table 5 and 6, `select` Table 7, `n` and `k` Table 8. Each row
# is a run of the notebook with `-p changes`, those of the paper with `-p host stpp`, for instance
#
# | table | changes |
# |---|---|
# | 5, 6 | `upc.replace=erase`, `copy_paste` or `box` |
# | 6 | `upc.k=5` (Patch CutMix), `upc.rows=all` (RAS) |
# | 7 | `upc.k=5 upc.select=random`, `oracle` |
# | 8 | `upc.n=3 upc.k=7` |
# | none | `upc.k=0`: the host without any pasting |

# %% tags=["hide-input"]
figures.ablations(committed)

# %% [markdown]
# ## The paper's tables
#
# What the paper prints, and what our records of the same recipe say: at its scale in columns of their own, on the
# embedded set in a table below. An empty cell has a command that fills it.

# %% tags=["hide-input"]
paper_tables.show("upc", 1)

# %% tags=["hide-input"]
paper_tables.show("upc", 2)

# %% tags=["hide-input"]
paper_tables.show("upc", 3)

# %% tags=["hide-input"]
paper_tables.show("upc", 4)

# %% tags=["hide-input"]
paper_tables.show("upc", 5)

# %% tags=["hide-input"]
paper_tables.show("upc", 6)

# %% tags=["hide-input"]
paper_tables.show("upc", 7)

# %% tags=["hide-input"]
paper_tables.show("upc", 8)

# %% [markdown]
# ## Deviations
#
# No code was released, so there is one source. What contradicts itself in the paper:
#
# | topic | in the paper | here |
# |---|---|---|
# | "without introducing any extra hyper-parameters" | $N$, and one or three $k$ | `n`, `k` |
# | "ST++ already introduced noise-aware loss" | ST++ selects images, it has no such loss | ST++ as it is |
# | Table 6 | marks that cannot be told apart in our copy | read by its numbers, which recur in Tables 2, 5, 7 and 8 |
# | printed gains | U2PL at 1/8 (classic), 1/8 and 1/4 (blender) differ from the difference of the numbers | the numbers |
# | Table 2 | U2PL on its own splits, the others on those of CPS; ST++ on Cityscapes probably with ResNet-50 | one split for all hosts |
# | Mask2Former | backbone not given, weight decay not that of the original | stated in the recipe of that host |
# | Table 4, image-level labels | how they are used is not said | not reproduced |
#
# What the paper leaves open:
#
# | topic | here |
# |---|---|
# | side not divisible by $N$ | edges at $\lfloor iH/N \rfloor$, every pixel in one patch; `divide="mean"` takes the advantage of the larger last patch |
# | padding of the unlabeled crop | entropy 0, replaced last; its label stays unknown |
# | unknown pixels of the labeled image | pasted, without loss; `known=0.5` prefers labeled crops that know half of their pixels |
# | equal patches | the first by rows |
# | scores that do not sum to 1 | divided by their sum; uniform where all are 0 |
# | cost of RAS | `rows="sample"`: one row per image, $k$ drawn anew each time, at the cost of one; `rows="all"` is Eq. 7, three rows |
# | fewer labeled images than rows | drawn with replacement |
# | labeled images of a batch | each drawn equally often; the rows of an image have different ones |
# | $\lambda$ | the host's own weight |
# | order of augmentations | geometry, then color of the unlabeled image alone, then pasting: labeled patches keep their colors. Color after pasting is not offered |
# | what UPC takes the place of | the host's own pasting (CutMix, boxes, AEL's and AugSeg's injection), in every batch |
# | CPS | each pseudo-label with its own mask; `shared_mask=True` takes the mean of both entropies |
# | U2PL | its second look at the mixed images stays |
# | ST++ | both retrainings; entropy of the mean probability over scales, one byte per pixel; its cutout stays, `stpp.cutout=0` for a clean Table 5 |
# | oracle | lowest mean IoU over classes in pseudo-label or truth; of equal ones the larger error; `select="oracle_area"` counts wrong pixels |
# | random | drawn anew at each visit |
# | CutMix {cite:p}`yun2019cutmix` and Random Erasing {cite:p}`zhong2020erasing` of Table 5 | one box of 2 to 40 % of the image; erased pixels are noise without label |
# | Copy-Paste {cite:p}`ghiasi2021copypaste` of Table 5 | all pixels of one random foreground class of the labeled image |
# | Pixel Erasing of Fig. 1a | the most uncertain pixels, as many as $k$ patches have |
#
# At `scale="tiny"` the network, the images and the schedule are small; only `scale="paper"` on PASCAL VOC with `rows="all"` is
# comparable with the paper's tables.
