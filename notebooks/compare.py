# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# (sec-compare)=
# # All methods side by side
#
# This page draws every committed record: each method and each plug-in on each training scheme, on all data and splits that
# have runs. Nothing on it is chosen by hand, so it grows with the records. Point at a mark to see its run, its mean and the
# number of seeds; a menu above a figure changes data and split.
#
# Three rules of reading:
#
# - The embedded data are small scenes with short schedules. They show whether an idea does what it claims, and what it costs.
#   **They do not rank the papers**, whose numbers come from other networks, images and schedules; those stand in the tables of
#   each paper's chapter.
# - A mark without a bar is a single seed. Differences between single seeds are noise until more are run: the spread of
#   the methods with three seeds shows how much.
# - Methods differ in their augmentation as their papers do. DGCL, ESL, CutMix-Seg, CPS and U2PL paste but do not change colors;
#   mean teacher, UniMatch and DDFP do both. {ref}`sec-calibration` says how much of a gain that is; the *paired differences* below
#   are free of it.

# %% tags=["hide-input"]
from IPython.display import Markdown, display

from semiseg.notebook import repo_root
from semiseg.runs import find_runs
from semiseg_book import compare, cost
from semiseg_book.style import use_style

use_style()
records = find_runs(repo_root() / "runs")
unchanged = compare.comparable(records)
frame = compare.scores(unchanged)
measured = cost.read_cost(repo_root() / "runs" / cost.COST)
Markdown(
    f"**{len(records)} records**, {len(unchanged)} of them of unchanged recipes: {frame.label.nunique()} methods with and "
    f"without plug-ins, {len(frame.groupby(['setting', 'split']))} combinations of data and split."
)

# %% [markdown]
# ## Scores
#
# Each pale mark is one run: the mIoU of the teacher after the last epoch. The strong mark is the mean over seeds and its
# bar the standard deviation. Colors are those of all figures of this book; a diamond is UPC on a scheme, a square WPL.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-compare-scores", "caption": "Every run (pale) and the mean over seeds (strong) with its standard deviation. Look first at how wide the bars of methods with three seeds are: smaller distances mean nothing here."}}
compare.methods_figure(frame)

# %% tags=["hide-input"]
for setting in sorted(set(frame.setting)):
    display(compare.summary(frame, setting))

# %% [markdown]
# ## Over the share of labeled images
#
# The same means against the share of images that keep their masks, for what was run at more than one share. The gray line is
# supervised training: its distance to a method is what the unlabeled images brought, its right end what all masks bring.
# Circles are the scheme or method alone, a diamond on a dotted line is UPC on it, a square WPL.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-compare-splits", "caption": "Mean mIoU (%) over the share of labeled images, embedded data. Look for a color that stays above gray at the left end, where masks are fewest."}}
compare.splits_figure(frame, "digits-tiny")

# %% [markdown]
# (sec-compare-gains)=
# ## Paired differences
#
# A fair question to an idea is what changes when it, and nothing else, is taken away. Each mark below is a *pair* of runs with
# the same seed, labeled images, network and schedule:
#
# - a plug-in (UPC, WPL) against the same scheme without it;
# - DDFP against mean teacher, which is DDFP without perturbation;
# - DGCL against itself without contrast, and ESL against itself with hard labels and without contrast. Both are plain self-training
#   with the augmentation and the filters of their papers.
#
# Right of the line the idea helps. Pairing removes what both runs share (an easy set of labeled images, a lucky
# initialization), so the spread of differences is smaller than the spread of scores suggests
# {cite:p}`bouthillier2021variance`.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-compare-gains", "caption": "Paired differences: every pair of runs (pale), their mean and standard deviation (strong). Right of zero the idea helps; where the bar crosses zero, these seeds cannot tell."}}
gains = compare.gains(records)
compare.gains_figure(gains)

# %% tags=["hide-input"]
compare.gains_table(gains)

# %% [markdown]
# ## Cost per step against gain
#
# The duration in a record depends on what else the machine did. The cost below is measured apart from training and written to
# `runs/step-cost.json`: all schemes take turns on the same batches, so that a slow moment hits all of them.

# %% tags=["hide-input"]
made_with = f"{measured['environment']['cpu']}, PyTorch {measured['environment']['packages']['torch']}"
Markdown(f"> {measured['how']} {measured['rounds']} rounds of {measured['steps']} steps on {made_with}.")

# %% [markdown]
# The best place is the upper left: a large gain over supervised training for little time. A step of ST++ is cheap, but it
# trains three networks one after the other; the table gives the time of a step and of a whole training, by the steps of the
# records, as multiples of supervised. Whether a gain is large is a matter of the seeds behind it.

# %% tags=["hide-input"] mystnb={"figure": {"name": "fig-compare-cost", "caption": "Gain over supervised (paired by seed) against the time of a step, embedded data, split 1_8. Upper left is best: much gained for little time."}}
prices = cost.cost_and_gain(unchanged, measured)
cost.cost_figure(prices)

# %% tags=["hide-input"]
cost.cost_table(prices)

# %% [markdown]
# On a GPU and at the papers' sizes the ratios differ: contrast and nearest neighbors cost memory there, the boxes of a detector
# must be found once, and a scheme with two networks needs both at once. `python tests/bench/bench_hosts.py --out FILE` measures on
# your machine; `make bench` runs all benchmarks.
#
# ## What is missing
#
# Methods without a record of the embedded data at any split, or without measured cost, are listed here and appear above as
# soon as they are run.

# %% tags=["hide-input"]
compare.coverage(unchanged, measured, lambda run: run.record["recipe"]["data"] == measured["data"])
