# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-calibration)=
# # The embedded data and its calibration
#
# A benchmark that trains in minutes on a laptop must be designed: at short schedules and few pixels, unlabeled images
# easily change nothing. This page shows the data, the goals it was adjusted to, and what came out, the uncomfortable part
# included. Only the supervised and the mean-teacher baseline were used for the adjustment; the papers' methods were run once
# it was fixed.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-digits", "caption": "Training scenes: one real handwritten digit each, in dark ink of any hue on a lighter, textured and cluttered ground. The mask is the stroke."}}
import pandas as pd

from semiseg.data.sets.digits import Digits
from semiseg.data.splits import SPLITS, seeded_split
from semiseg.notebook import repo_root
from semiseg.runs import find_runs, table
from semiseg_book import pictures, tables
from semiseg_book.style import use_style

use_style()
# %config InlineBackend.figure_formats = ["retina"]
digits = Digits()
fig = pictures.scenes(digits, digits.train[:10])

# %% [markdown]
# The 1,797 digits of scikit-learn {cite:p}`alpaydin1998digits,pedregosa2011sklearn` are divided into a pool for training
# and one for validation scenes; no digit is in both, and none is used twice. One seed gives the same bytes on every machine.

# %% tags=["hide-input"]
print(f"{len(digits.train)} training and {len(digits.val)} validation scenes, SHA-256 {digits.sha256[:16]}")
pd.DataFrame(
    [
        {
            "split": s,
            "labeled": len(p.labeled),
            "unlabeled": len(p.unlabeled),
            "SHA-256 of the lists, seed 0": p.sha256[:16],
        }
        for s in SPLITS
        for p in [seeded_split(digits.train, s, 0)]
    ]
).set_index("split")

# %% [markdown]
# ## Goals and results
#
# The goals, over three seeds (network, labeled images and order of data change with the seed, the scenes do not): the
# supervised baseline at 1/8 between 35 and 65 mIoU; supervised with all labels at least 15 points higher; mean teacher at 1/8
# at least 4 points above supervised at 1/8.

# %% tags=["hide-input"]
runs = tables.standard(find_runs(repo_root() / "runs" / "digits-tiny"))
baselines = [r for r in runs if r.label in ("supervised", "mean_teacher")]
scores = tables.over_seeds(baselines).drop(columns=["data", "scale"])
scores.set_index(["split", "method"])

# %% tags=["hide-input"]
mean = scores.set_index(["split", "method"])["mean"]
gain = tables.gain_summary(baselines, [("mean_teacher", "supervised")]).set_index("split")
met = {True: "met", False: "NOT met"}
low, full = mean["1_8", "supervised"], mean["full", "supervised"]
pd.DataFrame(
    [
        ("supervised at 1_8 between 35 and 65", low, met[35 <= low <= 65]),
        ("supervised at full minus 1_8, at least 15", full - low, met[full - low >= 15]),
        ("mean teacher minus supervised at 1_8, at least 4", gain["mean"]["1_8"], met[gain["mean"]["1_8"] >= 4]),
    ],
    columns=["goal", "measured", "result"],
).round(2).set_index("goal")

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-calibration", "caption": "The two baselines on the embedded data: every seed, and the mean as a bar."}}
fig = pictures.seeds(table(baselines))

# %% [markdown]
# ## What the gain is made of
#
# The strong view of the mean teacher also brings *augmentation*: colors, gray, blur. The supervised baseline, as in the
# papers, sees the weak view only. So part of the difference above may be augmentation and not unlabeled images. The control:
# the strong view's colors on the labeled images, in both arms.

# %% tags=["hide-input"]
everything = find_runs(repo_root() / "runs" / "digits-tiny")
control = [r for r in everything if r.record["recipe"]["optimization"]["strong_labels"]]
matched = tables.over_seeds(control).drop(columns=["data", "scale"])
matched.set_index(["split", "method"])

# %% tags=["hide-input"]
plain_mt = [r for r in baselines if r.label == "mean_teacher"]
strong_sup = [r for r in control if r.label == "supervised"]
rows = {
    "mean teacher minus supervised (the papers' comparison)": tables.paired_gain(
        baselines, "mean_teacher", "supervised"
    ),
    "mean teacher minus supervised with strong labels": tables.paired_gain(
        plain_mt + strong_sup, "mean_teacher", "supervised"
    ),
    "the same, strong labels in both": tables.paired_gain(control, "mean_teacher", "supervised"),
}
summary = {}
for name, pairs in rows.items():
    at = pairs[pairs.split == "1_8"].gain
    summary[name] = {"mean": at.mean(), "s.d.": at.std(), "smallest": at.min(), "seeds": len(at)}
pd.DataFrame.from_dict(summary, orient="index").round(2)

# %% [markdown]
# Read the first row as the benchmark's definition and the last one as what unlabeled images add once augmentation is matched.
# DDFP and mean teacher see the same views, so their comparison is not affected. DGCL and ESL paste without changing colors,
# as in their papers: beside mean teacher they lack that augmentation, and their chapters train a baseline of their own.
#
# ## What was tried
#
# Scenes of 40 and 48 pixels with one or two digits, blurred or bright ink, masks of whole plates instead of strokes, and
# rotated textured shapes left the baselines too low, or mean teacher no better than supervised. Smaller scenes with one crisp
# digit in dark ink, varied colors, a threshold of 0.8 and 1,600 steps met the goals. Generator, length and threshold were
# chosen on the validation scenes that are reported, mostly with seed 0; there is no separate test set.
