"""``mpsim schema`` and ``mpsim init``: what an editor needs and a file to start from."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mpsim.cli.outputs import write_text
from mpsim.errors import ScenarioError
from mpsim.spec.fields import fields_page
from mpsim.spec.scenario import Scenario

STARTER = """\
# yaml-language-server: $schema=scenario.schema.json   (mpsim schema > scenario.schema.json)
# A starter: a 7B model on one node of eight devices. Run it: mpsim scenario THIS_FILE
name: my first split

model: llama2-7b          # a name of `mpsim zoo models`, or {layers: 32, hidden: 4096, ...}

cluster:
  base: dgx-a100-80gb     # a name of `mpsim zoo clusters`; what stands below overrides it
  nodes: 1
  # device: h100-sxm-80gb                 # `mpsim zoo devices`
  # node: {link: {bandwidth: 300 GB/s}}   # every quantity carries its unit
  # network: {base: ethernet-100, bandwidth: 12.5 Gbit/s}   # of one device of eight

plan:                     # tensor x pipeline x data (x context) must equal the number of devices
  tensor: 2
  pipeline: 2
  data: 2
  schedule: 1f1b          # `mpsim schedule --compare all` ranks them
  recompute: none         # none, selective, full
  zero: 1                 # 0 replicated, 1 optimizer, 2 and gradients, 3 and parameters sharded

training:
  global_batch: 64        # sequences of one step, over all replicas
  microbatch: 1
  sequence: 4096          # tokens
  precision: bf16         # fp32, tf32, fp16, bf16, fp8
  optimizer: adam         # sgd, momentum, adam, adafactor
  framework: megatron     # megatron, fsdp, torch: whose kernels, buckets and state

variants:                 # run beside the above and compared with it
  full recomputation:
    plan.recompute: full
  no tensor parallelism:
    plan: {tensor: 1, pipeline: 4}
"""


@click.command()
@click.option("--markdown", is_flag=True, help="All fields as a page for people instead.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write to a file.")
def schema(out: Path | None, *, markdown: bool) -> None:
    """Print the JSON Schema of a scenario, for editors."""
    text = fields_page() if markdown else json.dumps(Scenario.model_json_schema(), indent=2)
    write_text(text, out)


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False, path_type=Path))
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
def init(file: Path | None, *, force: bool) -> None:
    """Write a commented starter scenario to FILE, or print it."""
    if file is not None and file.exists() and not force:
        raise ScenarioError(str(file), "exists already; use --force to overwrite it")
    write_text(STARTER, file)
