"""What single values of params.yaml may be, where more than a type says it."""

import re
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from lottery import parts


def _of_form(pattern: str, accepted: str) -> BeforeValidator:
    def check(text: Any) -> Any:
        """The text, where it is of that form."""
        if not (isinstance(text, str) and re.fullmatch(pattern, text)):
            raise PydanticCustomError("form", accepted)
        return text

    return BeforeValidator(check)


def _two_of_four(pair: Any) -> tuple[int, int]:
    if pair not in ([2, 4], (2, 4)):
        raise PydanticCustomError("form", "[2, 4]")
    return 2, 4


def _each_once(values: list[Any]) -> list[Any]:
    if len(set(values)) < len(values):
        raise PydanticCustomError("twice", "each value once")
    return values


Whole = Annotated[int, Field(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Field(ge=1, le=2**31 - 1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Side = Annotated[int, Field(ge=1, le=4096)]
Own = Annotated[str, _of_form(parts.PATTERN, "your own module:function")]
Sha256 = Annotated[str, _of_form("[0-9a-f]{64}", "64 lower-case hexadecimal digits, or null")]
Once = AfterValidator(_each_once)
TwoOfFour = Annotated[tuple[int, int], BeforeValidator(_two_of_four)]
