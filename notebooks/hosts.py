# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-hosts)=
# # The training schemes
#
# A paper on semi-supervised segmentation rarely starts from nothing. It takes a scheme (which networks there are, who labels
# for whom, what is compared with what) and changes a part of it: the filter on pseudo-labels, what is pasted, the weight of
# a pixel, a loss on features. In this package a scheme is a *host*: one file in `semiseg/hosts` whose step reads from top to
# bottom, with the parts that papers change as arguments.
#
# This page shows what each scheme does, in one picture, one equation and one piece of code. Symbols are those of
# {ref}`sec-setting`.
#
# ## How to read the pictures
#
# Nothing below is drawn by hand. A pixel weighter that changes nothing (`semiseg_book.chapters.hosts.Watch`) is put into a host, and
# one step runs on a batch of the embedded data. The student has the weights of a supervised run of the committed records, the
# teacher those of a mean-teacher run: roughly the state in the middle of training. Colors are classes; a soft label
# mixes the colors of its classes; gray is not supervised. In the last panel, *difference* is what the student must make
# smaller, pixel by pixel, from dark (none) to bright.

# %% tags=["hide-input"]
from semiseg.build import build
from semiseg.data.loader import TrainingStream
from semiseg.data.sets.digits import Digits
from semiseg.data.splits import seeded_split
from semiseg.hosts.u2pl_contrast import U2PLOptions
from semiseg.inference.model import load_exported
from semiseg.notebook import repo_root
from semiseg.recipe import Recipe, recipe
from semiseg.runs import Run, find_runs
from semiseg_book import tables
from semiseg_book.chapters import hosts as figures
from semiseg_book.style import use_style

use_style()
# %config InlineBackend.figure_formats = ["retina"]
digits = Digits()
split = seeded_split(digits.train, "1_8", seed=0)
setting = recipe("supervised", "digits", "1_8").optimization
batch = TrainingStream(digits, split, crop=setting.crop, scale=setting.resize, batch=8, seed=0)[0]


def network(name):
    """The teacher of a committed run."""
    run = Run.read(repo_root() / "runs" / "digits-tiny" / name)
    made = Recipe.from_dict(run.record["recipe"])
    return load_exported(made, len(digits.classes), run.folder / "model.safetensors").teacher.model


student, teacher = network("supervised-1_8-seed0"), network("mean_teacher-1_8-seed0")
other = network("dgcl-1_8-seed0-selftraining")  # a third one, where a scheme has a second student or several stages


def scene(method):
    """One step of a scheme as its (first) student lived it."""
    host = build(recipe(method, "digits", "1_8"), len(digits.classes))
    return figures.watched(figures.staged(host, student, teacher, other if method == "cps" else None), batch)[0]


by_cross_entropy, by_squares = figures.per_pixel_cross_entropy, figures.per_pixel_squared_error
two = (0, 3)  # images of the batch
print(
    f"{len(split.labeled)} labeled and {len(split.unlabeled)} unlabeled scenes; a batch of {len(batch.x)} and {len(batch.u_weak)}"
)

# %% [markdown]
# (sec-host-supervised)=
# ## Supervised
#
# The baseline of every table: cross-entropy on the labeled images, and nothing else. With $\mathcal{V}$ the pixels whose label is
# known,
#
# $$
# \mathcal{L}_{sup} = \frac{1}{|\mathcal{V}|} \sum_{(i,j) \in \mathcal{V}} \ell_{ce}\big(f(x^l_i)_j,\, y^l_{ij}\big) .
# $$ (eq-host-supervised)
#
# Its teacher only watches. It is scored like the teachers of the other schemes, so that averaging weights is nobody's
# advantage.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-host-supervised", "caption": "Supervised: labeled images, masks, the student's prediction, cross-entropy per pixel."}}
fig = figures.labels_alone(student, batch, digits, range(8))

