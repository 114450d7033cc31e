"""A stage resumes on the rows of its checkpoint, and refuses others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from configs.errors import UserError
from data.batches.tokenize import Demonstration, Prompt, Ranking
from stages.context import Context
from stages.training.checkpoint import Checkpoint, Header, State, read_checkpoint, save_checkpoint
from stages.training.same_rows import ROWS, Example, check_rows
from tests.contract.bad_inputs.entry import check_message
from tests.unit.stages.feedback.test_evaluation import context_in

PROMPTS = [Prompt(text, text, [number]) for number, text in enumerate("abcd")]


def checkpoint_with(folder: Path, parts: dict[str, State]) -> Checkpoint:
    save_checkpoint(folder, Header(5, "ours", "b", {}), parts, keep=1)
    found = read_checkpoint(folder / "step-000005", "ours")
    assert isinstance(found, Checkpoint)
    return found


def saved(context: Context, train: list[Example], held_out: list[Example]) -> Checkpoint:
    rows = check_rows(context, None, train, held_out)
    return checkpoint_with(context.folder, {ROWS: rows.state_dict()})


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        (PROMPTS[:2], PROMPTS[2:]),  # another one is held out
        (PROMPTS[:2], PROMPTS[3:]),  # one is lost
        ([*PROMPTS[1:3], PROMPTS[0]], PROMPTS[3:]),  # steps draw by position
    ],
)
def test_other_prompts_are_refused(train: list[Example], held_out: list[Example], tmp_path: Path) -> None:
    context = context_in(tmp_path)
    checkpoint = saved(context, [*PROMPTS[:3]], [*PROMPTS[3:]])
    check_rows(context, checkpoint, [*PROMPTS[:3]], [*PROMPTS[3:]])
    with pytest.raises(UserError) as caught:
        check_rows(context, checkpoint, train, held_out)
    check_message(
        str(caught.value),
        "stage ppo: ",
        "not those on which it began. Changed: ",
        "a key or a file of data.sft or data.rm or data.ppo is not what it was.",
        "start over with --fresh",
    )


def test_the_key_that_changed_is_named(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    checkpoint = saved(context, [*PROMPTS[:3]], [*PROMPTS[3:]])
    data = context.config.data
    config = context.config.model_copy(
        update={"data": data.model_copy(update={"sft": data.sft.model_copy(update={"held_out": 4.0})})}  # type: ignore[union-attr]
    )
    changed = replace(context, config=config)
    check_rows(changed, checkpoint, [*PROMPTS[:3]], [*PROMPTS[3:]])  # the key alone is no reason
    with pytest.raises(UserError, match=r"Changed: data.sft.held_out: 0.1 -> 4.0. Restore that to resume"):
        check_rows(changed, checkpoint, [*PROMPTS[:2]], [*PROMPTS[3:]])


def test_answers_count_too(tmp_path: Path) -> None:
    """A text without a prompt is known by its tokens only."""
    context = context_in(tmp_path)
    checkpoint = saved(context, [Demonstration([], [1, 2]), Ranking("p", [1], [[2], [3]], [0, 1])], [])
    with pytest.raises(UserError):
        check_rows(
            context, checkpoint, [Demonstration([], [1, 3]), Ranking("p", [1], [[2], [3]], [0, 1])], []
        )


def test_a_checkpoint_of_an_earlier_version_does_not_tell(tmp_path: Path) -> None:
    context = context_in(tmp_path)
    check_rows(context, checkpoint_with(tmp_path, {"loop": State({})}), [*PROMPTS], [])
