"""What the software that a record names keeps in device memory, and how it reports memory.

Each rule rests on the code of the software, found by its name in the record's provenance or notes;
none looks at the name of the table that a record is in.
"""

from __future__ import annotations

import re

from mpsim.spec.zoo import load_entry
from mpsim.validation.records import Record
from mpsim.validation.splits import Assumptions
from mpsim.validation.wording import names, says

Tree = dict[str, str]

_FUSED_LOSS = re.compile(r"\bllm-foundry\b")
"""Software whose loss works on 16-bit logits by default: llm-foundry (models/mpt/modeling_mpt.py:
``loss_fn`` is 'fused_crossentropy', flash-attn's CrossEntropyLoss)."""
_COMPILED_LOSS = re.compile(r"\btorchtitan\b.*\b202[5-9]\b")
"""Software that compiles its loss where it compiles its layers: torchtitan since 2025
(components/loss.py: ``build_cross_entropy_loss``; in 2024 train.py had it turned off)."""
_PERFORMANCE_RECIPES = re.compile(
    r"\b(NeMo(?![- ]Framework[- ]Launcher)|Megatron-Bridge)\b.*"
    r"\b(performance[-_ ](summary|benchmarks|guide|recipes?)|[a-z]+ performance)\b",
    re.IGNORECASE,
)
"""Benchmarks that are run with NVIDIA's performance recipes: those of the pages on performance of
NeMo and Megatron-Bridge (not the older launcher's)."""
_DRIVER_LOGS = re.compile(r"\bPrimus\b")
"""Software that logs total less free memory of the device, as the driver sees it: Primus
(training_log patches: ``torch.cuda.mem_get_info``)."""


def fused_loss(record: Record) -> bool:
    """Whether the loss makes no fp32 copy of the logits.

    A compiled one does not, where the vocabulary is not cut; 8-bit layers of torchtitan are
    compiled (docs/float8.md: float8 is slower than bf16 without).
    """
    if names(_FUSED_LOSS, record):
        return True
    plan = record.plan
    compiled = plan.compiled or (plan.compiled is None and plan.precision in ("fp8", "mxfp8"))
    whole = (plan.tensor or 1) == 1
    return bool(compiled and whole and _COMPILED_LOSS.search(record.where or ""))


def sums_in_16_bits(record: Record) -> bool:
    """Whether gradients are kept in bf16 whatever the precision of the products.

    NVIDIA's performance recipes set ``grad_reduce_in_fp32`` to False (Megatron-Bridge,
    scripts/performance, ``set_basic_perf_overrides``).
    """
    return names(_PERFORMANCE_RECIPES, record)


def keeps_quantised_parameters(record: Record, precision: str) -> bool:
    """Whether 8-bit weights stand in place of 16-bit ones, not beside them.

    NVIDIA's 8-bit recipes set ``fp8_param_gather`` (Megatron-Bridge, training/mixed_precision.py);
    under mxfp8 the gathered 16-bit weights pass through the gradient buffer
    (``reuse_grad_buf_for_mxfp8_param_ag``).
    """
    return precision in ("fp8", "mxfp8") and names(_PERFORMANCE_RECIPES, record)


def quantised_copies(device: str, precision: str) -> int:
    """Forms of an 8-bit matrix on a device of the zoo: one of per-tensor fp8 on Blackwell.

    Blackwell is told by its units for nvfp4. Blocks of mxfp8 are scaled along rows or columns, so
    that both forms are needed there too.
    """
    return 1 if precision == "fp8" and "nvfp4" in load_entry("devices", device)["peak"] else 2


def memory_kind(record: Record) -> str:
    """The kind of memory that a prediction is compared with.

    What the record states; else what the software that it names logs. Where neither says so, a peak
    of whole MiB is what nvidia-smi printed, for it prints no smaller unit (torch's allocator hands
    out 512 B at least; a multiple of 256 MiB may be a rounded figure in GiB). Any other is taken to
    be torch's ``max_memory_allocated``, which Megatron logs. Where nothing was measured the
    prediction is what the driver would show, for that is what the device's memory must hold.
    """
    measured = record.measured
    if measured.memory_kind:
        return measured.memory_kind
    peak = measured.peak_memory_bytes
    if peak is None or names(_DRIVER_LOGS, record):
        return "nvidia_smi"
    return "nvidia_smi" if peak % 2**20 == 0 and peak % 2**28 else "allocated"


_OPTIMIZERS: tuple[tuple[re.Pattern[str], Tree], ...] = tuple(
    (re.compile(text), fields)
    for text, fields in (
        (r"adafactor", {"optimizer": "adafactor"}),
        # two numbers of 8 bits for a parameter (arXiv:2110.02861): one of 16
        (r"adam.*8.?bit|8.?bit.*adam", {"optimizer": "momentum", "state_type": "bf16"}),
        (r"\b(lion|muon)", {"optimizer": "momentum"}),
        (r"adam|\blamb\b", {"optimizer": "adam"}),
        (r"momentum|nesterov|\blars\b", {"optimizer": "momentum"}),
        (r"\bsgd", {"optimizer": "sgd"}),
    )
)
"""Update rules by name → fields of a scenario. Muon, Lion (arXiv:2302.06675) and LARS keep one
number for a parameter; the orthogonalisation of Muon is not modelled."""
_KNOWN = ("adam", "adamw", "sgd", "adafactor", "momentum")


def optimizer_of(stated: str | None) -> tuple[Tree, bool]:
    """Fields of a scenario for an optimizer, Adam where none is known; whether it is just that."""
    name = (stated or "").lower().replace("_", " ")
    found = next((fields for text, fields in _OPTIMIZERS if says(text, name)), None)
    return found or {"optimizer": "adam"}, name in _KNOWN


_OFFLOADED = {
    part: re.compile(words)
    for part, words in (
        ("optimizer", r"optim|zero.?(offload|infinity)|adam|^(cpu|nvme|host)\b|^(yes|true|on)$"),
        ("weights", r"param|weight|zero.?infinity"),
        ("activations", r"activation|offloading_num_layers"),
    )
}
"""What is kept in host memory → how records say so."""


def offloaded(stated: str | None, notes: Assumptions) -> list[str]:
    """What a record's text on offloading means; nothing, where it names nothing that is known.

    ZeRO-Offload keeps the optimizer's state on the host (arXiv:2101.06840), ZeRO-Infinity the
    weights too (arXiv:2104.07857). Offloading the activations of some layers counts as all.
    """
    text = (stated or "none").lower()
    found = [part for part, words in _OFFLOADED.items() if says(words, text)]
    if text not in ("none", *found):
        notes.texts.append(f"plan.offload = {found}")
    return found