# %% [markdown]
# ````{admonition} The step, as it runs
# :class: dropdown
# ```{literalinclude} ../semiseg/hosts/supervised.py
# :pyobject: Supervised.losses
# :language: python
# ```
# ````
#
# (sec-host-mean-teacher)=
# ## Mean teacher with pseudo-labels
#
# The host of DDFP, DGCL and ESL, and the common form of consistency since FixMatch {cite:p}`sohn2020fixmatch`: the teacher's
# most likely class on the weak view is the label of the strong view, where the teacher is sure enough
# ({eq}`eq-consistency`). The strong view has other colors, and a rectangle of the next image is pasted over it, label and all.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-host-mean-teacher", "caption": "Mean teacher with pseudo-labels. Pixels below the threshold are gray: they teach nothing."}}
fig = figures.step(scene("mean_teacher"), digits, two, by_cross_entropy)

# %% [markdown]
# ````{admonition} The step, as it runs
# :class: dropdown
# ```{literalinclude} ../semiseg/hosts/mean_teacher.py
# :pyobject: MeanTeacher.losses
# :language: python
# ```
# ````
#
# (sec-host-mean-teacher-mse)=
# ## Mean teacher with soft targets
#
# The scheme that tables call *Mean Teacher* or *MT* {cite:p}`tarvainen2017meanteacher`. No threshold and no hard label: the
# student's class probabilities shall equal the teacher's, in the mean square over pixels and classes,
#
# $$
# \begin{aligned}
# \mathcal{L} &= \mathcal{L}_{sup} + w(t)\, \frac{1}{|\mathcal{V}|\, K} \sum_{(i,j) \in \mathcal{V}}
# \big\| p^s_{ij} - p^w_{ij} \big\|_2^2 , \\
# w(t) &= 100\, e^{-5\,(1 - t / t_0)^2} \ \text{ for } t < t_0,\ \text{else } 100 .
# \end{aligned}
# $$ (eq-host-mse)
#
# The weight rises over the first tenth of training ($t_0 = 0.1$), since a random teacher has nothing to say. A weight of 100 on a
# *mean* over $K$ classes is one of $100 / K$ on the sum, which other papers write. A labeled pixel that a mixer pastes in
# (UPC) is pulled to its one-hot label.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-host-mse", "caption": "Mean teacher with soft targets: the same image in other colors, the teacher's probabilities, squared difference."}}
fig = figures.step(scene("mean_teacher_mse"), digits, two, by_squares)

# %% [markdown]
# ````{admonition} The step, as it runs
# :class: dropdown
# ```{literalinclude} ../semiseg/hosts/mean_teacher_mse.py
# :pyobject: SoftMeanTeacher.losses
# :language: python
# ```
# ````
#
# (sec-host-cutmix-seg)=
# ## CutMix-Seg
#
# {cite:t}`french2020cutmixseg` observe that boundaries between classes do not lie where patches of images are rare, so that small
# changes of an image teach little about segmentation; strong and varied ones are needed. Theirs is a mosaic. With $M$ a box of half
# the image's area,
#
# $$
# \tilde{x} = M \odot x_1 + (1 - M) \odot x_0 , \qquad
# \tilde{p} = M \odot f'(x_1) + (1 - M) \odot f'(x_0) ,
# $$
#
# $$
# \begin{aligned}
# \mathcal{L} &= \mathcal{L}_{sup} + c\, \frac{1}{|\mathcal{B}^u| HW} \sum_{i,j}
# \big\| f(\tilde{x}_i)_j - \tilde{p}_{ij} \big\|_2^2 , \\
# c &= \frac{1}{|\mathcal{B}^u| HW} \sum_{i,j} \mathbf{1}\big[\max_k \tilde{p}_{ijk} \ge \tau\big] .
# \end{aligned}
# $$ (eq-host-cutmix)
#
# The teacher sees whole images, the student must say what it saw from the pieces. The factor $c$ is one number for the batch: it
# takes the place of a ramp-up, and unsure pixels still count once the teacher is sure of most.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-host-cutmix", "caption": "CutMix-Seg: probabilities travel with the box."}}
fig = figures.step(scene("cutmix_seg"), digits, two, by_squares)

