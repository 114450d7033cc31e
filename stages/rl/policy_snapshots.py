"""An exponential moving average of the policy over iterations (Polyak and Juditsky 1992, with decay)."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from stages.context import Context
from stages.training.engine import Engine
from stages.training.export import save_role

PREFIX = "ema/"


def update_average(engine: Engine, role: str, decay: float) -> None:
    """Move the average in `engine.kept` towards `role` as it is now; every rank must call.

    a <- decay * a + (1 - decay) * w, from the first w on.
    """
    for name, tensor in engine.role_tensors(role).items():
        average = engine.kept.get(PREFIX + name, tensor)
        engine.kept[PREFIX + name] = average.lerp(tensor, 1 - decay)


def save_with_average(
    context: Context, engine: Engine, role: str, tokenizer: PreTrainedTokenizerBase, use_average: bool
) -> None:
    """Write both `role` and its average; every rank must call.

    The one that is the result is in `adapter` and in the model afterwards, the other one in `adapter-last`
    or `adapter-ema`.
    """
    last = engine.role_tensors(role)
    average = {
        name.removeprefix(PREFIX): tensor for name, tensor in engine.kept.items() if name.startswith(PREFIX)
    }
    other, name, result = (last, "adapter-last", average) if use_average else (average, "adapter-ema", last)
    engine.put(other)
    save_role(context, engine, role, tokenizer, name)
    engine.put(result)
    save_role(context, engine, role, tokenizer)
