"""Does an exported classifier give the reward model's scores, less the constant?"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase, pipeline

from apps.export.weights import ending_text
from apps.trained_run import LoadedPolicies, TrainedRun, reward_scores
from configs.schema import Data
from data.batches.tokenize import continuation
from data.examples import StageData
from data.sources.messages import Text, last_text
from data.storage.files import read_json_lines
from stages.feedback.rankings import FILE

AT_ONCE = 16


@dataclass(frozen=True)
class ScoreDifference:
    """How far the classifier's logits plus the constant are from the reward model's scores.

    Attributes:
        largest: absolute difference.
        texts: how many answers were compared.
    """

    largest: float
    texts: int

    def __str__(self) -> str:
        return (
            "scores by the text-classification pipeline of transformers, plus the constant, differ from the "
            f"reward model's by at most {self.largest:.2g} (n = {self.texts} answers)"
        )


def ranked_answers(run: TrainedRun, number: int) -> list[tuple[Text, str]]:
    """The first two answers of rankings of the run, held-out ones if there are any, `number` at most."""
    collected = run.run.stage("rm") / FILE
    if collected.is_file():
        rows = read_json_lines(collected, ["prompt", "completions"])
    else:
        split = StageData(run.config, "rm", lambda _: None).rows("rankings")
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
    if isinstance(prompt, str) and not data.chat:
        return f"{prompt}{answer}{ending}"
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    answered = [*messages, {"role": "assistant", "content": answer}]
    text: str = tokenizer.apply_chat_template(answered, tokenize=False)
    return text


def compare_classifier(
    folder: Path, run: TrainedRun, policies: LoadedPolicies, constant: float, number: int
) -> ScoreDifference:
    """Load the folder as its users will, and compare its scores with those of the role it was made of."""
    data, models = run.config.data, policies.models
    pairs = ranked_answers(run, number)
    expected = reward_scores(policies, pairs, data)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype="auto", device_map={"": models.reward_base.causal.device}
    )
    ending = ending_text(models.reward_base, models.reward_tokenizer)
    classify = pipeline("text-classification", model=model, tokenizer=tokenizer)
    chat = data.chat or not isinstance(pairs[0][0], str)
    outputs = classify(
        [classifier_text(prompt, answer, tokenizer, data, ending) for prompt, answer in pairs],
        function_to_apply="none",
        batch_size=AT_ONCE,
        add_special_tokens=not chat,  # a chat template writes its own
    )
    differences = [
        abs(output["score"] + constant - score) for output, score in zip(outputs, expected, strict=True)
    ]
    return ScoreDifference(max(differences), len(pairs))
