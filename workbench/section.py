"""What every group of settings is made of."""

from typing import Any

from pydantic import BaseModel


def as_list(value: Any) -> Any:
    """A single value, or a comma-separated text, where a list is wanted."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, int | float) else value


class Section(BaseModel, frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True):
    """A frozen group of settings that refuses unknown keys, NaN and infinity."""
