"""What the report says of `tristage check rm`: does the reward model learn, and would more rankings help?"""

from __future__ import annotations

from pipeline.state.results import Results
from pipeline.state.reward_check import ALL, CURVE, SOUND, UNSOUND, Checked, RewardCheck
from pipeline.terminal.format import show_known
from stages.maths.statistics import LEAST

WORTH = 0.05  # a gain of accuracy for which one would collect as many rankings again
PARTS = dict(zip((*CURVE, ALL), ("a quarter gives", "a half", "all"), strict=True))
CHECKS = (ALL, "shuffled", "negated")
UNKNOWN = "Trained on enough? tristage check rm --curve trains it on a quarter and on half of the rankings."


def check_words(results: Results) -> list[str]:
    """Answers from the check of this very reward model. Without one, how to get them."""
    check = results.check
    if check is None or not _is_of(check, results):
        return [UNKNOWN]
    return [_learns(check), _trained_on_enough(check)]


def _is_of(check: RewardCheck, results: Results) -> bool:
    output = results.manifests["rm"].output if results.finished("rm") else None
    return output is not None and output.sha256 == check.reward_model


def _learns(check: RewardCheck) -> str:
    found = {name: check.variants[name] for name in CHECKS if name in check.variants}
    figures = "; ".join(f"{name} rankings give {_shown(one)}, {one.verdict}" for name, one in found.items())
    answer = "Too few prompts to tell"
    if any(one.verdict.startswith(UNSOUND) for one in found.values()):
        answer = "Not as it should"
    elif all(one.verdict == SOUND for one in found.values()):
        answer = "Yes"
    return f"Does it learn from the labels? {answer}: {figures}."


def _shown(one: Checked) -> str:
    return str(show_known(one.accuracy.model_dump()))


def _trained_on_enough(check: RewardCheck) -> str:
    """Yes: the interval of the gain from a half to all ends below `WORTH`. No: it begins above 0."""
    gain = check.gain
    if gain is None:
        return UNKNOWN
    parts = [f"{words} {_shown(check.variants[name])}" for name, words in PARTS.items()]
    figures = (
        f"of the rankings of {check.prompts:,} prompts, {parts[0]}, {parts[1]}, {parts[2]}. From a half to "
        f"all it gains {show_known(gain.model_dump())}."
    )
    question = "Trained on enough?"
    if gain.n < LEAST:
        return f"{question} Not clear, {gain.n:.0f} held-out prompts are too few: {figures}"
    if gain.low > 0 and check.prompts < check.prompts_of_run:
        rest = f"Stage rm trains on {check.prompts_of_run:,}: run the check without --rows."
        return f"{question} Not clear, the check took a part of the prompts: {figures} {rest}"
    if gain.low > 0:
        return f"{question} No: {figures} More rankings help."
    if gain.high < WORTH:
        return f"{question} Yes: {figures} That is less than {WORTH:g}."
    return f"{question} Not clear: {figures} That may be nothing, or {WORTH:g}. Hold out more prompts."
