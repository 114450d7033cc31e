"""Does an exported classifier give the reward model's scores, less the constant?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, islice
from pathlib import Path
from statistics import fmean

from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase, pipeline

from apps.export.weights import ending_text
from apps.trained_run import LoadedPolicies, TrainedRun, reward_scores
from configs.schema import Data
from data.batches.tokenize import continuation, is_chat
from data.sources.messages import Text, as_messages, last_text
from data.storage.files import read_json_lines
from stages.feedback.rankings import FILE

AT_ONCE = 16


@dataclass(frozen=True)
class ScoreDifference:
    """How far the classifier's logits plus the constant are from the reward model's scores.

    Attributes:
        largest, mean: absolute difference.
        texts: how many answers were compared.
        swapped: pairs of these that the classifier orders otherwise, though their scores are further apart
            than the bound.
    """

    largest: float
    mean: float
    texts: int
    swapped: int

    def __str__(self) -> str:
        return (
            "scores by the text-classification pipeline of transformers, plus the constant, differ from the "
            f"reward model's by {self.mean:.2g} in the mean, at most {self.largest:.2g} (n = {self.texts} "
            "answers; the score has a deviation of 1)"
        )


def ranked_answers(run: TrainedRun, number: int) -> list[tuple[Text, str]]:
    """The first two answers of rankings of the run, held-out ones if there are any, `number` at most."""
    collected = run.run.stage("rm") / FILE
    if collected.is_file():
        rows = read_json_lines(collected, ["prompt", "completions"])
    else:
        split = run.rows("rm", "rankings")
        rows = split.held_out or split.train
    pairs = (
        # Older versions recorded answers without the blank before them.
        (row["prompt"], continuation(row["prompt"], last_text(answer), run.config.data))
        for row in reversed(rows)  # held-out ones come last
        for answer in row["completions"][:2]
    )
    return list(islice(((prompt, text) for prompt, text in pairs if text.strip()), number))


def classifier_text(
    prompt: Text, answer: str, tokenizer: PreTrainedTokenizerBase, data: Data, ending: str
) -> str:
    """What the classifier reads: prompt and answer, and `ending`, which its chat template has, too."""
    if not is_chat(prompt, data):
        return f"{prompt}{answer}{ending}"
    answered = [*as_messages(prompt, "user"), *as_messages(answer, "assistant")]
    text: str = tokenizer.apply_chat_template(answered, tokenize=False)
    return text


def compare_classifier(
    folder: Path, run: TrainedRun, policies: LoadedPolicies, constant: float, number: int, bound: float
) -> ScoreDifference:
    """Load the folder as its users will, and compare its scores with those of the role it was made of.

    Args:
        number: of answers.
        bound: scores that are further apart must have the same order.
    """
    data, models = run.config.data, policies.models
    pairs = ranked_answers(run, number)
    expected = reward_scores(policies, pairs, data)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype="auto", device_map={"": models.reward_base.causal.device}
    )
    ending = ending_text(models.reward_base, models.reward_tokenizer)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    chat = is_chat(pairs[0][0], data)
    outputs = classify(
        [classifier_text(prompt, answer, tokenizer, data, ending) for prompt, answer in pairs],
        function_to_apply="none",
        batch_size=AT_ONCE,
        add_special_tokens=not chat,  # a chat template writes its own
    )
    return score_difference([output["score"] + constant for output in outputs], expected, bound)


def score_difference(scores: Sequence[float], expected: Sequence[float], bound: float) -> ScoreDifference:
    """Compare scores with those that they should be; see `ScoreDifference`."""
    both = list(zip(scores, expected, strict=True))
    differences = [abs(score - other) for score, other in both]
    swapped = sum(
        abs(right_a - right_b) > bound and (a - b) * (right_a - right_b) <= 0
        for (a, right_a), (b, right_b) in combinations(both, 2)
    )
    return ScoreDifference(max(differences), fmean(differences), len(both), swapped)
