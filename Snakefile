"""The runs of a plan, each a job of its own.  `semiseg runs plan GRID.toml` writes the plan and says what to type:

snakemake --profile profiles/local --config plan=FOLDER

Further words after --config: train='--workers 4' goes to `semiseg train`; threads=4, of a run; cards=0,1,2,3, the GPUs
of this machine that runs take turns on (not on a cluster, which assigns them itself).
"""

import csv
import shlex
import sys
from pathlib import Path

if not (Path(config.get("plan", "")) / "plan.csv").is_file():
    raise WorkflowError("no plan: write one with `semiseg runs plan GRID.toml`, then add --config plan=FOLDER")
PLAN = Path(config["plan"])
with (PLAN / "plan.csv").open() as file:
    RUNS = {row["run"]: row for row in csv.DictReader(file)}
PLACE = {run: place for place, run in enumerate(RUNS)}
IMAGES = {row["root"] for row in RUNS.values()} - {""}
# A run takes the first card that no other holds; the lock goes when its process ends, however it ends.
CARDS = str(config.get("cards", "")).replace(",", " ").split()
TAKE_CARD = f"""
while true; do
  place=0
  for card in {shlex.join(CARDS)}; do
    place=$((place + 1))
    exec 9> .snakemake/card-$place.lock
    if flock --nonblock 9; then break 2; fi
  done
  sleep 1
done
export CUDA_VISIBLE_DEVICES=$card
""" * bool(CARDS)


rule all:
    input:
        expand(f"{PLAN}/{{run}}.json", run=RUNS),


# Snakemake removes the output of a job that fails or is started again.  So it gets a copy of the record: the run itself
# lies in runs/local, where a job that finds it finished reads it, and one that finds it begun goes on.
rule train:
    input:
        recipe=ancient(f"{PLAN}/{{run}}.toml"),
        images=[ancient(path) for path in IMAGES],
    output:
        f"{PLAN}/{{run}}.json",
    log:
        f"{PLAN}/{{run}}.log",
    wildcard_constraints:
        run="[^/]+/[^/]+",
    priority: lambda wildcards: len(RUNS) - PLACE[wildcards.run]
    retries: 3
    threads: config.get("threads", 1)
    resources:
        slurm_extra=lambda wildcards: f"'--nice={PLACE[wildcards.run]}'",  # in the order of the plan
    params:
        python=sys.executable,
        options=lambda wildcards: RUNS[wildcards.run]["options"],
        more=config.get("train", ""),
    shell:
        TAKE_CARD + "{params.python:q} -m semiseg train --config {input.recipe:q} --out runs/local/{wildcards.run:q}"
        " --reuse --no-progress {params.options} {params.more} > {log:q} 2>&1"
        " && cp runs/local/{wildcards.run:q}/run.json {output:q}"
