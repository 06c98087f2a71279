# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-data)=
# # Data sets and splits
#
# "1/8 of PASCAL VOC" is not one setting. Two papers may label different images, with masks of different quality, and leave
# a different number unlabeled, and still print their numbers in one column. This page says what each benchmark is, which
# lists of labeled images exist, and which published numbers may stand side by side. Every count comes from a table of the
# package that names the files it was counted in; nothing here needs a download.

# %% tags=["hide-input"]
from itertools import pairwise

import pandas as pd

from semiseg.data.inspect.report import inspect, to_text
from semiseg.data.sets.digits import Digits
from semiseg.data.splits import SPLITS, seeded_split
from semiseg.recipe import recipe
from semiseg.scales import MAKERS
from semiseg_book import pictures
from semiseg_book.benchmarks import by_chance, facts, mask_origins
from semiseg_book.style import use_style

use_style()
pd.options.display.max_colwidth = 80
# %config InlineBackend.figure_formats = ["retina"]

# %% [markdown]
# ## The benchmarks
#
# PASCAL VOC 2012 {cite:p}`everingham2010voc`, alone or with the masks of SBD {cite:p}`hariharan2011sbd`; Cityscapes
# {cite:p}`cordts2016cityscapes`; COCO {cite:p}`lin2014coco`; and CamVid {cite:p}`brostow2009camvid` in the edition of SegNet
# {cite:p}`badrinarayanan2017segnet`. The number of classes includes the background where there is one.

# %% tags=["hide-input"]
benchmarks = facts("benchmarks")
benchmarks.drop(columns=["data", "source"]).set_index(["title", "setting"])

# %% [markdown]
# `open_data(name, root)` opens each in its official layout, and `folder` opens your own images. A recipe has a scale for
# each: *smoke* takes seconds, *tiny* minutes to an hour on a laptop, *paper* has the numbers a paper trained with.

# %% tags=["hide-input"]
rows = {
    name: {
        "scales": ", ".join(makers),
        "crop, largest scale": recipe("unimatch", name, "1_8", list(makers)[-1]).optimization.crop,
        "evaluated": recipe("unimatch", name, "1_8", list(makers)[-1]).evaluation.protocol.replace("_", " "),
    }
    for name, makers in MAKERS.items()
}
pd.DataFrame.from_dict(rows, orient="index").rename_axis("data")

# %% [markdown]
# What to know about each:
#
# - **VOC, classic.** Labeled images are drawn from the images that VOC itself segments, with careful outlines. Most codes
#   leave *all* others, those of SBD included, unlabeled.
# - **VOC, blended.** Labeled images are drawn from VOC and SBD together. SBD's masks were drawn by crowd workers and have
#   no ignored outline. `semiseg.data.fetch.sbd.blended_masks` makes the folder SegmentationClassAug from SBD's `.mat` files; VOC's
#   own masks win, and VOC's validation images never enter training.
# - **Cityscapes.** Masks hold label ids; the evaluated classes are renumbered while reading, all other pixels are ignored.
#   Images are large: evaluation slides a window over them.
# - **COCO.** Things and background. Masks come from panoptic annotation or from instances
#   (`semiseg.data.sets.coco.write_masks`); they differ at borders and overlaps, so keep to one.
# - **COCO as unlabeled images of VOC.** UPC {cite:p}`fang2023upc` labels all of blended VOC and takes its unlabeled images from COCO
#   (its Table 4): `open_data("voc", root, unlabeled="…/train2017")` with split `full`.
# - **CamVid.** Small and quick. Most papers report its test part: `CamVid(root, val="test")`.
#
# ## Families of lists
#
# A *family* is a set of lists that belong together. How often do two families label the same image? If they were drawn
# independently, they would share $n^2 / N$ of $n$ labeled images out of $N$.

# %% tags=["hide-input"]
by_chance(facts("shared_images")).set_index(["data", "setting", "lists", "partition"])

# %% [markdown]
# Classic lists agree between codes except for one partition. Blended and Cityscapes lists share no more than chance: they are
# other images.
#
# ## Same name, other masks
#
# On blended VOC the families differ in more than chance. One draws from everything; the other takes VOC's own images first, so
# that its labeled masks are the careful ones and SBD's come in only when VOC's are used up.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-own-masks", "caption": "How many labeled images of blended VOC have VOC's own, careful mask. At the same number of labels one family has several times as many of them; a method tested on one list cannot be compared with a method tested on the other."}}
own = facts("own_masks")
fig = mask_origins(own)

# %% tags=["hide-input"]
wide = own.assign(share=(100 * own.own / own.labeled).round(1)).pivot(
    index="partition", columns="family", values="share"
)
wide.loc[["1_16", "1_8", "1_4", "1_2"]].rename_axis("own masks, % of the labeled")

# %% [markdown]
# ## Which published numbers may be compared
#
# The lists each released code trains with; empty where it has none.

# %% tags=["hide-input"]
facts("lists_of_codes").set_index("code")

# %% [markdown]
# Compare two numbers if **all** of this agrees; a run record carries the hash of its lists, so that the first two can be checked:
#
# 1. the labeled list, by content and not by name;
# 2. the unlabeled images: all others, or only the rest of VOC's own;
# 3. the encoder, its output stride and its initial weights;
# 4. the crop of training, and how validation images are seen (whole, center crop, sliding window);
# 5. which epoch is reported: the last, or the best on the very images the score is computed from.
#
# A number quoted from another paper inherits that paper's lists. Where a table mixes families, its columns mix benchmarks.
#
# ## What your own data need
#
# Names, not formats, decide what an image is: with a mask it can be labeled, without one it is unlabeled.
#
# ```
# mine/images/a.jpg       mine/masks/a.png
# mine/images/b.jpg                               unlabeled
# mine/unlabeled/c.jpg                            unlabeled
# mine/classes.toml       names = ["background", "leaf"]   values = [0, 255]
# ```
#
# Nested partitions are drawn from a seed, and each has a hash that its run records carry. For the embedded set:

# %% tags=["hide-input"]
digits = Digits()
splits = [seeded_split(digits.train, name, 0) for name in SPLITS]
pd.DataFrame(
    {
        "labeled": [len(s.labeled) for s in splits],
        "unlabeled": [len(s.unlabeled) for s in splits],
        "contained in the next": [
            *(set(a.labeled) <= set(b.labeled) for a, b in pairwise(splits)),
            "",
        ],
        "SHA-256": [s.sha256[:16] for s in splits],
    },
    index=pd.Index(SPLITS, name="split"),
)

# %% [markdown]
# Before hours of training, look at a data set. `inspect` decodes every image and mask, counts, and reports what would spoil
# a run: masks missing, unreadable, of another size or with values that are no class; the 0/255 trap; RGB masks; images in
# two parts, under one name or two. Here on a part of the embedded set, with few enough labels to have something to say:

# %% tags=["hide-input"]
small = Digits(train_scenes=320, val_scenes=80)
print(to_text(inspect(small, seeded_split(small.train, "1_16", 0), crop=32)))

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-data-labeled", "caption": "Some of the labeled scenes the report is about, with their masks."}}
fig = pictures.scenes(small, seeded_split(small.train, "1_16", 0).labeled[:8])