# %% [markdown]
# ````{admonition} The step, as it runs
# :class: dropdown
# ```{literalinclude} ../semiseg/hosts/cutmix_seg.py
# :pyobject: CutMixSegmentation.losses
# :language: python
# ```
# ````
#
# (sec-host-cps)=
# ## CPS: cross pseudo supervision
#
# {cite:t}`chen2021cps` train two networks $f_1, f_2$ with the same pretrained backbone and different random heads. Each labels
# the unlabeled images for the other: hard labels, no threshold, every pixel,
#
# $$
# \begin{aligned}
# \mathcal{L} &= \sum_{n=1}^{2} \mathcal{L}_{sup}(f_n) + w\, \big[ \ell_{ce}\big(f_1(\tilde{x}),\, \tilde{y}_2\big)
# + \ell_{ce}\big(f_2(\tilde{x}),\, \tilde{y}_1\big) \big] , \\
# y_n &= \operatorname{argmax}_k f_n(x^u)_k .
# \end{aligned}
# $$ (eq-host-cps)
#
# As long as the two disagree they correct each other; a mistake both make stays. Images and labels are mixed by three boxes that
# *toggle* pixels: where two overlap, the image is its own again. Without mixing, the cross supervision covers labeled images
# too, and label and lesson come from one pass. The first network is the one that is used; its average is the teacher that watches.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-host-cps", "caption": "CPS, as the first network lives it: the second one labels, and no pixel is left out."}}
fig = figures.step(scene("cps"), digits, two, by_cross_entropy, who="other")

# %% [markdown]
# ````{admonition} The step, as it runs
# :class: dropdown
# ```{literalinclude} ../semiseg/hosts/cps.py
# :pyobject: CrossPseudoSupervision.losses
# :language: python
# ```
# ````
#
# (sec-host-stpp)=
# ## ST++: self-training in stages
#
# {cite:t}`yang2022stpp` have no second network and no average. A network is trained on the labels, labels all other images once,
# offline, and a new one is trained on everything, with strong augmentation on the pseudo-labeled part. The *++* is an order: images
# on which the network kept changing its mind while it was trained come last. With three checkpoints $f_1, f_2, f_3$ of the first
# training,
#
# $$
# r(x) = \frac{1}{2} \sum_{n=1}^{2} \mathrm{mIoU}\big(\operatorname{argmax} f_n(x),\, \operatorname{argmax} f_3(x)\big)
# $$ (eq-host-stpp)
#
# ranks the unlabeled images. The better half is labeled by the first network and trains the second one; that one labels the other
# half, and all images train the third, which is the result. No epoch is chosen on validation images here.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-host-stpp", "caption": "ST++: unlabeled images from reliable to unreliable, with the score r of each. Three different networks stand for the three checkpoints of one training."}}
fig, scores = figures.by_reliability(digits, split.unlabeled[:60], (student, other, teacher))
print(f"{len(scores)} images, {sum(s > 0.5 for s in scores)} of them above a score of 0.5")

# %% [markdown]
# ````{admonition} Reliability, and the step of a retraining, as they run
# :class: dropdown
# ```{literalinclude} ../semiseg/hosts/stpp.py
# :pyobject: reliability
# :language: python
# ```
# ```{literalinclude} ../semiseg/hosts/stpp.py
# :pyobject: SelfTraining.losses
# :language: python
# ```
# ````
#
# (sec-host-u2pl)=
# ## U2PL: unreliable pixels as negatives
#
# A pixel that hesitates between two classes is useless as a label, but it says clearly what it is *not*. {cite:t}`wang2022u2pl` let
# the teacher look twice: at the weak view for pseudo-labels, then at the mixed images, where the share $\alpha_t$ of highest entropy
# is *unreliable*. It falls from 20 % to none. Reliable pixels teach by cross-entropy; unreliable ones are negatives of a contrast between
# pixel embeddings $z$,
#
# $$
# \mathcal{L}_{c} = -\frac{1}{|\mathcal{C}|\, A} \sum_{c \in \mathcal{C}} \sum_{a=1}^{A} \log
# \frac{e^{\langle z_{ca},\, z^+_c \rangle / \tau}}{e^{\langle z_{ca},\, z^+_c \rangle / \tau}
# + \sum_{m} e^{\langle z_{ca},\, z^-_{cam} \rangle / \tau}} ,
# $$ (eq-host-u2pl)
#
# where $z^+_c$ is the mean embedding of class $c$, and the negatives come from a queue per class: embeddings of unreliable
# pixels for which $c$ is not among the likeliest few.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-host-u2pl", "caption": "U2PL: mixed images half way through training; the entropy of the teacher's second look; pseudo-labels without the unreliable pixels; and for these the classes that stay possible, as a mixture of their colors. They are negatives for all other classes."}}
u2pl = recipe("u2pl", "digits", "1_8")
host, half_way = figures.staged(build(u2pl, len(digits.classes)), student, teacher), 0.5
mixed = figures.watched(host, batch, half_way)[0].mixed
_, unreliable = host.auxiliary.divide(mixed, half_way, mixed.image.shape[-2:])
fig = figures.unreliable_pixels(mixed, unreliable, digits, range(8), u2pl[U2PLOptions].low_rank)

