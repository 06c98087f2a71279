# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-ddfp)=
# # DDFP: density-descending feature perturbation
#
# {cite:t}`wang2024ddfp`, *Towards the Uncharted*, CVPR 2024.
#
# A classifier that separates classes well has its boundaries where features are rare: the *low-density separation*
# assumption {cite:p}`chapelle2005lowdensity`. Consistency training pursues it blindly: it perturbs an image or a
# feature at random and asks for the same answer. DDFP looks first. A small normalizing flow learns how dense each
# place of the feature space is; every confident feature of an unlabeled image then takes one step **down the
# density** and must keep its pseudo-label. The boundary is pushed out of the crowd, into the sparse regions in between.
#
# **In this chapter**: the idea and its equations beside the code that runs them; a trained model; what the flow learned;
# what the step does to real features; the numbers, with their seeds; and where our reading departs from the paper or from
# its released code. Everything below is computed by this notebook from one run. To make it your own:
#
# ```sh
# papermill notebooks/ddfp.ipynb out.ipynb -p split 1_16 -p seed 1
# papermill notebooks/ddfp.ipynb out.ipynb -p changes "ddfp.step=vat ddfp.eps=1"
# ```

# %% tags=["parameters"]
variant = "default"  # or DDFP as paper, or as official (code) have it
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
import torch
from IPython.display import Markdown, display

from semiseg.inference.model import load_exported
from semiseg.methods.ddfp import DDFPOptions
from semiseg.methods.flow import MixtureFlow
from semiseg.notebook import repo_root
from semiseg.recipe import Recipe
from semiseg.runs import find_runs
from semiseg_book import compare, paper_tables, pictures, tables
from semiseg_book.chapters import ddfp as figures
from semiseg_book.notebook import counts, prepare
from semiseg_book.style import title

prepared = prepare("ddfp", globals(), own=["variant"])
settings, images, partition = prepared.recipe, prepared.data, prepared.split
options = settings[DDFPOptions]
counts(prepared)

# %% [markdown]
# ## The problem, in pictures
#
# A few images have masks (below); for all the others only the image is known. The embedded scenes hold one handwritten
# digit {cite:p}`alpaydin1998digits` each, in any ink on any paper: few labeled scenes show few of these looks.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ddfp-scenes", "caption": "Labeled training images and their masks."}}
fig = pictures.scenes(images, partition.labeled[:9])

# %% [markdown]
# ## The idea, in equations
#
# **Host.** Student $f = g \circ h$ and teacher $f'$, its exponential moving average. The teacher labels the weak view of
# an unlabeled image, and the student must agree on the strong view where the teacher is sure enough,
#
# $$
# \mathcal{L}^{im}_{con} = \frac{1}{|\mathcal{B}^u| HW} \sum_{i,j} \ell_{ce}\big(p^s_{ij},\, y^u_{ij}\big)\,
# \mathbf{1}\big[\max p^w_{ij} > \tau\big] .
# $$ (eq-ddfp-im)
#
# **Density.** An invertible network $\varphi$ {cite:p}`dinh2017realnvp,kingma2018glow` maps a feature $v$ to $z = \varphi(v)$,
# where each class has a Gaussian {cite:p}`izmailov2020flowgmm`; the change of variables gives the density of $v$,
#
# $$
# \log p(v) = \log \sum_{k=1}^{K} \tfrac{1}{K}\, \mathcal{N}\big(\varphi(v) \mid \mu_k, I\big)
# + \log \left|\det \frac{\partial \varphi}{\partial v}\right| .
# $$ (eq-ddfp-density)
#
# $\varphi$ is fitted to the *teacher's* features by maximum likelihood while the network trains: a labeled feature under
# the Gaussian of its class, an unlabeled one under the whole mixture.
#
# **Step.** Each confident feature of the student moves by $\epsilon$ in the direction in which density falls fastest,
#
# $$
# \delta^* = \epsilon\, \frac{\nabla_v \big(-\log p(v)\big)}{\big\|\nabla_v \big(-\log p(v)\big)\big\|_2} ,
# $$ (eq-ddfp-step)
#
# and the prediction at $v + \delta^*$ must still be the pseudo-label: $\mathcal{L}^{ft}_{con}$ is {eq}`eq-ddfp-im` with
# the moved features. The objective is $\mathcal{L}_{sup} + \mathcal{L}^{im}_{con} + \lambda_{ft}\,\mathcal{L}^{ft}_{con}$.
#
# This is all of it, as it runs in `semiseg/methods/ddfp.py`:
#
# ```{literalinclude} ../semiseg/methods/ddfp.py
# :pyobject: DensityDescent.forward
# :language: python
# ```
#
# ### In two dimensions
#
# Two moons, one point in ten labeled. Before fitting, the flow's density knows nothing; after fitting it follows the data,
# and the red arrows, one step {eq}`eq-ddfp-step` each, leave the moons on the steepest way.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ddfp-toy", "caption": "Log-density of a two-dimensional flow before and after maximum likelihood on two moons. Arrows: one step down the density from some of the points."}}
torch.manual_seed(seed)
points, moon, fitted = figures.toy_flow(seed=seed)
fig = figures.toy_picture(points, moon, MixtureFlow(2, 2, blocks=4, hidden=32), fitted)

