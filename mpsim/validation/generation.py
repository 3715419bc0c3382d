"""Which generation of software a measured run used, from what its record says of the kernels.

Three generations behave differently on the same plan: Megatron of 2020 to 2022 (unfused attention,
fp16, nothing hidden behind compute), Megatron of today (fused kernels, sharded optimizer), and
PyTorch's FSDP. No rule here looks at the source of a record.
"""

from __future__ import annotations

import re
from typing import Literal

from mpsim.validation.devices import device_of, supported
from mpsim.validation.records import Record
from mpsim.validation.wording import last_said, names

Framework = Literal["torch", "megatron", "fsdp", "legacy_megatron"]

_FUSED_ATTENTION_TYPES = ("bf16", "fp8", "mxfp8", "nvfp4")
_PRECISIONS = re.compile(r"\b(fp32|tf32|fp16|bf16|fp8|mxfp8|nvfp4)\b")
_NAMES_MEGATRON = re.compile(r"\b(Megatron|Transformer Engine)\b", re.IGNORECASE)


_NAMES_DEEPSPEED = re.compile(r"\bDeepSpeed\b", re.IGNORECASE)


def names_deepspeed(record: Record) -> bool:
    """Whether the record names DeepSpeed."""
    return names(_NAMES_DEEPSPEED, record)


def framework_of(record: Record) -> Framework:
    """Which generation of software the run used, by what the record says of its kernels.

    Sharded gradients or parameters are FSDP, unless the record names Megatron or Transformer
    Engine. A stored score matrix is legacy Megatron, or plain torch where the record neither names
    Megatron nor splits the model; a stated compiler without model parallelism is plain torch; all
    else is Megatron of today.
    """
    plan = record.plan
    megatron = names(_NAMES_MEGATRON, record)
    single = (plan.tensor or 1) * (plan.pipeline or 1) * (plan.context or 1) == 1
    if (plan.zero or 0) >= 2 and not megatron:
        return "fsdp"
    if attention_of(record) == "math":
        return "torch" if single and not megatron else "legacy_megatron"
    return "torch" if plan.compiled is not None and single and not plan.zero else "megatron"


def attention_of(record: Record) -> Literal["flash", "math"]:
    """The attention kernel; where it is not stated, flash with bf16 and shorter types.

    Runs in fp16, fp32 and tf32 are of code from before fused attention.
    """
    if record.plan.attention:
        return record.plan.attention
    return "flash" if precision_of(record) in _FUSED_ATTENTION_TYPES else "math"


def precision_of(record: Record) -> str:
    """The precision, in a form that the device has units for.

    Where none is stated, the last one named in its clause of the notes, else bf16.
    """
    precision = record.plan.precision or _guessed(record.notes)
    device, _ = device_of(record.cluster, precision, [])
    return supported(precision, device)


def _guessed(notes: str) -> str:
    """The precision that the notes name last in their clause on it, else bf16."""
    clause = notes.partition("precision:")[2].partition("source gaps")[0].lower()
    # "fp32 peak, so probably tf32" names the guess last
    return last_said(_PRECISIONS, clause) or "bf16"
