"""What a device holds during the whole step: weights, gradients, optimizer state, buffers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mpsim.spec.cluster import PRECISION_BYTES
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.layers import Kernel, Layer
from mpsim.workload.sharding import TYPE_BYTES

STATE_NUMBERS = {"sgd": 0, "momentum": 1, "adam": 2}
"""Numbers that an optimizer keeps for each parameter; adafactor keeps row and column sums."""

WORKSPACE = 96 * 2**20
"""B of matrix-product workspaces that a process keeps: cuBLAS, cuBLASLt, Transformer Engine, 32
MiB each on Hopper (torch.backends.cuda; transformer_engine's get_cublas_workspace_size_bytes)."""

GROUPED_WORKSPACE = 128 * 2**20
"""B more where experts run as grouped products: Transformer Engine's four streams of 32 MiB each
(transformer_engine/pytorch/module/base.py: _num_cublas_streams)."""

LIVE_PARAMETERS = 10**9
"""Parameters that DeepSpeed's ZeRO-3 keeps gathered at most, unless one matrix has more
(stage3_max_live_parameters: DeepSpeed configuration JSON, default 1e9)."""

REDUCE_BUCKET = 5 * 10**8
"""Gradients that DeepSpeed gathers before it sends them (reduce_bucket_size, default 5e8)."""


@dataclass(frozen=True)
class State:
    """Components by name and what the update needs on top, bytes."""

    static: dict[str, float]
    update_transient: float


@dataclass(frozen=True)
class Counts:
    """Parameters on a device, in two kinds that are sharded over different groups."""

    dense: float
    expert: float

    def nbytes(self, each: float, *, dense_over: int = 1, expert_over: int = 1) -> float:
        """B of ``each`` bytes a parameter, divided over groups."""
        return each * (self.dense / dense_over + self.expert / expert_over)


def parameter_counts(layers: Sequence[Layer]) -> Counts:
    """Parameters of the layers of a device, with a copy of a tied table that lives elsewhere."""
    names = {layer.name for layer in layers}
    tied = max(
        (
            layer.facts.get("tied_parameters", 0.0)
            for layer in layers
            if layer.tied_to and layer.tied_to not in names
        ),
        default=0.0,
    )
    expert = sum(layer.expert_parameters for layer in layers)
    return Counts(sum(layer.parameters for layer in layers) - expert + tied, expert)


def shard_groups(plan: PlanSpec) -> tuple[int, int]:
    """Devices that state is sharded over: of dense parameters, of experts.

    Dense parameters are alike on data · context devices, those of an expert on data · context ·
    tensor / (expert · expert tensor) (Megatron's expert data-parallel group).
    """
    dense = plan.data * plan.context
    degree = plan.expert_tensor or plan.tensor
    expert = max(1, dense * plan.tensor // (plan.expert * degree))
    if plan.zero_group:
        return min(dense, plan.zero_group), min(expert, plan.zero_group)
    return dense, expert


def stage_state(layers: Sequence[Layer], plan: PlanSpec, training: TrainingSpec) -> State:
    """Components that a device holds during the whole step.

    ZeRO (arXiv:1910.02054) shards optimizer state and master weights from stage 1, gradients from
    stage 2, parameters from stage 3; then the weights of the running layer and of the next one
    are there in full. torch FSDP shards parameters at stage 2 too (SHARD_GRAD_OP): what stays
    gathered are copies in the type of compute. It casts gradients that it has scattered back to the
    type of the parameters (fsdp/_runtime_utils.py: ``_cast_grad_to_param_dtype``). With
    ``quantised_parameters`` the matrices stand in 8 bits alone (below stage 3).
    """
    counts, (dense, expert) = parameter_counts(layers), shard_groups(plan)

    def over(each: float, stage: int) -> float:
        if plan.zero >= stage:
            return counts.nbytes(each, dense_over=dense, expert_over=expert)
        return counts.nbytes(each)

    stored = TYPE_BYTES[training.stored_type]
    gradient = TYPE_BYTES[training.gradient_type or training.stored_type]
    weights = over(stored, 2 if training.framework == "fsdp" else 3)
    if training.quantised_parameters and plan.zero < 3:
        weights -= stored * _quantised(layers, training)
    summed = max(gradient, stored) if training.framework == "fsdp" else gradient
    static = {"parameters": weights, "gradients": over(summed, 2)}
    if training.keeps_master_weights:
        static["master_weights"] = over(4, 1)
    static["optimizer_state"] = _optimizer(layers, training, over(1, 1), counts)
    static["workspace"] = float(WORKSPACE + (GROUPED_WORKSPACE if counts.expert else 0))
    static |= _copies(layers, plan, training, counts)
    if plan.zero >= 2:
        static |= _gathered(layers, plan, training, static, counts)
    update = over(4, 1) if training.framework == "torch" and training.optimizer == "adam" else 0.0
    return State(_offloaded(static, layers, plan, training), update)


def _optimizer(
    layers: Sequence[Layer], training: TrainingSpec, sharded: float, counts: Counts
) -> float:
    """State of the update rule; adafactor's is the sums of rows and columns of each matrix.

    ``sharded`` is the number of parameters whose state this device keeps. Adafactor
    (arXiv:1804.04235), without momentum, keeps n + k numbers for an n x k matrix; vectors are
    not counted.
    """
    each = TYPE_BYTES[training.state_type]
    if training.optimizer in STATE_NUMBERS:
        return each * STATE_NUMBERS[training.optimizer] * sharded
    sums = sum(
        step.shape[0] * (step.shape[1] + step.shape[2])
        for layer in layers
        for step in layer.backward_weight
        if isinstance(step, Kernel) and step.kind == "gemm"
    )
    whole = counts.dense + counts.expert
    return each * sums * (sharded / whole if whole else 0.0)


def _compute_element(training: TrainingSpec) -> int:
    return 4 if training.precision in ("fp32", "tf32") else 2


def _copies(
    layers: Sequence[Layer], plan: PlanSpec, training: TrainingSpec, counts: Counts
) -> dict[str, float]:
    """Weights in other formats: 16-bit copies of fp32 ones (autocast), 8- and 4-bit ones.

    Low-precision recipes keep each matrix row-wise and transposed from the first microbatch on
    (``quantised_copies``: Transformer Engine makes no transposed fp8 data where
    ``is_non_tn_fp8_gemm_supported``).
    Matrices are those whose product runs in that precision.
    """
    copies: dict[str, float] = {}
    stored, used = TYPE_BYTES[training.stored_type], _compute_element(training)
    if stored > used and plan.zero < 3 and training.framework == "torch":
        copies["cast_weights"] = counts.nbytes(used)
    small = PRECISION_BYTES[training.precision]
    if small < 2 and plan.zero < 3:
        copies["quantised_weights"] = (
            training.quantised_copies * small * _quantised(layers, training)
        )
    if plan.data > 1 and plan.data_parallel == "ddp" and training.framework == "torch":
        gradient = TYPE_BYTES[training.gradient_type or training.stored_type]
        if plan.zero < 2:
            copies["gradient_buckets"] = counts.nbytes(gradient)
    return copies


def _matrices(layer: Layer, precision: str | None = None) -> list[int]:
    """Sizes of the weights of a layer's matrix products, those of one precision or all."""
    return [
        step.shape[0] * step.shape[1] * step.shape[2]
        for step in layer.backward_weight
        if isinstance(step, Kernel) and step.kind == "gemm" and precision in (None, step.precision)
    ]


def _quantised(layers: Sequence[Layer], training: TrainingSpec) -> int:
    """Parameters of the matrices whose products run in the low precision; 0 without one."""
    if PRECISION_BYTES[training.precision] >= 2:
        return 0
    return sum(sum(_matrices(layer, training.precision)) for layer in layers)


def _gathered(
    layers: Sequence[Layer],
    plan: PlanSpec,
    training: TrainingSpec,
    static: Mapping[str, float],
    counts: Counts,
) -> dict[str, float]:
    """What ZeRO-2 and 3 hold in full: gradients before they are sent; weights of running layers.

    The running layer, the next one (prefetch), and embedding and head, which belong to the root
    that stays gathered from forward to backward; gradients of the root and of one layer, and the
    buffer that is sent. With a pipeline all weights of the device stay gathered and gradients are
    summed in full over the microbatches (torch FSDP: reshard_after_forward is off, and gradients
    are reduced after the last microbatch). At stage 2 torch FSDP keeps all weights gathered. Legacy
    Megatron shards through DeepSpeed, which fetches matrix by matrix. Neither exceeds what a device
    without sharding holds.
    """
    used, stored = _compute_element(training), TYPE_BYTES[training.stored_type]
    gradient = TYPE_BYTES[training.gradient_type or training.stored_type]
    ends = ("embedding", "head")
    root = sum(layer.parameters for layer in layers if layer.kind in ends)
    widest = max((layer.parameters for layer in layers if layer.kind not in ends), default=0.0)
    weights = used * (root + 2 * widest)
    sums = used * root + (used + gradient) * widest
    torch_fsdp = training.framework == "fsdp"
    if plan.pipeline > 1:
        weights, sums = counts.nbytes(used), counts.nbytes(gradient)
    elif training.framework == "legacy_megatron":
        table = max((layer.parameters for layer in layers if layer.kind in ends), default=0.0)
        matrix = max([table, *(size for layer in layers for size in _matrices(layer))])
        weights = used * max(matrix, LIVE_PARAMETERS)
        sums = gradient * (matrix + REDUCE_BUCKET)
    elif torch_fsdp and plan.zero == 2:
        weights = counts.nbytes(used)
    buffers = {"gradient_buffers": min(sums, counts.nbytes(gradient) - static["gradients"])}
    if plan.zero == 3 or torch_fsdp:
        room = counts.nbytes(stored) - static["parameters"]
        buffers["gathered_weights"] = min(weights, room)
    return buffers


def _offloaded(
    static: dict[str, float], layers: Sequence[Layer], plan: PlanSpec, training: TrainingSpec
) -> dict[str, float]:
    """The components without those in host memory, with the buffers that they pass through.

    Two layers' worth of each: one in use, one on its way (ZeRO-Offload, arXiv:2101.06840).
    """
    gone = {
        "optimizer": ("optimizer_state", "master_weights"),
        "weights": ("parameters",),
        "activations": (),
    }
    names = [name for what in plan.offload for name in gone[what] if name in static]
    if not names:
        return static
    kept = {name: nbytes for name, nbytes in static.items() if name not in names}
    total = sum(layer.parameters for layer in layers)
    widest = max((layer.parameters for layer in layers), default=0.0)
    passing = min(1.0, 2 * widest / total) if total else 0.0
    kept["offload_buffers"] = passing * sum(static[name] for name in names)
    return kept
