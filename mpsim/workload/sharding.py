"""What one device sees of a model: its share along the tensor, context and expert axes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import gcd

from mpsim.errors import ScenarioError
from mpsim.spec.cluster import PRECISION_BYTES, Precision
from mpsim.spec.model import Transformer
from mpsim.spec.plan import PlanSpec, TrainingSpec

TYPE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}
"""Bytes of a stored number."""


@dataclass(frozen=True)
class Share:
    """The sizes that one device of a tensor, context and expert group works on.

    Letters of the comments: b microbatch, s sequence, t tensor, c context degree, h hidden.
    """

    plan: PlanSpec
    training: TrainingSpec

    @cached_property
    def tensor(self) -> int:
        """Tensor-parallel degree t."""
        return self.plan.tensor

    @cached_property
    def batch(self) -> int:
        """Samples of a microbatch, b."""
        return self.training.microbatch

    @cached_property
    def sequence(self) -> int:
        """Tokens of a sample on this device, s/c."""
        return -(-self.training.sequence // self.plan.context)

    @cached_property
    def tokens(self) -> int:
        """Tokens that the matrices of tensor-parallel regions see, b s/c."""
        return self.batch * self.sequence

    @cached_property
    def tokens_between(self) -> int:
        """Tokens between those regions: b s/c, cut over t under sequence parallelism."""
        return -(-self.tokens // self.tensor) if self.plan.sequence_parallel else self.tokens

    @cached_property
    def element(self) -> int:
        """Bytes of one activation: 4 for fp32 and tf32, else 2.

        8-bit and 4-bit types are those of matrix products; between them bf16 remains.
        """
        return 4 if self.training.precision in ("fp32", "tf32") else 2

    @cached_property
    def precision(self) -> Precision:
        """Number format of the matrix products of linear layers."""
        return self.training.precision

    @cached_property
    def wide_precision(self) -> Precision:
        """Number format of what low-precision recipes leave alone: attention, router, head."""
        return "bf16" if self.quantised else self.training.precision

    @cached_property
    def quantised(self) -> bool:
        """Whether inputs of matrix products are cast to 8 or 4 bits first."""
        return PRECISION_BYTES[self.training.precision] < 2

    @cached_property
    def matrix_element(self) -> float:
        """Bytes of one input element of a linear layer's matrix product."""
        return PRECISION_BYTES[self.training.precision]

    @cached_property
    def gradient_element(self) -> int:
        """Bytes of one stored gradient."""
        return TYPE_BYTES[self.training.gradient_type or self.training.stored_type]

    @cached_property
    def fuses_accumulation(self) -> bool:
        """Whether the weight-gradient product adds into the stored gradient itself (Megatron)."""
        return self.training.framework in ("megatron", "legacy_megatron")

    @cached_property
    def casts_weights(self) -> bool:
        """Whether each pass casts fp32 weights anew (torch.autocast); FSDP casts its shards."""
        training = self.training
        wide = training.stored_type == "fp32" and self.element < TYPE_BYTES["fp32"]
        return wide and training.framework == "torch"

    @cached_property
    def microbatches(self) -> int:
        """Microbatches of a step on one replica."""
        return max(1, self.training.global_batch // (self.batch * self.plan.data))

    @cached_property
    def expert_tensor(self) -> int:
        """Tensor-parallel degree of the experts."""
        return self.plan.expert_tensor or self.plan.tensor

    def kv_cut(self, model: Transformer) -> int:
        """Devices that the key-value heads are cut over; beyond it, heads are repeated."""
        return gcd(self.tensor, model.kv_head_count)


def check_transformer(model: Transformer, plan: PlanSpec) -> None:
    """Refuse a tensor, context or expert degree that the dimensions do not allow.

    Raises:
        ScenarioError: Naming the field, the number and what it would have to divide.
    """
    tensor = plan.tensor
    widths = {"heads": model.heads, "ffn": model.ffn_width}
    for name, width in widths.items():
        if width % tensor:
            raise ScenarioError("plan.tensor", f"{tensor} does not divide model.{name} ({width})")
    if tensor > 1 and plan.split != "megatron":
        raise ScenarioError(
            "plan.split",
            f"'{plan.split}' cuts explicit layers; a transformer is cut in pairs of columns and "
            "rows ('megatron')",
        )
    if plan.context_exchange == "all_to_all" and (model.heads // tensor) % plan.context:
        raise ScenarioError(
            "plan.context",
            f"{plan.context} does not divide the {model.heads // tensor} heads that all_to_all "
            "deals over the context group; use ring or all_gather",
        )
    if plan.expert > 1 and model.experts is None:
        raise ScenarioError("plan.expert", f"{plan.expert}, but the model has no experts")
    if model.experts:
        _check_experts(model, plan)


def _check_experts(model: Transformer, plan: PlanSpec) -> None:
    experts = model.experts
    if experts is None:
        return
    if experts.count % plan.expert:
        raise ScenarioError(
            "plan.expert", f"{plan.expert} does not divide the {experts.count} experts"
        )
    degree = plan.expert_tensor or plan.tensor
    if experts.ffn % degree:
        raise ScenarioError(
            "plan.expert_tensor", f"{degree} does not divide model.experts.ffn ({experts.ffn})"
        )