# %% [markdown]
# ## The run
#
# Epoch 1 uses labels alone, epoch 2 adds the consistency and starts the flow, and from epoch 3 on the features are
# perturbed, as in the paper. Numbers below are of the last epoch; the teacher is the headline.

# %% tags=["nbval-ignore-output", "remove-output"]
run = prepared.train()

# %% tags=["hide-input"]
comparable = tables.same_setting(run, find_runs(repo_root() / "runs", local=True))
baselines = {r.label: r for r in comparable if r.label != "ddfp"}
baselines = [baselines[m] for m in ("supervised", "mean_teacher") if m in baselines]
o = settings.optimization
print(f"{run.record['parameters']:,} parameters, {run.record['last']['step']} steps")
print(f"{o.batch} labeled and {o.batch} unlabeled images per step")
print(f"threshold {settings.consistency.tau}, epsilon {options.eps}")
tables.headline(run)

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ddfp-curves", "caption": "Left: validation mIoU of the teacher, with the baselines of the same seed and labeled images where they were run. Middle: the terms of the objective, with their weights. Right: share of pixels whose pseudo-label is kept, how often it is right (against masks that training never sees), and the share of kept pixels whose class the step changes."}}
fig = pictures.curves(run, baselines)

# %% [markdown]
# ### Class by class

# %% tags=["hide-input"]
tables.per_class(run, baselines)

# %% [markdown]
# ### Predictions
#
# As Fig. 4 of the paper: what the baseline and DDFP say about validation images, beside the truth.


# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ddfp-predictions", "caption": "Validation images, predictions of the teachers, ground truth."}}
def host_of(r):
    return load_exported(Recipe.from_dict(r.record["recipe"]), len(images.classes), r.folder / "model.safetensors")


host = host_of(run)
networks = {title(r.label): host_of(r).teacher.model for r in baselines if (r.folder / "model.safetensors").is_file()}
shown = [images.val[i] for i in np.linspace(0, len(images.val) - 1, min(7, len(images.val))).astype(int)]
fig = pictures.predictions(images, shown, networks | {"DDFP": host.teacher.model})

# %% [markdown]
# ## What the flow learned
#
# Confident pixels of validation images, moved as in training. Along the way down, log-density falls for every class;
# where the step changes the class, training has something to correct.

# %% tags=["hide-input"]
by_class = None
if options.step == "density":  # the others have no flow
    sample = figures.sample(
        host.teacher.model,
        host.perturb,
        images,
        images.val[: 200 if data == "digits" else 24],
        tau=settings.consistency.tau,
        per_class=120,
    )
    by_class = sample.table(images.classes)
    fell = (sample.log_p_descended < sample.log_p).float().mean().item()
    print(f"density falls for {100 * fell:.1f} % of {len(sample.features)} features")
