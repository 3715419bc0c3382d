"""What one pipeline device holds: components by name, and what each microbatch adds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

from mpsim.cost.memory_state import stage_state
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.workload.layers import Kernel, Layer


@dataclass(frozen=True)
class ChunkMemory:
    """What a microbatch holds of one stage (model chunk) of a device, bytes.

    From the begin of its forward op until the end of its backward op (I of a split one),
    ``activations`` are held; during the forward op ``forward_transient`` comes
    on top, during the backward op ``backward_transient``.

    Between I and W of a split backward ``weight_store`` is held in place of the activations: the
    inputs and the gradients of the outputs of the matrices (32 s b h a plain GPT layer in 16 bits:
    Qi et al., arXiv:2401.10241, section 2.2).
    """

    activations: Mapping[str, float]  # name of the kept tensor → B
    forward_transient: float = 0.0
    backward_transient: float = 0.0
    weight_store: float = 0.0

    @property
    def nbytes(self) -> float:
        """B that one microbatch in flight holds."""
        return sum(self.activations.values())


@dataclass(frozen=True)
class StageMemory:
    """Memory of one pipeline device in its parts, bytes.

    ``static`` is held during the whole step and is what torch's allocator hands out;
    ``update_transient`` comes on top during the optimizer's update. The allocator reserves
    ``fragmentation`` times more than it hands out. ``outside`` of the allocator stand the driver's
    context and the communicators' buffers: the driver's tools show reserved + outside.
    """

    static: Mapping[str, float]
    chunks: tuple[ChunkMemory, ...]
    update_transient: float = 0.0
    outside: Mapping[str, float] = field(default_factory=dict)
    fragmentation: float = 0.0

    @property
    def static_nbytes(self) -> float:
        """B held during the whole step."""
        return sum(self.static.values())

    def reserved(self, allocated: float) -> float:
        """B that the allocator takes from the driver to hand out ``allocated``."""
        return allocated * (1 + self.fragmentation)

    def shown(self, allocated: float) -> float:
        """B that the driver's tools show (nvidia-smi): reserved, context, communicators."""
        return self.reserved(allocated) + sum(self.outside.values())


def stage_memory(
    chunks: Sequence[Sequence[Layer]],
    plan: PlanSpec,
    training: TrainingSpec,
    *,
    context: float = 0.0,
) -> StageMemory:
    """Memory of the device that holds some stages.

    Args:
        chunks: The layers of each stage of the device, in the order of its chunks, as ``assign``
            gives them.
        plan: How the model is divided.
        training: Precision, optimizer, microbatch.
        context: B that driver and runtime keep on the device (``DeviceSpec.reserved``).
    """
    flat = [layer for chunk in chunks for layer in chunk]
    state = stage_state(flat, plan, training)
    buffers = _pipeline_buffers(chunks, plan)
    if buffers:
        state.static["pipeline_buffers"] = buffers
    return StageMemory(
        state.static,
        tuple(chunk_memory(chunk, offloaded="activations" in plan.offload) for chunk in chunks),
        state.update_transient,
        {"context": context, "communicators": communicator_buffers(plan)},
        plan.fragmentation,
    )


def peak_of(memory: StageMemory, in_flight: int | Sequence[int]) -> float:
    """Greatest bytes allocated with so many microbatches in flight.

    Every chunk holds its microbatches, and one of them runs its forward or backward op.

    Args:
        memory: The device.
        in_flight: Microbatches of each chunk, or of every chunk alike.
    """
    chunks = memory.chunks
    counts = [in_flight] * len(chunks) if isinstance(in_flight, int) else list(in_flight)
    held = sum(chunk.nbytes * count for chunk, count in zip(chunks, counts, strict=True))
    transient = max(
        (
            max(chunk.forward_transient, chunk.backward_transient)
            for chunk, count in zip(chunks, counts, strict=True)
            if count
        ),
        default=0.0,
    )
    return memory.static_nbytes + max(held + transient, memory.update_transient)


