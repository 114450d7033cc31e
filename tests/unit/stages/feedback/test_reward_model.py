"""The reward model scores sampled answers in the policy's tokens, or in its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from configs.schema import Base, Data, Source
from data.batches.tokenize import Prompt, answer
from stages.distributed.ranks import Ranks
from stages.feedback.reward_model import RewardModel, classifier_ending
from stages.models.adapter_files import Ending
from stages.models.base import load_base, load_tokenizer
from stages.models.queries import ScalarQuery, TokenQuery
from stages.models.role_models import RoleModels, same_tokens
from stages.models.roles import Role, Roles, ScalarHead
from stages.sampling.decoding import Response
from tests.support.bases import foreign_base, wider_base
from tests.support.roles import CPU, new_role, role_output, tiny_roles

ALONE = Ranks(0, 1, CPU)
QUESTION = [{"role": "user", "content": "How is it?"}]
SOURCE = Source(path="prompts.jsonl")
DATA = Data(sft=SOURCE, rm=SOURCE, ppo=SOURCE, max_length=64, max_prompt_length=32)


@pytest.fixture(scope="module")
def folders(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {"wider": wider_base(tiny_folder, root / "wider"), "foreign": foreign_base(root / "foreign")}


def models_with(folder: Path, tiny_tokenizer: Any) -> RoleModels:
    """A policy on the tiny base, and a reward model on the base in `folder`."""
    base = Base(model=str(folder), compute_dtype="float32")
    reward_base = new_role(Roles(load_base(base, CPU)), "reward", 1, head=True)
    models = RoleModels(
        (new_role(tiny_roles(), "policy", 0), tiny_tokenizer), (reward_base, load_tokenizer(base))
    )
    return models.eval()


def prompts_and_responses(tokenizer: Any) -> tuple[list[Prompt], list[Response]]:
    """Two answers to one prompt: one ends its turn, and one does not."""
    ids = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=True)["input_ids"]
    text = tokenizer("The sun was shining.")["input_ids"]
    prompt = Prompt(QUESTION, "How is it?", ids)
    return [prompt] * 2, [Response([*text, tokenizer.eos_token_id]), Response(text)]


def naive_score(models: RoleModels, text: str) -> float:
    ids = torch.tensor([models.reward_tokenizer(text, add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        return float(role_output(models.reward_base, "reward", ids)[0, -1])


def test_roles_are_asked_on_their_own_base(folders: dict[str, Path], tiny_tokenizer: Any) -> None:
    models = models_with(folders["wider"], tiny_tokenizer)
    assert models.of("reward") is models.reward_base
    assert models.of("policy") is models.of(Role.BASE) is models.policy_base
    ids = torch.tensor([[5, 6, 7]])
    query = TokenQuery("policy", ids, torch.ones_like(ids), targets=ids[:, 1:])
    assert torch.equal(models(query).logprobs, models.policy_base(query).logprobs)
    assert not models.shares_base and models.shares_tokens


def test_rows_of_embeddings_that_only_one_base_has(folders: dict[str, Path], tiny_tokenizer: Any) -> None:
    models = models_with(folders["foreign"], tiny_tokenizer)
    ids = torch.tensor([[5, 383]])
    assert torch.isfinite(models(ScalarQuery("reward", ids, torch.ones_like(ids)))).all()


def test_tokens_that_were_sampled_are_scored_as_they_are(
    folders: dict[str, Path], tiny_tokenizer: Any
) -> None:
    models = models_with(folders["wider"], tiny_tokenizer)
    prompts, responses = prompts_and_responses(tiny_tokenizer)
    prompt_text = tiny_tokenizer.decode(prompts[0].prompt_ids)
    expected = [naive_score(models, f"{prompt_text}The sun was shining.{end}") for end in ("<|im_end|>", "")]
    assert RewardModel(models, ALONE, DATA).score_on_all_ranks(prompts, responses, 8) == pytest.approx(
        expected, abs=1e-5
    )
    assert RewardModel(models, ALONE, DATA).score_on_all_ranks(prompts, responses, 1) == pytest.approx(
        expected, abs=1e-5
    )


def test_text_is_scored_where_the_tokenizers_differ(folders: dict[str, Path], tiny_tokenizer: Any) -> None:
    models = models_with(folders["foreign"], tiny_tokenizer)
    prompts, responses = prompts_and_responses(tiny_tokenizer)
    prompt_text = "[user]\nHow is it?\n[assistant]\n"
    expected = [naive_score(models, f"{prompt_text}The sun was shining.{end}") for end in ("</s>", "")]
    assert expected[0] != pytest.approx(expected[1], abs=1e-2)
    assert RewardModel(models, ALONE, DATA).score_on_all_ranks(prompts, responses, 8) == pytest.approx(
        expected, abs=1e-5
    )


def test_an_empty_answer_has_the_score_of_its_prompt(folders: dict[str, Path], tiny_tokenizer: Any) -> None:
    models = models_with(folders["foreign"], tiny_tokenizer)
    prompts, _ = prompts_and_responses(tiny_tokenizer)
    empty = Response([tiny_tokenizer.pad_token_id])  # at the limit without any text
    scores = RewardModel(models, ALONE, DATA).score_on_all_ranks(prompts[:1], [empty], 1)
    assert scores == pytest.approx([naive_score(models, "[user]\nHow is it?\n[assistant]\n")], abs=1e-5)


def test_a_prompt_or_answer_that_grew_too_long_is_truncated(folders: dict[str, Path]) -> None:
    tokenizer = load_tokenizer(Base(model=str(folders["foreign"])))
    prompt_ids, ids = answer("Sky? " * 20, "zzzz" * 40, True, tokenizer, DATA)
    assert (len(prompt_ids), len(ids)) == (32, 32)
    assert tokenizer.eos_token_id not in ids


@pytest.mark.parametrize("text", ["\n\nSo", " So", "So\n", "So"])
@pytest.mark.parametrize("chat", [True, False])
def test_an_answer_may_begin_with_any_blank(folders: dict[str, Path], text: str, chat: bool) -> None:
    """In a chat, blanks around an answer are dropped. After plain text, they are part of the answer."""
    tokenizer = load_tokenizer(Base(model=str(folders["foreign"])))
    data = DATA.model_copy(update={"chat": chat})
    prompt_ids, ids = answer("Sky?", text, True, tokenizer, data)
    prompt_text, answer_text = ("[user]\nSky?\n[assistant]\n", "So") if chat else ("Sky?", text)
    assert (tokenizer.decode(prompt_ids), tokenizer.decode(ids)) == (prompt_text, f"{answer_text}</s>")


@pytest.mark.parametrize("change", ["eos_token", "chat_template", "vocabulary"])
def test_what_makes_tokenizers_differ(change: str, tiny_folder: Path) -> None:
    one, other = (AutoTokenizer.from_pretrained(tiny_folder) for _ in range(2))
    other.pad_token = other.eos_token  # the pad token does not matter: masks mark padding
    assert same_tokens(one, other)
    if change == "eos_token":
        other.eos_token = "<|im_start|>"
    elif change == "chat_template":
        other.chat_template = "{{ messages[0]['content'] }}"
    else:
        other.add_tokens(["garden"])
    assert not same_tokens(one, other)


NO_LINE_BREAK = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
NO_END = "{% for m in messages %}{{ m['content'] + '.' }}{% endfor %}"


@pytest.mark.parametrize(
    ("chat", "changes", "read"),
    [
        (True, {}, "<|im_end|>\n"),
        (True, {"pad_token": "<|im_end|>"}, "<|im_end|>\n"),
        (True, {"chat_template": NO_LINE_BREAK}, None),
        (True, {"chat_template": NO_LINE_BREAK, "pad_token": "<|im_end|>"}, ""),
        (True, {"chat_template": NO_END}, None),
        (False, {}, None),
        (False, {"pad_token": "<|im_end|>"}, ""),
    ],
)
def test_what_a_classifier_reads_in_place_of_an_end(
    chat: bool, changes: dict[str, Any], read: str | None, tiny_folder: Path
) -> None:
    """The template of the tiny model writes a line break after the end of a turn, as ChatML does."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder)
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    ending = classifier_ending(tokenizer, chat=chat)
    assert read == (ending and tokenizer.decode(ending.read))
    assert ending is None or ending.end == tokenizer.eos_token_id


def test_an_ending_stands_in_place_of_the_end_alone() -> None:
    head = ScalarHead(4, CPU)
    assert head.read([5, 2]) == [5, 2]
    head.ending = Ending(2, (2, 9))
    assert head.read([5, 2]) == [5, 2, 9] and head.read([2]) == [2, 9]
    assert head.read([2, 5]) == [2, 5], "an answer that was cut off is read as it is"
    head.ending = Ending(2, ())
    assert head.read([5, 2]) == [5] and head.read([2]) == []