# %% [markdown]
# ````{admonition} The step, as it runs
# :class: dropdown
# ```{literalinclude} ../semiseg/hosts/u2pl.py
# :pyobject: U2PL.losses
# :language: python
# ```
# ````
#
# (sec-host-mask2former)=
# ## Mask2Former: sets of masks
#
# All schemes above classify pixels. {cite:t}`cheng2022mask2former` predict a set: each of $Q$ queries gives a class distribution
# $\rho_q$ (with an extra *no object*) and a mask $m_q$. The target of an image is the set of its classes' masks; the Hungarian method
# pairs each with the query that fits best, $\sigma$, and
#
# $$
# \mathcal{L} = \sum_{q} 2\, \ell_{ce}\big(\rho_q, c_{\sigma(q)}\big) + \mathbf{1}[c_{\sigma(q)} \ne \varnothing]\,
# 5 \Big( \ell_{bce}\big(m_q, M_{\sigma(q)}\big) + \ell_{dice}\big(m_q, M_{\sigma(q)}\big) \Big) .
# $$ (eq-host-mask2former)
#
# A pixel's score for class $k$ is $\sum_q \rho_{qk}\, m_q$; divided by their sum, scores are the probabilities that entropy is read from.
# As a semi-supervised scheme it trains on labels, labels the other images once and trains again on both, as UPC has it
# {cite:p}`fang2023upc`; its supervised baseline is the first of the two trainings. A mixed label map needs nothing special: its set of
# masks is made after mixing. A pixel without a label, though, is in no mask, and would teach every mask to leave it out; here it
# counts neither in the mask terms nor in the matching.
#
# The network is that of the package `transformers` {cite:p}`wolf2020transformers`, an optional one: `pip install 'semiseg[mask2former]'`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-host-mask2former", "caption": "Mask2Former: label maps of mixed images as sets of binary masks, the three largest of each; an image with two classes has two."}}
fig = figures.sets_of_masks(scene("cps").mixed, digits, range(8))

# %% [markdown]
# ````{admonition} The step of the retraining, and its mask terms, as they run
# :class: dropdown
# ```{literalinclude} ../semiseg/hosts/mask2former.py
# :pyobject: MaskSelfTraining.losses
# :language: python
# ```
# ```{literalinclude} ../semiseg/models/mask2former_loss.py
# :pyobject: MaskLoss.loss_masks
# :language: python
# ```
# ````
#
# ## What they cost, and what came out
#
# Committed records of the embedded set at split 1_8: mIoU of the teacher after the last epoch, mean and standard deviation over
# seeds, and seconds per step, loading and scoring included, on the machine the records were made on. These numbers tell whether a
# scheme works and what it costs, not which one is better: networks are small, schedules short, and every scheme has the numbers of its
# paper, except the threshold on confidence. {ref}`sec-calibration` says how the setting was chosen.

# %% tags=["hide-input"]
records = tables.standard(find_runs(repo_root() / "runs" / "digits-tiny"))
schemes = [
    "supervised",
    "mean_teacher",
    "mean_teacher_mse",
    "cutmix_seg",
    "cps",
    "stpp",
    "u2pl",
    "mask2former",
]
figures.comparison(records, schemes)