def chunk_memory(layers: Sequence[Layer], *, offloaded: bool = False) -> ChunkMemory:
    """What a microbatch holds of one stage.

    Forward, the kept tensors of the layers up to the running one are there, and its temporaries;
    backward, those of the layers from the first to the running one. The transients are what the
    worst of these moments needs beyond all the kept tensors. A stage's input stands until its
    backward, kept by the first layer or not: the runtime holds it, to send its gradient back
    (torch.distributed.pipelining's fwd_cache, Megatron's input_tensors).

    Where a whole network is recomputed, its layers keep nothing: the stage's input is kept, and
    backward holds what the stage's layers up to the running one would have kept, where the first
    one's input is the stage's. With activations in host memory nothing is kept: while an op runs,
    the tensors of the running layer are there, and those of the one before it, on their way.
    """
    kept: dict[str, float] = {}
    for layer in layers:
        for saved in layer.saved:
            kept[saved.name] = kept.get(saved.name, 0.0) + saved.nbytes
    revived = [_kept(layer.plain) if layer.plain and not layer.saved else 0.0 for layer in layers]
    missing = layers[0].input_nbytes - _inputs(layers[0]) if layers else 0.0
    if missing > 0:
        kept["stage_input"] = missing
        if revived[0] and layers[0].plain:
            revived[0] -= min(_inputs(layers[0].plain), missing)
    first = kept.get("stage_input", 0.0)
    sums = [first + held for held in accumulate(map(_kept, layers))]
    total = sum(kept.values())
    forward = backward = 0.0
    for held, again, layer in zip(sums, accumulate(revived), layers, strict=True):
        forward = max(forward, held + layer.forward_workspace_nbytes - total)
        backward = max(backward, held + layer.workspace_nbytes + again - total)
    store = min(total, sum(_weight_store(layer) for layer in layers))
    if not offloaded:
        return ChunkMemory(kept, forward, backward, store)
    return _offloaded(layers, list(accumulate(revived)), first, store)


def _offloaded(
    layers: Sequence[Layer], again: Sequence[float], first: float, store: float
) -> ChunkMemory:
    """A stage with its activations in host memory: two layers' are here while an op runs.

    ``again`` is what recomputation of a network has brought back up to each layer, ``first`` the
    stage's input where the first layer keeps none.
    """
    before, forward, backward = first, 0.0, 0.0
    for layer, brought in zip(layers, again, strict=True):
        here = before + _kept(layer)
        forward = max(forward, here + layer.forward_workspace_nbytes)
        backward = max(backward, here + layer.workspace_nbytes + brought)
        before = _kept(layer)
    return ChunkMemory({}, forward, backward, store)


def _weight_store(layer: Layer) -> float:
    """Inputs and output gradients of the layer's matrices, 2 B each (4 in fp32)."""
    return sum(
        (4 if step.precision in ("fp32", "tf32") else 2)
        * step.shape[0]
        * step.shape[3]
        * (step.shape[1] + step.shape[2])
        for step in layer.backward_weight
        if isinstance(step, Kernel) and step.kind == "gemm"
    )


def _inputs(layer: Layer) -> float:
    """What a layer keeps of its input, B."""
    return sum(
        saved.nbytes
        for saved in layer.saved
        if saved.name.endswith("_input") or saved.name in ("tokens", "traced")
    )


def _kept(layer: Layer) -> float:
    return sum(saved.nbytes for saved in layer.saved)


def _pipeline_buffers(chunks: Sequence[Sequence[Layer]], plan: PlanSpec) -> float:
    """Boundary tensors held beside the stages' own: the gradient received, the next input.

    The input of a stage is kept by its first layer, and the output sent is freed once it is sent
    (Megatron's ``deallocate_pipeline_outputs``).
    """
    if plan.pipeline == 1:
        return 0.0
    boundary = max((chunk[-1].output_nbytes for chunk in chunks if chunk), default=0.0)
    inputs = max((chunk[0].output_nbytes for chunk in chunks if chunk), default=0.0)
    return boundary + inputs


COMMUNICATOR_BYTES = 16 * 2 * 4 * 2**20
"""Device memory of one NCCL communicator: 16 channels, each with send and receive buffers of
NCCL_BUFFSIZE = 4 MiB (NCCL user guide, environment variables; the number of channels varies)."""


def communicator_buffers(plan: PlanSpec) -> float:
    """B of the communicators' buffers: one communicator for each axis of more than one device."""
    degrees = (plan.tensor, plan.pipeline, plan.data, plan.context, plan.expert)
    return float(COMMUNICATOR_BYTES * sum(degree > 1 for degree in degrees))
