"""A reward model that is an adapter with a scalar head: a run's, an adapter folder of ours, or TRL's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers import PreTrainedTokenizerBase

from apps.evaluate.reward_models.scorer import AT_ONCE, Row, ScoredRow, by_length
from apps.trained_run import Adapters, TrainedRun, load_policies, this_process
from configs.errors import UserError
from configs.schema import Base, Data
from data.batches import tokenize
from data.batches.fit import NoPair, NothingFits
from data.storage.adapter_names import CONFIG_FILE
from stages.distributed.ranks import Ranks
from stages.feedback.reward_evaluation import nats_of_answers
from stages.feedback.reward_model import classifier_ending, score_tokens
from stages.models.base import base_digest, load_base, load_tokenizer
from stages.models.base_checks import check_vocabulary
from stages.models.reward_members import members_in
from stages.models.role_models import RoleModels
from stages.models.roles import Role, Roles
from stages.models.start_adapters import add_start, is_classifier


class AdapterBase(Base):
    """The base that an adapter names."""

    key: ClassVar = "--rm"


class HeadScorer:
    """A reward role on its base. `Scorer` describes the interface."""

    def __init__(self, name: str, models: RoleModels, data: Data, ranks: Ranks) -> None:
        self.name, self.models, self.data, self.ranks = name, models, data, ranks
        turns = "plain text is a turn of a chat" if data.chat else "plain text stays text"
        self.about = f"{turns}; at most {data.max_length:,} tokens"

    def score(self, rows: Sequence[Row]) -> list[ScoredRow]:
        tokenizer, device = self.models.reward_tokenizer, self.ranks.device
        fitted = {place: ranking for place, row in enumerate(rows) if (ranking := self._tokens(row))}
        rankings = list(fitted.values())
        pairs = [(one.prompt_ids, ids) for one in rankings for ids in one.completion_ids]
        scores = iter(
            by_length(
                pairs,
                lambda pair: len(pair[0]) + len(pair[1]),
                lambda some: score_tokens(self.models, some, device).tolist(),
            )
        )
        pad_id: int = tokenizer.pad_token_id
        nats = nats_of_answers(self.models.reward_base, rankings, pad_id, self.ranks, AT_ONCE)
        return [
            ScoredRow(
                row=place,
                answers=_texts(tokenizer, ranking),
                ranks=ranking.ranks,
                rewards=[next(scores) for _ in ranking.completion_ids],
                lengths=[len(ids) for ids in ranking.completion_ids],
                nats=nats[number],
                labels=ranking.labels,
            )
            for number, (place, ranking) in enumerate(fitted.items())
        ]

    def _tokens(self, row: Row) -> tokenize.Ranking | None:
        """The row in tokens; None if it is too long, or if its answers differ in no token that is kept."""
        try:
            (ranking,), _ = tokenize.rankings([row], self.models.reward_tokenizer, self.data)
        except (NothingFits, NoPair):
            return None
        return ranking


def _texts(tokenizer: PreTrainedTokenizerBase, ranking: tokenize.Ranking) -> list[str]:
    texts = tokenizer.batch_decode(ranking.completion_ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def open_run_scorer(run: TrainedRun, data: Data) -> HeadScorer:
    """The reward model of a run, on its base as it was trained on.

    Raises:
        UserError: stage rm has not finished, or its folder or base is not what it was.
    """
    ranks = this_process()
    loaded = load_policies(run, Adapters({}, run.adapter("rm")), ranks)
    return HeadScorer(str(run.run.path), loaded.models, data, ranks)


def named_base(folder: Path, quantization: str | None) -> AdapterBase:
    """The base that the adapter's config names. A classifier is on a base that is not quantized by default.

    Raises:
        UserError: the config names none.
    """
    try:
        config: Any = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        name = config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or not name:
        raise UserError(
            f"--rm {folder}: its {CONFIG_FILE} has no base_model_name_or_path. Name the base there."
        )
    chosen = quantization or ("none" if is_classifier(folder) else "nf4")
    dtype = "float32" if this_process().device.type == "cpu" else "auto"
    return AdapterBase.model_validate({"model": name, "quantization": chosen, "compute_dtype": dtype})


def open_adapter(folder: Path, base: AdapterBase, data: Data) -> HeadScorer:
    """The reward model in an adapter folder, by this program or by TRL.

    Raises:
        UserError: the folder is no reward model, or its base cannot be loaded.
    """
    ranks = this_process()
    tokenizer = tokenizer_of(folder, base)
    model = load_base(base, ranks.device)
    check_vocabulary(base, model.config.get_text_config(), tokenizer)
    roles = Roles(model, base_digest(base, model))
    for role, member in members_in(folder):
        add_start(roles, Role.REWARD, f"--rm {folder}", member, trainable=False, name=role)
    if is_classifier(folder):
        roles.head(Role.REWARD).ending = classifier_ending(tokenizer, chat=data.chat)
    models = RoleModels((roles, tokenizer))
    models.requires_grad_(False).eval()
    scorer = HeadScorer(str(folder), models, data, ranks)
    scorer.about = f"on {base.model} ({base.quantization}); {scorer.about}"
    return scorer


def tokenizer_of(folder: Path, base: Base) -> PreTrainedTokenizerBase:
    """The tokenizer beside the adapter, whose chat template it was trained with; else the base's."""
    beside = (folder / "tokenizer_config.json").is_file()
    return load_tokenizer(base.model_copy(update={"model": str(folder)}) if beside else base)
