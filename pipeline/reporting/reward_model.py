"""The reward model's part of a report: is it better than guessing by length, calibrated, tested on enough?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from pipeline.reporting.figure_style import COLOURS, PALE, grid, new_figure
from pipeline.reporting.page import (
    Block,
    Bullets,
    Cell,
    Paragraph,
    Picture,
    Section,
    Table,
    figure_cells,
    quote,
)
from pipeline.reporting.reward_check import check_words
from pipeline.state.results import Results
from pipeline.terminal.format import show_known, show_number
from stages.maths.preferences import WIDEST, noise_of, prompt_numbers, ranking_of, reward_report
from stages.maths.statistics import Figure, figure_of, has_interval

PICTURE = "reward-model.png"
LENGTH_MATTERS = 0.3  # a correlation of reward and length
MEASURED, RAW = "the scores in evaluation.jsonl", "the raw scores in rm/evaluation.jsonl"
NO_SPREAD = 1e-12  # a deviation by which the saved model's scores are not divided
HOLD_OUT = "Hold out about {} prompts (data.rm.held_out)."
Report = Mapping[str, Any]


def report_of(results: Results) -> Report | None:
    """The figures of the reward model on its held-out rankings; None before there are any."""
    rankings = [*map(ranking_of, results.scored_rankings)]
    if not any(ranking.pairs for ranking in rankings):
        return None
    noise = noise_of(results.experiment.rm.rankings.of_single_people, results.final_metrics("rm"))
    return reward_report(rankings, noise, prompt_numbers(rankings))


def verdicts(
    report: Report, remedy: str = HOLD_OUT, scores: str = MEASURED, deviation: float | None = None
) -> list[str]:
    """Plain answers to what people ask about a reward model, each with the figures behind it.

    Args:
        remedy: what to do if there are too few prompts; their number goes into the braces.
        scores: what the report was measured on, in words.
        deviation: what divides these scores in the saved model; None if it has the same scores, or scores
            that are not these divided by one number.
    """
    calibrated = _calibrated(report, scores, deviation)
    found = [_against_baselines(report), _about_length(report), calibrated, _enough(report, remedy)]
    if report["agreement"]:
        about = _against_people if report["between"] == "two people" else _against_labeller
        found.insert(1, about(report))
    return found


def _against_baselines(report: Report) -> str:
    best, lead = report["best_baseline"], report["lead"]
    figures = f"it is right about {show_known(report['accuracy'])} of the pairs, and “{best}” about "
    figures += (
        f"{show_known(report['baselines'][best])}. The difference, on the same prompts: {show_known(lead)}."
    )
    if lead["low"] > 0:
        return f"Better than simple rules? Yes: {figures}"
    if lead["high"] < 0:
        return f"Better than simple rules? No, worse: {figures}"
    return f"Better than simple rules? Not clearly: {figures}"


def _against_people(report: Report) -> str:
    agreement, ceiling, accuracy = report["agreement"], report["ceiling"], report["accuracy"]
    figures = (
        f"two people agree on {show_known(agreement)} of the pairs, the model with one of them on "
        f"{show_known(accuracy)}. By their agreement, it could reach {show_known(ceiling)}."
    )
    if not has_interval(agreement):
        prompts = f"{agreement['n']:.0f} prompts that several people ranked"
        return f"As good as people agree? {prompts} do not tell: {figures} Raise --overlap."
    if accuracy["low"] > ceiling["high"]:
        return f"As good as people agree? Better than is possible: {figures} Look for a leak."
    if accuracy["low"] > agreement["high"]:
        return f"As good as people agree? Yes, it agrees with one more than another does: {figures}"
    if accuracy["high"] < agreement["low"]:
        return f"As good as people agree? Not yet: {figures}"
    return f"As good as people agree? It cannot be told apart from them: {figures}"


def _against_labeller(report: Report) -> str:
    agreement, ceiling = report["agreement"], report["ceiling"]
    question = "Does the labeller agree with itself?"
    if agreement["value"] == 1:
        return f"{question} Yes: asked twice about {agreement['n']:.0f} prompts, it ordered all pairs alike."
    figures = (
        f"asked twice, it orders {show_known(agreement)} of the pairs alike. So a model could be right about "
        f"{show_known(ceiling)}."
    )
    if has_interval(agreement) and report["accuracy"]["low"] > ceiling["high"]:
        return f"{question} Less than the model with it: {figures} Look for a leak."
    return f"{question} Not always: {figures}"


def _about_length(report: Report) -> str:
    correlation = report["length_correlation"]
    shorter = report["groups"]["length"].get("the better answer is shorter")
    longer = report["groups"]["length"].get("the better answer is longer")
    if correlation is None or shorter is None or longer is None:
        return "Does it judge by length? The held-out answers do not tell: their lengths hardly differ."
    figures = (
        f"reward and length correlate by {show_known(correlation)} among the answers to a prompt. It is "
        f"right about {show_known(shorter)} of the pairs whose better answer is shorter, and "
        f"{show_known(longer)} of those whose better answer is longer."
    )
    if abs(correlation["value"]) > LENGTH_MATTERS and not correlation["low"] <= 0 <= correlation["high"]:
        return f"Does it judge by length? In part: {figures}"
    if max(abs(correlation["low"]), abs(correlation["high"])) > LENGTH_MATTERS:
        return f"Does it judge by length? Not clear: {figures}"
    return f"Does it judge by length? Hardly: {figures}"


def _calibrated(report: Report, scores: str, deviation: float | None) -> str:
    found = report["calibration"]
    figures = (
        f"its probabilities are off by {show_number(found['error'])} on average. Those of a calibrated model "
        f"would be off by up to {show_number(found['error_of_calibrated'])} on as few pairs."
    )
    if found["error"] <= found["error_of_calibrated"]:
        return f"Calibrated? As far as these pairs tell: {figures}"
    temperature = found["temperature"]
    if temperature is None:
        return f"Calibrated? No: {figures} No temperature mends that."
    sure = "too sure" if temperature > 1 else "not sure enough"
    mend = f"Divide differences of {scores} by {show_number(temperature)}"
    if deviation is not None:
        mend += f", or those of the saved model's scores by {show_number(temperature / deviation)}"
    return f"Calibrated? No, {sure}: {figures} {mend}."


def _enough(report: Report, remedy: str) -> str:
    accuracy = report["accuracy"]
    width = accuracy["high"] - accuracy["low"]
    count = f"{accuracy['n']:.0f} prompts with {report['pairs']} pairs"
    if width > WIDEST:
        more = remedy.format(_needed(accuracy, width))
        return f"Tested on enough? No: {count} leave an interval of {show_number(width)}. {more}"
    return f"Tested on enough? {count} give an interval of {show_number(width)}."


def _needed(accuracy: Figure, width: float) -> str:
    """The number of prompts that would make the interval narrow enough: its width goes with 1/√n."""
    return f"{accuracy['n'] * (width / WIDEST) ** 2:.0f}"


def reward_section(results: Results, report: Report, drawn: set[str]) -> Section:
    """Verdicts, accuracy against baselines and by kind of pair, calibration, and the surest mistakes."""
    metrics = results.final_metrics("rm")
    words = [*verdicts(report, scores=RAW, deviation=_deviation(metrics)), *check_words(results)]
    blocks = report_blocks(report, words, drawn=PICTURE in drawn)
    blocks[1:1] = _members(metrics)
    return Section("Is the reward model good enough?", blocks)


def _deviation(metrics: Mapping[str, float]) -> float | None:
    """What divides raw scores in the saved model. None for an ensemble: each member has its own."""
    found = metrics.get("score_std", 0.0)
    return None if found < NO_SPREAD or "disagreement" in metrics else found


def _members(metrics: Mapping[str, float]) -> list[Block]:
    """The accuracy of each member of an ensemble, and their disagreement; nothing without one."""
    names = [name for name in metrics if name.startswith("accuracy_member_") and f"{name}_low" in metrics]
    if not names:
        return []
    rows = [
        [Cell(name.removeprefix("accuracy_").replace("_", " ")), *figure_cells(figure_of(metrics, name))]
        for name in names
    ]
    words = (
        "The ensemble scores by the mean of its members. They disagree by "
        f"{show_known(figure_of(metrics, 'disagreement'))}; 0 would be one model several times."
    )
    return [Table(["Accuracy of", "", "95 % interval", "prompts"], rows), Paragraph(words)]


def report_blocks(report: Report, words: list[str], *, drawn: bool) -> list[Block]:
    """The report as parts of a page.

    Args:
        words: the verdicts on top.
        drawn: `PICTURE` lies beside the page.
    """
    blocks: list[Block] = [Bullets(words), _accuracies(report)]
    if drawn:
        blocks.append(
            Picture(PICTURE, "Accuracy of the reward model against its confidence, and beside simple rules")
        )
    blocks.append(
        Paragraph(
            f"Brier score {show_known(report['calibration']['brier'])}; a coin has 0.25. The labels tie "
            f"{report['tied']:.0%} of the pairs in these rankings, which do not count. Rankings whose "
            "answers all tie are not among them. Each interval is over prompts."
        )
    )
    if report["mistakes"]:
        rows = [
            [Cell(quote(one["prompt"])), Cell(quote(one["better"])), Cell(quote(one["worse"]))]
            for one in report["mistakes"]
        ]
        heading = Paragraph("The mistakes that it is surest of. Are the labels right?")
        blocks += [heading, Table(["Prompt", "Better by the labels", "Better by the model"], rows, "prose")]
    return blocks


def _accuracies(report: Report) -> Table:
    rows = [[Cell("all pairs"), *figure_cells(report["accuracy"])]]
    parts = [(name, part, one) for name, of in report["groups"].items() for part, one in of.items()]
    rows += [[Cell(f"by {name}: {part}"), *figure_cells(one)] for name, part, one in parts]
    rows += [[Cell(f"baseline: {name}"), *figure_cells(one)] for name, one in report["baselines"].items()]
    return Table(["Accuracy", "", "95 % interval", "prompts"], rows)


def draw_report(report: Report) -> Drawing:
    """Accuracy against confidence, and beside it the accuracy of the model and of simple rules."""
    drawing = new_figure(8.4, 3.4)
    left, right = grid(drawing, 1, 2)
    _draw_reliability(left, report)
    _draw_baselines(right, report)
    return drawing


def _draw_reliability(axes: Axes, report: Report) -> None:
    """A calibrated model lies on the diagonal."""
    bins = report["calibration"]["bins"]
    confidence, accuracy = ([one[name] for one in bins] for name in ("confidence", "accuracy"))
    axes.plot([0.5, 1], [0.5, 1], color=PALE, linewidth=1, linestyle="--")
    axes.plot(confidence, accuracy, color=COLOURS["rm"])
    sizes = [20 + 400 * one["weight"] for one in bins]
    axes.scatter(confidence, accuracy, s=sizes, color=COLOURS["rm"], zorder=3, clip_on=False)
    axes.set_xlim(0.5, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence, σ of the difference of scores")
    axes.set_ylabel("share of pairs in order")
    axes.set_title("Reliability; areas are shares of the pairs")


def _draw_baselines(axes: Axes, report: Report) -> None:
    named = {"reward model": report["accuracy"], **report["baselines"]}
    if report["agreement"]:
        named = {report["between"]: report["agreement"], "most that is possible": report["ceiling"], **named}
    for y, (name, one) in enumerate(reversed(named.items())):
        colour = COLOURS["rm"] if name == "reward model" else PALE
        axes.plot([one["low"], one["high"]], [y, y], color=colour)
        axes.plot([one["value"]], [y], "o", color=colour)
    axes.axvline(0.5, color=PALE, linewidth=1, linestyle="--")
    axes.set_yticks(range(len(named)), list(reversed(named)))
    axes.set_xlim(0, 1)
    axes.set_xlabel("accuracy, with its 95 % interval")
    axes.set_title("Against simple rules")
    axes.grid(axis="y", visible=False)
