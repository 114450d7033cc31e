"""The user's own functions, `module:function`, of prompts and completions, as TRL's reward functions are."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex, TypeVar

import numpy as np
import torch

from configs.errors import UserError
from data.batches.sampler import seed_from
from stages.context import Interrupted
from stages.feedback.process_state import environment_put_back, state_put_back

RewardFunction = Callable[[Sequence[str], Sequence[str]], list[float]]  # of prompts' and completions' texts
Result = TypeVar("Result")
DEBUG = "TRISTAGE_DEBUG"  # if it is set, an error of the user's code keeps its whole stack
LARGEST = torch.finfo(torch.float32).max  # the type in which rewards are summed
LONGEST = 300  # characters of the user's own message
OURS = (
    "apps",
    "configs",
    "data",
    "launch",
    "pipeline",
    "stages",
)  # packages that hide such modules
# Files of these folders are not where the user looks for a fault. `<frozen importlib>` is no file.
NOT_THEIRS = (
    str(Path(__file__).parent),
    *(sysconfig.get_paths()[name] for name in ("stdlib", "purelib")),
    "<",
)


def load_function(
    path: str,
    key: str,
    read: Callable[[Any, Sequence[str], str], list[Result]],
    draw: str = "function",
) -> Callable[[Sequence[str], Sequence[str]], list[Result]]:
    """Import the function that `key` of the configuration names, and that takes `prompts` and `completions`.

    Args:
        read: checks what the function returns, as `as_numbers` does.
        draw: random numbers of the function depend on it, and on the arguments of a call.

    Raises:
        UserError: there is no such module or function, or it takes other arguments. The function raises it,
            too, if the user's function fails, or returns what `read` refuses.
    """
    function = _import(path, key)
    doing = f"{key}: {path}"

    def score(prompts: Sequence[str], completions: Sequence[str]) -> list[Result]:
        if not completions:
            return []  # torch.stack, max and others raise for none
        seed = seed_from(draw, path, list(prompts), list(completions))
        with explained(doing), environment_put_back(), state_put_back(seed):
            values = function(prompts=list(prompts), completions=list(completions))
            return read(values, completions, doing)

    return score


def _import(path: str, key: str) -> Callable[..., Any]:
    module, _, name = path.partition(":")
    with explained(f"{key}: cannot import {module!r} of {path!r}, which"), state_put_back(0):
        try:
            names = vars(importlib.import_module(module))
        except ModuleNotFoundError as error:
            if error.name and f"{module}.".startswith(f"{error.name}."):
                raise UserError(
                    f"{key}: cannot import {module!r} of {path!r}: {error}. Give `module:function`, the "
                    "module on PYTHONPATH."
                ) from error
            raise
    if not callable(names.get(name)):
        if module.partition(".")[0] in OURS:
            raise UserError(
                f"{key}: {path!r}: {module!r} is a package of Tristage, without a function {name!r}. Rename "
                "your module."
            )
        raise UserError(f"{key}: the module {module!r} has no function {name!r}. Correct the name.")
    function: Callable[..., Any] = names[name]
    try:
        inspect.signature(function).bind(prompts=[], completions=[])
    except ValueError:  # a function of an extension module does not tell
        pass
    except TypeError as error:
        raise UserError(
            f"{key}: {path} is no function of `prompts` and `completions`: {error}. Name its parameters so."
        ) from None
    return function


@contextmanager
def explained(doing: str) -> Iterator[None]:
    """Turn what the user's code raises into a UserError with the line of that code.

    Args:
        doing: what ran; the message goes on with "raised".
    """
    try:
        yield
    except (UserError, KeyboardInterrupt, Interrupted):
        raise
    except SystemExit as error:
        raise UserError(f"{doing} ended the process with status {error.code}{_place(error)}.") from error
    except BaseException as error:
        if os.environ.get(DEBUG):
            raise
        text = _text(error)
        reason = f"{type(error).__name__}: {text:.{LONGEST}}" if text else type(error).__name__
        raise UserError(f"{doing} raised {reason}{_place(error)}. {DEBUG}=1 shows the stack.") from error


def _text(error: BaseException) -> str:
    """What an error says in one line; "" if it cannot say it."""
    try:
        return " ".join(str(error).split())
    except Exception:
        return ""


def _place(error: BaseException) -> str:
    """The innermost line of the user's own code; "" if there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(NOT_THEIRS)]
    return f" ({theirs[-1].filename}, line {theirs[-1].lineno}, in {theirs[-1].name})" if theirs else ""


def as_list(values: Any, completions: Sequence[str], source: str) -> list[Any]:
    """The values that `source` gave for the completions, one for each; otherwise raises UserError."""
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise UserError(f"{source} gave a {type(values).__name__}, not a list of one number per completion.")
    if hasattr(values, "columns"):  # a DataFrame of pandas, polars or another: it iterates over these
        raise UserError(
            f"{source} gave a {type(values).__name__}, not a list of one number per completion. Give one of "
            "its columns, such as table['score']."
        )
    given = list(islice(values, len(completions) + 1))  # a generator may have no end
    if len(given) != len(completions):
        count = len(given) if len(given) < len(completions) else "more"
        raise UserError(
            f"{source} must give a number for each of {len(completions)} completions, gave {count}."
        )
    return given


def as_numbers(values: Any, completions: Sequence[str], source: str) -> list[float]:
    """The values that `source` gave for the completions, as floats.

    Raises:
        UserError: the values are not one finite number for each completion.
    """
    given = as_list(values, completions, source)
    numbers = list(map(_number, given))
    for index, number in enumerate(numbers):
        if number is None or not abs(number) <= LARGEST:
            raise UserError(
                f"{source} gave {given[index]!r:.60} for completions[{index}], {completions[index]!r:.60}. "
                "It must be a finite real number."
            )
    return [number for number in numbers if number is not None]


def _number(value: Any) -> float | None:
    """A real number of Python, torch or NumPy; None for anything else. A number beyond floats is infinity."""
    if isinstance(value, torch.Tensor):
        value = value.item() if value.numel() == 1 else None
    elif value is np.ma.masked:
        return None  # its item is 0
    elif isinstance(value, np.ndarray | np.generic):
        value = value.item() if value.size == 1 else None
    if isinstance(value, bool | str) or not isinstance(value, SupportsFloat | SupportsIndex):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf
