"""Checked, frozen values: the base of everything that is configured.

TensorFlow is not imported: a configuration is checked before anything slow.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import pydantic
from annotated_types import Ge, Gt, Lt
from typing_extensions import Self

_Item = TypeVar("_Item")

PositiveInt = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
# Neither nothing nor all of it; without and with zero.
Fraction = Annotated[float, Gt(0), Lt(1)]
FractionOrZero = Annotated[float, Ge(0), Lt(1)]
# A tuple that a YAML or JSON list may be given for; its items stay strict.
ListOf = Annotated[tuple[_Item, ...], pydantic.Strict(False)]


class Settings(pydantic.BaseModel):
    """Values that are checked when they are made and never change.

    Unknown keys are refused, and nothing is converted but an int to a float and
    a list to a tuple. Bounds of one field stand in its annotation; rules that
    join fields stand in :meth:`check`.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )

    @pydantic.model_validator(mode="after")
    def _checked(self) -> Self:
        self.check()
        return self

    def check(self) -> None:
        """Looks at fields together.

        Raises:
          ValueError: They do not fit; the message begins with the field to change.
        """

    def replaced(self, **values: Any) -> Self:
        """A copy with other values for some fields, checked as the original was."""
        return type(self).model_validate({**dict(self), **values})
