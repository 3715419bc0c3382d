"""Field types of the declarations: quantities with units, counts, fractions, names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from mpsim.units import EXAMPLES, parse


class Declaration(BaseModel):
    """A frozen declaration that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=False
    )


@dataclass(frozen=True)
class Quantity:
    """A field with a unit: text in a file, a float in SI units in memory."""

    unit: str
    zero: bool = False  # whether it may be zero

    def __get_pydantic_core_schema__(
        self, source: type, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Pydantic's hook: read by ``_read``, written to JSON with the unit."""
        return core_schema.no_info_before_validator_function(
            self._read,
            handler(source),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: f"{value!r} {self.unit}", when_used="json"
            ),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Pydantic's hook: an editor sees text and an example."""
        return {"type": "string", "description": f"quantity, as '{EXAMPLES[self.unit]}'"}

    def _read(self, value: object) -> float:
        """What stands in a file, in SI units.

        Raises:
            ValueError: If it is no quantity of this unit, below zero, or a zero that may not be.
        """
        example = EXAMPLES[self.unit]
        if isinstance(value, bool | int | float):
            raise ValueError(f"'{value}' has no unit; write it with its unit, as in '{example}'")
        if not isinstance(value, str):
            raise ValueError(f"expected a quantity such as '{example}'")
        number = parse(value, self.unit)
        if number < 0 or (number == 0 and not self.zero):
            least = "zero or more" if self.zero else "more than zero"
            raise ValueError(f"must be {least}, not {value}")
        return number


Bytes = Annotated[float, Quantity("B")]
BytesOrZero = Annotated[float, Quantity("B", zero=True)]
Bandwidth = Annotated[float, Quantity("B/s")]
FlopRate = Annotated[float, Quantity("FLOP/s")]
Seconds = Annotated[float, Quantity("s")]
SecondsOrZero = Annotated[float, Quantity("s", zero=True)]
Power = Annotated[float, Quantity("W")]
UsdRate = Annotated[float, Quantity("USD/s", zero=True)]
Usd = Annotated[float, Quantity("USD")]
UsdPerJoule = Annotated[float, Quantity("USD/W/s", zero=True)]


def _finite(value: Any) -> Any:  # noqa: ANN401
    """Refuse NaN and infinity, which YAML can write."""
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"must be a finite number, not {value}")
    return value


Count = Annotated[int, BeforeValidator(_finite), Field(ge=1, le=10**12)]
CountOrZero = Annotated[int, BeforeValidator(_finite), Field(ge=0, le=10**12)]
Fraction = Annotated[float, BeforeValidator(_finite), Field(gt=0, le=1)]
Ratio = Annotated[float, BeforeValidator(_finite), Field(ge=0, le=1)]
Factor = Annotated[float, BeforeValidator(_finite), Field(ge=1)]
Positive = Annotated[float, BeforeValidator(_finite), Field(gt=0)]
