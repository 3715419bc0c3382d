"""The script that runs an exported schedule with torch.distributed.pipelining, as a template."""

SCRIPT = '''\
"""Runs the schedule {csv_name} with torch.distributed.pipelining on a model of random weights.

    torchrun --nnodes {nodes} --nproc-per-node {per_node} THIS_FILE

torch 2.13; `--csv PATH` names the schedule's file, `--steps N` the number of steps.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime

PIPELINE, DATA, MICROBATCHES = {pipeline}, {data}, {microbatches}
STAGES_OF_DEVICE = {stages_of_device}
LAYERS_OF_STAGE = {layers_of_stage}
HIDDEN, HEADS, KV_HEADS, HEAD_DIM = {hidden}, {heads}, {kv_heads}, {head_dim}
FFN, GATED, VOCAB = {ffn}, {gated}, {vocab}
BIAS, NORM, LEARNED_POSITIONS, CAUSAL = {bias}, nn.{norm}, {learned}, {causal}
SEQUENCE, MICROBATCH, DTYPE = {sequence}, {microbatch}, torch.{dtype}


class Block(nn.Module):
    """Attention and MLP, each after a norm and beside a residual."""

    def __init__(self):
        super().__init__()
        width = HEADS * HEAD_DIM
        self.norm1, self.norm2 = NORM(HIDDEN), NORM(HIDDEN)
        self.qkv = nn.Linear(HIDDEN, width + 2 * KV_HEADS * HEAD_DIM, bias=BIAS)
        self.out = nn.Linear(width, HIDDEN, bias=BIAS)
        self.up = nn.Linear(HIDDEN, FFN * (2 if GATED else 1), bias=BIAS)
        self.down = nn.Linear(FFN, HIDDEN, bias=BIAS)

    def forward(self, x):
        batch, tokens, _ = x.shape
        parts = self.qkv(self.norm1(x)).split([HEADS * HEAD_DIM] + 2 * [KV_HEADS * HEAD_DIM], -1)
        q, k, v = (part.view(batch, tokens, -1, HEAD_DIM).transpose(1, 2) for part in parts)
        grouped = KV_HEADS < HEADS
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=CAUSAL, enable_gqa=grouped)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        up = self.up(self.norm2(x))
        if GATED:
            gate, up = up.chunk(2, -1)
            return x + self.down(F.silu(gate) * up)
        return x + self.down(F.gelu(up))


class Stage(nn.Module):
    """Some blocks; the embedding before the first, norm and head after the last."""

    def __init__(self, index):
        super().__init__()
        first, last = index == 0, index == len(LAYERS_OF_STAGE) - 1
        self.embedding = nn.Embedding(VOCAB, HIDDEN) if first else None
        self.positions = nn.Embedding(SEQUENCE, HIDDEN) if first and LEARNED_POSITIONS else None
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS_OF_STAGE[index])))
        head = nn.Sequential(NORM(HIDDEN), nn.Linear(HIDDEN, VOCAB, bias=False))
        self.head = head if last else None

    def forward(self, x):
        if self.embedding is not None:
            x = self.embedding(x)
            if self.positions is not None:
                x = x + self.positions.weight
        x = self.blocks(x)
        return x if self.head is None else self.head(x)


def loss_of(logits, target):
    return F.cross_entropy(logits.flatten(0, 1).float(), target.flatten())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", default=str(Path(__file__).with_name("{csv_name}")))
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    rank = dist.get_rank()
    device = torch.device(kind, rank % torch.cuda.device_count() if kind == "cuda" else 0)
    if kind == "cuda":
        torch.cuda.set_device(device)
    mesh = init_device_mesh(kind, (DATA, PIPELINE), mesh_dim_names=("data", "pipeline"))
    place, group = mesh["pipeline"].get_local_rank(), mesh["pipeline"].get_group()
    torch.manual_seed(place)
    modules = [Stage(index).to(device, DTYPE) for index in STAGES_OF_DEVICE[place]]
    stages = [
        PipelineStage(module, index, len(LAYERS_OF_STAGE), device, group=group)
        for module, index in zip(modules, STAGES_OF_DEVICE[place])
    ]
    schedule = _PipelineScheduleRuntime(stages, MICROBATCHES, loss_fn=loss_of)
    schedule._load_csv(options.csv, format="compute_only")
    parameters = [parameter for module in modules for parameter in module.parameters()]
    optimizer = {optimizer}
    shape = (MICROBATCHES * MICROBATCH, SEQUENCE)
    last = len(LAYERS_OF_STAGE) - 1
    for step in range(options.steps):
        begin = time.perf_counter()
        tokens = torch.randint(VOCAB, shape, device=device)
        target = torch.randint(VOCAB, shape, device=device)
        losses = []
        inputs = (tokens,) if 0 in STAGES_OF_DEVICE[place] else ()
        if last in STAGES_OF_DEVICE[place]:
            schedule.step(*inputs, target=target, losses=losses)
        else:
            schedule.step(*inputs)
        if DATA > 1:
            for parameter in parameters:
                dist.all_reduce(parameter.grad, group=mesh["data"].get_group())
                parameter.grad /= DATA
        optimizer.step()
        optimizer.zero_grad()
        if losses:
            seconds, loss = time.perf_counter() - begin, torch.stack(losses).mean().item()
            said = f"step {{step}} took {{seconds:.3f}} s, loss {{loss:.4f}}"
            print(f"rank {{rank}}: {{said}}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
'''
"""With the fields that :func:`mpsim.planner.launchers.torch_pipelining.pipelining_files` fills."""
