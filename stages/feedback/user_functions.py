"""The user's own functions, `module:function`, of prompts and completions, as TRL's reward functions are."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, SupportsFloat

from configs.errors import UserError

RewardFunction = Callable[[Sequence[str], Sequence[str]], list[Any]]  # of prompts' and completions' texts


def load_function(path: str, key: str) -> RewardFunction:
    """Import the function that `key` of the configuration names, and that takes `prompts` and `completions`.

    Raises:
        UserError: there is no such module or function.
    """
    module, _, name = path.partition(":")
    try:
        function = vars(importlib.import_module(module))[name]
    except ImportError as error:
        raise UserError(
            f"{key}: cannot import {module!r} of {path!r}: {error}. Give `module:function`, the module "
            "on PYTHONPATH."
        ) from error
    except KeyError:
        raise UserError(f"{key}: the module {module!r} has no function {name!r}.") from None
    return lambda prompts, completions: list(function(prompts=list(prompts), completions=list(completions)))


def as_numbers(values: Sequence[Any], count: int, key: str, name: str) -> list[float]:
    """The values that `name` returned for `count` completions, as floats, finite or not.

    Raises:
        UserError: the values are not one number for each completion.
    """
    numbers = [number for value in values if (number := _number(value)) is not None]
    if len(values) != count or len(numbers) != count:
        raise UserError(
            f"{key}: {name} must give a number for each of {count} responses; it gave "
            f"{len(values)} values, {len(numbers)} of them numbers."
        )
    return numbers


def _number(value: Any) -> float | None:
    """A number of Python, torch or NumPy; None for anything else."""
    if isinstance(value, str) or not isinstance(value, SupportsFloat):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):  # a vector
        return None
