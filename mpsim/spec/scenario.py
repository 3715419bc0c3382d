"""A scenario: model, cluster, plan and training together, and the checks across them."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Discriminator, Field, Tag, model_validator

from mpsim.spec.cluster import ClusterSpec
from mpsim.spec.model import Network, TorchModule, Transformer
from mpsim.spec.operation import Candidates, Operation
from mpsim.spec.plan import PlanSpec, TrainingSpec
from mpsim.spec.quantities import CountOrZero, Declaration, Ratio

_MOST_TENSOR = 1024
"""Tensor degrees up to which those that divide the heads are listed."""


def _model_kind(value: Any) -> str:  # noqa: ANN401  (raw YAML or a built model)
    """Which of the three model declarations a mapping is."""
    keys = value if isinstance(value, dict) else getattr(value, "model_fields_set", ())
    return "network" if "network" in keys else "torch" if "torch" in keys else "transformer"


ModelField = Annotated[
    Annotated[Transformer, Tag("transformer")]
    | Annotated[Network, Tag("network")]
    | Annotated[TorchModule, Tag("torch")],
    Discriminator(_model_kind),
]


class Disturbance(Declaration):
    """Chance in the op times; everything is certain where nothing is declared."""

    jitter: Ratio = 0.0
    """Standard deviation of the logarithm of each op's time."""
    samples: int = Field(default=200, ge=1, le=100_000)
    """Samples drawn when jitter is above 0."""


class Scenario(Declaration):
    """Everything that one prediction needs."""

    name: str = "scenario"
    """What reports call it."""
    description: str = ""
    """What it shows."""
    variant: str = "base"
    """Name of this variant where several are compared."""
    model: ModelField
    """What is trained."""
    cluster: ClusterSpec
    """What it is trained on."""
    plan: PlanSpec = PlanSpec()
    """How it is split."""
    training: TrainingSpec
    """How it is trained."""
    disturbance: Disturbance = Disturbance()
    """Chance in the op times."""
    seed: CountOrZero = 0
    """Seed of the samples."""
    operation: Operation = Operation()
    """Failures, checkpoints, energy: what capacity planning needs."""
    candidates: Candidates = Field(default_factory=list)
    """Clusters that ``mpsim plan --deadline`` chooses from: names of the zoo, or mappings as for
    ``cluster`` in which ``nodes`` may be a list or a range; empty: the cluster, in other sizes."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Fields overridden by each named variant; keys are dotted paths or nested mappings."""

    @property
    def microbatches(self) -> int:
        """Microbatches that each replica runs in a step."""
        return self.training.global_batch // (self.training.microbatch * self.plan.data)

    @property
    def layer_count(self) -> int:
        """Layers that can be dealt to stages."""
        model = self.model
        if isinstance(model, Transformer):
            return model.layers
        return len(model.network) if isinstance(model, Network) else 1

    @model_validator(mode="after")
    def _across(self) -> Self:
        """The checks that need more than one part; all complaints at once."""
        problems = [*self._device_problems(), *self._batch_problems(), *self._model_problems()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _device_problems(self) -> list[str]:
        """Degrees that do not multiply to the devices, a precision that the device lacks."""
        plan, cluster, found = self.plan, self.cluster, []
        if plan.devices != cluster.devices:
            degrees = [
                f"{axis} ({getattr(plan, axis)})"
                for axis in ("tensor", "pipeline", "data", "context")
                if axis != "context" or plan.context > 1
            ]
            found.append(
                f"plan: {' x '.join(degrees)} = {plan.devices} devices, "
                f"but the cluster has {cluster.devices}"
            )
        if self.training.precision not in cluster.device.peak:
            found.append(
                f"training.precision: {cluster.device.name} has no "
                f"{self.training.precision} rate; it has {', '.join(cluster.device.peak)}"
            )
        return found

    def _batch_problems(self) -> list[str]:
        """A global batch that does not divide evenly."""
        batch, micro, data = self.training.global_batch, self.training.microbatch, self.plan.data
        if batch % (micro * data) == 0:
            return []
        below = batch // (micro * data) * micro * data
        near = [str(size) for size in (below, below + micro * data) if size > 0]
        return [
            f"training.global_batch: {batch} is not a multiple of microbatch ({micro}) "
            f"x data ({data}) = {micro * data}; use {' or '.join(near)}"
        ]

    def _model_problems(self) -> list[str]:
        """Splits that the model does not allow."""
        plan, model, found = self.plan, self.model, []
        listed = isinstance(plan.partition, list)  # may leave stages to embedding and head alone
        if plan.stages > self.layer_count and not listed and not isinstance(model, TorchModule):
            found.append(
                f"plan: pipeline ({plan.pipeline}) x chunks ({plan.chunks}) = {plan.stages} "
                f"stages, but the model has {self.layer_count} layers"
            )
        if isinstance(model, Transformer):
            found += self._transformer_problems(model)
        return found

    def _transformer_problems(self, model: Transformer) -> list[str]:
        """Tensor, context and expert degrees that do not divide the transformer."""
        plan, found = self.plan, []
        if model.heads % plan.tensor:
            most = min(model.heads, _MOST_TENSOR)
            allowed = [str(n) for n in range(1, most + 1) if model.heads % n == 0]
            found.append(
                f"plan.tensor: {plan.tensor} does not divide the {model.heads} heads; "
                f"use one of {', '.join(allowed)}"
            )
        if self.training.sequence % plan.context:
            found.append(
                f"plan.context: {plan.context} does not divide the sequence of "
                f"{self.training.sequence} tokens"
            )
        if plan.expert > 1 and not model.experts:
            found.append(f"plan.expert: {plan.expert}, but the model has no experts")
        if model.experts and model.experts.count % plan.expert:
            found.append(
                f"plan.expert: {plan.expert} does not divide the {model.experts.count} experts"
            )
        return found
