"""Field types of the declarations: quantities with units, counts, fractions, names."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    WithJsonSchema,
)

from mpsim.units import EXAMPLES, parse


class Declaration(BaseModel):
    """A frozen declaration that refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=False
    )


def _quantity(unit: str, *, zero: bool) -> tuple[BeforeValidator, PlainSerializer, WithJsonSchema]:
    """Validator, serialiser and schema of a quantity; the value is a float in SI units."""
    example = EXAMPLES[unit]

    def check(value: Any) -> float:  # noqa: ANN401  (whatever stands in the YAML)
        if isinstance(value, bool | int | float):
            raise ValueError(f"'{value}' has no unit; write it with its unit, as in '{example}'")
        if not isinstance(value, str):
            raise ValueError(f"expected a quantity such as '{example}'")
        number = parse(value, unit)
        if number < 0 or (number == 0 and not zero):
            raise ValueError(f"must be {'zero or more' if zero else 'more than zero'}, not {value}")
        return number

    return (
        BeforeValidator(check),
        PlainSerializer(lambda value: f"{value!r} {unit}", when_used="json"),
        WithJsonSchema({"type": "string", "description": f"quantity, as '{example}'"}),
    )


_b, _bs, _js = _quantity("B", zero=False)
Bytes = Annotated[float, _b, _bs, _js]
_b, _bs, _js = _quantity("B", zero=True)
BytesOrZero = Annotated[float, _b, _bs, _js]
_b, _bs, _js = _quantity("B/s", zero=False)
Bandwidth = Annotated[float, _b, _bs, _js]
_b, _bs, _js = _quantity("FLOP/s", zero=False)
FlopRate = Annotated[float, _b, _bs, _js]
_b, _bs, _js = _quantity("s", zero=False)
Seconds = Annotated[float, _b, _bs, _js]
_b, _bs, _js = _quantity("s", zero=True)
SecondsOrZero = Annotated[float, _b, _bs, _js]
_b, _bs, _js = _quantity("W", zero=False)
Power = Annotated[float, _b, _bs, _js]
_b, _bs, _js = _quantity("USD/s", zero=True)
UsdRate = Annotated[float, _b, _bs, _js]
_b, _bs, _js = _quantity("USD", zero=False)
Usd = Annotated[float, _b, _bs, _js]
_b, _bs, _js = _quantity("USD/W/s", zero=True)
UsdPerJoule = Annotated[float, _b, _bs, _js]


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