by_class if by_class is None else by_class.round({"before": 1, "after": 1, "flipped": 0})

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ddfp-plane", "caption": "Log-density on the plane through the mean features of three classes: a fresh flow, and the one that accompanied training. Dots: features of these classes, projected."}}
corners = ()
if by_class is not None:
    largest = by_class.drop(index=images.classes[0], errors="ignore").pixels.nlargest(3).index
    corners = tuple(images.classes.index(name) for name in largest)
if len(corners) == 3:
    torch.manual_seed(seed)
    fresh = MixtureFlow(host.student.width, len(images.classes), hidden=options.flow_hidden)
    fig = figures.density_plane({"before": fresh, "after": host.perturb.flow}, sample, corners, images.classes)

# %% [markdown]
# ### Where the features go
#
# The paper's Fig. 1, on our features: t-SNE {cite:p}`maaten2008tsne` of the features and of their density-descended copies together.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ddfp-tsne", "caption": "t-SNE of features of confident validation pixels (a), and with their density-descended copies (b, red)."}}
layout = None if by_class is None else figures.embed(sample, seed)
fig = None if layout is None else figures.tsne(layout, sample, images.classes, images.palette)

# %% [markdown]
# The same map to explore: color is log-density, a cross marks a feature whose class the step changes; hover for the
# prediction, the truth and the density after the step.

# %% tags=["hide-input", "nbval-ignore-output"]
None if layout is None else figures.interactive(layout, sample, images.classes)

# %% [markdown]
# ## Does it help?
#
# All committed runs of this setting, three methods on the same labeled images, seed by seed. A difference is *paired*:
# two runs of one seed share data, labeled images, initial encoder and length. How the embedded set was calibrated,
# with the two baselines only, is told in {ref}`sec-calibration`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-ddfp-seeds", "caption": "mIoU of the teacher after the last epoch: every seed, and the mean as a bar."}}
committed = [
    r
    for r in tables.standard(find_runs(repo_root() / "runs"))
    if (r.record["recipe"]["data"], r.record["recipe"]["scale"]) == ("digits", "tiny")
    and r.label in ("supervised", "mean_teacher", "ddfp")
]
fig = pictures.seeds(tables.table(committed))

# %% tags=["hide-input"]
tables.over_seeds(committed)

# %% tags=["hide-input"]
gains = tables.gain_summary(committed, [("mean_teacher", "supervised"), ("ddfp", "mean_teacher")])
gains

# %% tags=["hide-input"]
main = gains[gains.difference == "DDFP minus mean teacher"].set_index("split")
for name, row in main.iterrows():
    verdict = "above" if row["mean"] > 0 else "below"
    clear = "more" if abs(row["mean"]) > row["s.d."] else "less"
    display(
        Markdown(
            f"At split {name}, over {row.seeds:.0f} seeds, DDFP ends {abs(row['mean']):.1f} points **{verdict}** its host; "
            f"that is {clear} than the standard deviation of the paired difference ({row['s.d.']:.1f})."
        )
    )

# %% [markdown]
# ### Is it the density, or any step?
#
# As Table 7 and the noise of Table 4: the same host, another step at the same place. Each row is a run of this notebook with
# `-p changes "ddfp.step=vat"`; *published* is the virtual adversarial step {cite:p}`miyato2019vat` in the setting of the code of CCT
# {cite:p}`ouali2020cct` and PS-MT {cite:p}`liu2022psmt`, whose probe is lost in float32, so that it hardly moves a feature (see `semiseg/methods/perturbations.py`). A step that changes no class teaches nothing, so read mIoU beside how often
# the step flips the class of a confident pixel. Rows of one seed decide nothing.