# %% [markdown]
# Any scheme is trained from Python by its recipe, as below; `with_plug_ins(recipe("cps"), "upc")` puts UPC on top of it.
#
# ```python
# from semiseg.data.open import open_data, open_split
# from semiseg.notebook import train_or_reuse
# from semiseg.recipe import recipe
#
# data = open_data("digits")
# train_or_reuse(recipe("cps", seed=0), data, open_split(data, "1_8", seed=0))
# ```
#
# ## Deviations
#
# Released code: Britefury/cutmix-semisup-seg at commit af6183a (CutMix-Seg); charlesCXK/TorchSemiSeg at 5e0c29c (CPS, and the rerun of
# mean teacher that most tables quote). `semiseg.recipe.reading(recipe("cps"), "official")` chooses the second column at once, for mean teacher as for CPS.
#
# **Mean teacher with soft targets**
#
# | topic | rerun in TorchSemiSeg | here |
# |---|---|---|
# | views | teacher and student see the same image | `color=True`: the student's has other colors; `False` |
# | images | labeled and unlabeled | unlabeled; `on_labeled=True` for both |
# | weight | 100 from the first step on | rises over a tenth of training {cite:p}`laine2017temporal`; `ramp_up=0` |
# | teacher | average of parameters, statistics of its batch, updated before the optimizer's step | average of parameters and statistics, evaluation mode, updated after it; `teacher="ema_train"` reproduces the first two |
# | padding of crops | counts | left out on unlabeled images |
# | reported network | student | teacher; the student stands in every record |
#
# **CutMix-Seg**
#
# | topic | released code | here |
# |---|---|---|
# | pairs | two independent unlabeled batches | the next image of the same batch: half the cost |
# | batch normalization | frozen in both networks (PASCAL VOC) | trained, and averaged by the teacher |
# | optimizer | Adam, $10^{-5}$, a tenth of it for pretrained layers | that of all schemes |
# | average in the first steps | 0.99 from the first on | $\min(1 - 1/(t+1),\, 0.99)$ |
# | threshold | 0.97 | 0.97 at paper scale, elsewhere that of mean teacher |
# | confidence | one factor; a mask per pixel as option | the same: `confidence="batch"`, `"pixel"` |
# | erasing instead of pasting (CutOut {cite:p}`devries2017cutout`) | an option | not included |
#
# **CPS**
#
# | topic | released code | here |
# |---|---|---|
# | pass that labels clean images | training mode: statistics of the batch, dropout | `label_mode="eval"`; `"train"` |
# | padding, and labeled pixels to ignore | supervised by the other network | left out; `padding=True` |
# | pairs | two independent unlabeled batches | the next image of the same batch |
# | weight | 1.5 and 6 without mixing; 1 and 5 with it (PASCAL VOC, Cityscapes) | the same: `CPSOptions.plain()` and the default |
# | optimizers | two with equal schedules | one over both networks, which is the same |
# | resizing | by one of six factors | by any factor between the smallest and the largest of the recipe |
# | network | ResNet with a stem of three convolutions, leaky ReLU in the head | torchvision's ResNet, ReLU |
# | reported network | first network | its average; the network itself stands in every record |
#
# **Mask2Former**
#
# Left: the supervised recipe of facebookresearch/Mask2Former at 9b0651c, and what UPC says of its use as a scheme.
#
# | topic | released code, UPC | here |
# |---|---|---|
# | ignored pixels | in no mask, hence outside of all | in neither the mask terms nor the matching |
# | probabilities of a pixel | scores are not normalized | scores / sum; `doubt="missing"`: what they lack to 1 counts as one more class in the entropy |
# | backbone | not stated in UPC | ResNet-101 at paper scale, from torchvision's weights |
# | weight decay | 0.05, none on norms and embeddings; UPC $10^{-4}$ and $5 \cdot 10^{-4}$ | UPC's, on all parameters |
# | rate of the backbone, clipping, points, queries | a tenth, norm 0.01, 12,544, 100 | the same at paper scale |
# | augmentation of labeled images | colors, too | crop, scale and flip, as in every scheme here |
# | steps on Cityscapes | 90k (UPC) | 30k on labels and 60k on both, divided as on PASCAL VOC |
# | embedded set | | 12 queries, one layer of the pixel decoder and three of the decoder, masks at half the size of the image, 128 points; 8 + 8 images per step |