# %% tags=["hide-input"]
figures.perturbations_table(find_runs(repo_root() / "runs" / "digits-tiny"))

# %% [markdown]
# ### On real images
#
# PASCAL VOC photographs {cite:p}`everingham2010voc` at a laptop's scale: the images that show cats, cows, dogs, horses,
# persons or sheep, at most 224 pixels long, the published list of 183 labeled images restricted to them, all others
# unlabeled, a MobileNetV2 {cite:p}`sandler2018mobilenetv2` pretrained on ImageNet, crops of 128 pixels and few steps. One
# seed: this shows that the pipeline works on real images, and decides nothing between methods.

# %% tags=["hide-input"]
real = compare.comparable(find_runs(repo_root() / "runs" / "voc-tiny"))
tables.with_counts(real)

# %% [markdown]
# ## The paper's tables
#
# What the paper prints, and what our records of the same recipe say: at its scale in columns of their own, on the
# embedded set in a table below. An empty cell has a command that fills it.

# %% tags=["hide-input"]
paper_tables.show("ddfp", 1)

# %% tags=["hide-input"]
paper_tables.show("ddfp", 2)

# %% tags=["hide-input"]
paper_tables.show("ddfp", 3)

# %% tags=["hide-input"]
paper_tables.show("ddfp", 4)

# %% tags=["hide-input"]
paper_tables.show("ddfp", 5)

# %% tags=["hide-input"]
paper_tables.show("ddfp", 6)

# %% tags=["hide-input"]
paper_tables.show("ddfp", 7)

# %% [markdown]
# ## Deviations
#
# Where paper and released code (Gavinwxy/DDFP at commit 7956c72) disagree, both readings are options of
# `semiseg.methods.ddfp.DDFPOptions`; `-p variant paper` and `-p variant official` choose all of them at once.
#
# | topic | paper | released code | here |
# |---|---|---|---|
# | teacher | exponential moving average, 0.999 | parameters share storage with the student, so the average never differs from it | `teacher="ema"`; `"self"` reproduces the code |
# | teacher's batch normalization | not stated | training mode with dropout, own running statistics | averaged buffers, evaluation mode; `"self"` as the code |
# | which feature moves | $v$, the one whose density is modeled | the fused 304-channel map, two convolutions before $v$ | `tap="decoder_input"`; `"features"` is the paper's text |
# | class means $\mu_k$ | fixed draws | trained with the flow | `learn_means=True`; `False` |
# | second batch-norm statistics for perturbed features | not mentioned | in two layers | `second_bn=True`; `False` |
# | first epochs through the second statistics | not mentioned | half of the batch in epochs 1 and 2 | not reproduced: perturbed features only |
# | loss weights | 1, 1, 0.5 | 1, 0.5, 0.5, and 1, 1 before perturbation starts | `weights=(0.5, 0.5)`; `(1, 0.5)` |
# | divisor of unlabeled terms | all pixels | confident pixels | `divisor="kept"`; `"valid"` |
# | features for the flow | 20k, labeled and unlabeled equally | 20,480 uniformly from both | `sampling="uniform"`; `"equal"` |
# | noise on them | none | 0.05 | `noise=0.05`; 0 |
# | no confident pixel in a batch | not stated | an exception, or a loss that is not a number | no step, and a loss of 0 |
# | CutMix box | "CutMix" | half of the area, width uniform | half of the area, height share $0.5^{U(0,1)}$ (French et al.) |
# | stem of ResNet-101 | not stated | three 3×3 convolutions | torchvision's 7×7, whose ImageNet weights are public |
# | reported epoch | not stated | best of all epochs and of both networks on the validation set | last epoch, teacher; the best is shown beside it |
# | epsilon at other widths | 4 at 304 channels | same | same change per channel: $4\sqrt{C/304}$ at $C$ channels |
#
# At `scale="tiny"` the network, the images and the schedule are small; only `scale="paper"` on PASCAL VOC is comparable
# with the paper's tables, and takes days on one GPU.
