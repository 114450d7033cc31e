"""The report of a run: `RUN/report/` with a page in HTML and Markdown, and figures."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from configs.schema import STAGES, Ppo
from pipeline.reporting.figures import draw_all
from pipeline.reporting.folder import report_folder
from pipeline.reporting.missing import missing
from pipeline.reporting.page import (
    Bullets,
    Cell,
    Page,
    Paragraph,
    Picture,
    Section,
    Table,
    Tiles,
    quote,
    write_page,
)
from pipeline.reporting.people import people_win_rate
from pipeline.reporting.reward_model import Report, report_of, reward_section
from pipeline.reporting.reward_words import is_reward_model, reward_words
from pipeline.reporting.tables import closing_sections, gold_parts, show_count, show_interval
from pipeline.reporting.warnings import RULES, warnings
from pipeline.state.manifest import BaseModelId
from pipeline.state.results import Results, read_results
from pipeline.state.rows import Row
from pipeline.terminal.format import show_figure, show_number

ANSWERS_SHOWN = 30
RANKINGS_SHOWN = 3
ITERATIONS_SHOWN = 6
TIES = {
    "ignore": "The reward model does not train on pairs that tie.",
    "half": "A pair that ties counts as half a win each way.",
}
PICTURES = {
    "gold.png": "Gold score of base, SFT and PPO with 95 % intervals, and its change by prompt",
    "score-kl.png": "Score against KL along PPO training",
    "curves-sft.png": "Training curves of SFT: loss on training batches and held out, token accuracy",
    "curves-rm.png": "Training curves of the reward model: loss and accuracy, in training and held out",
    "curves-ppo.png": "Training curves of PPO: scores, KL, entropy, length, truncation, explained variance",
}


def write_report(run_dir: Path) -> Path:
    """Write `run_dir/report` about a finished or unfinished run. Returns the path of its `index.html`.

    Raises:
        UserError: `run_dir` is not a run directory, a file in it is damaged, or it cannot be written.
    """
    results = read_results(run_dir)
    reward_model = report_of(results)
    with report_folder(run_dir / "report") as folder:
        drawn = draw_all(results, reward_model, folder)
        return write_page(build_page(results, reward_model, drawn), folder)


def build_page(results: Results, reward_model: Report | None, drawn: set[str]) -> Page:
    """Build the page of a run.

    Args:
        reward_model: the figures of the reward model, if there are any.
        drawn: the file names of the pictures that exist.
    """
    config = results.experiment
    bases = str(BaseModelId.of(config.base))
    if config.rm.base:
        bases += f", reward model on {BaseModelId.of(config.rm.base)}"
    sections = [
        _result(results),
        _warnings(results),
        _missing(results),
        _gold(results, drawn),
        _score_against_kl(drawn),
        _best_of_n(results),
        _answers(results),
        _training(drawn),
        _samples(results),
        reward_section(results, reward_model, drawn) if reward_model else None,
        _rankings(results),
        *closing_sections(results),
        Section("Rules of the warnings", [Bullets([rule.condition for rule in RULES])]),
    ]
    lineage = f"; {config.lineage.words}" if config.lineage.words else ""
    return Page(
        title=f"Run {config.name}",
        subtitle=f"{bases}, LoRA of rank {config.adapter.r}, seed {config.seed}{lineage}",
        sections=[section for section in sections if section is not None],
    )


def _result(results: Results) -> Section | None:
    """The most important metrics."""
    sft, rm, ppo = (results.final_metrics(stage) for stage in STAGES)
    before = f", before: {show_number(sft['eval_loss_before'])}" if "eval_loss_before" in sft else ""
    tiles = [
        *_tile("SFT, held-out loss", sft, "eval_loss", f"nats per token{before}"),
        *_tile("Reward model, held-out accuracy", rm, "accuracy"),
        *_tile("Gold score of the base", ppo, "gold_base"),
        *_tile("Gold score of SFT", ppo, "gold_sft"),
        *_tile("Gold score of PPO", ppo, "gold_ppo"),
        *_tile("PPO's win rate against SFT", ppo, "win_rate"),
        *_tile("PPO's win rate against SFT, by people", people_win_rate(results), "win_rate"),
        *_reward_tiles(results.experiment.ppo, ppo),
        *_tile(f"KL of PPO to {results.experiment.ppo.reference_name}", ppo, "kl", "nats per response"),
    ]
    return Section("Result", [Tiles(tiles)]) if tiles else None


def _reward_tiles(ppo: Ppo, metrics: dict[str, float]) -> list[tuple[str, Cell]]:
    """What PPO optimised, and its terms if there are several."""
    keys = {} if ppo.sole_term else {ppo.reward_metric: "Reward of PPO, the sum of its terms"}
    keys |= {f"{term.label}_score": f"Reward {term.label} of PPO" for term in ppo.rewards}
    if is_reward_model(ppo):
        keys = {ppo.reward_metric: "Reward score of PPO"}
    tiles = []
    for key, label in keys.items():
        before = f"SFT: {show_number(metrics[f'{key}_sft'])}" if f"{key}_sft" in metrics else ""
        tiles += _tile(label, metrics, f"{key}_ppo", before)
    return tiles


def _tile(label: str, metrics: dict[str, float], key: str, unit: str = "") -> list[tuple[str, Cell]]:
    if key not in metrics:
        return []
    bounds, count = show_interval(metrics, key), show_count(metrics, key)
    return [
        (
            label,
            Cell(
                show_figure(metrics, key).value,
                "\n".join(filter(None, [bounds and f"95 %: {bounds}", count and f"n = {count}", unit])),
            ),
        )
    ]


def _warnings(results: Results) -> Section:
    ppo = results.experiment.ppo
    reading = Paragraph(
        f"Intervals are 95 % bootstrap intervals over prompts. PPO optimises {reward_words(ppo)}. The gold "
        "score, if the run has one, comes from a judge that PPO never sees. If the first rises and the "
        "second does not, PPO exploits errors of the reward. The KL measures the distance between the policy "
        f"and {ppo.reference_name}."
    )
    good = Paragraph(
        "In a good run, SFT's held-out loss falls, and the reward model's accuracy on held-out pairs is well "
        "above 0.5. In PPO both scores rise together, the KL rises and levels off, and the entropy falls a "
        "little. Responses keep their length and end their turn, few ratios are clipped, and the critic's "
        "explained variance rises towards 1."
    )
    messages = warnings(results)
    if messages:
        return Section("How to read this: warnings", [Bullets(messages), reading, good], "warning")
    if not any(results.metrics.values()):
        return Section("How to read this", [reading, good])
    none = Paragraph("The rules at the end of this page find nothing wrong in what has run.")
    return Section("How to read this: no warnings", [none, reading, good], "good")


def _missing(results: Results) -> Section | None:
    messages = missing(results)
    return Section("Missing from this report", [Bullets(messages)], "missing") if messages else None


def _gold(results: Results, drawn: set[str]) -> Section | None:
    if "gold.png" not in drawn:
        return None
    metrics = results.final_metrics("ppo")
    compared = results.experiment.data.keep_apart and not metrics.get("stages_not_compared")
    text = (
        f"The judge {results.experiment.ppo.judge} scored one answer of each policy to each of "
        f"{len(results.evaluation)} prompts that {'no stage' if compared else 'PPO'} was "
        f"{'' if compared else 'not '}trained on. Base, SFT and PPO were sampled with the same noise."
    )
    return Section(
        "Gold score of base, SFT and PPO",
        [_picture("gold.png"), Paragraph(text), *gold_parts(metrics)],
    )


def _score_against_kl(drawn: set[str]) -> Section | None:
    if "score-kl.png" not in drawn:
        return None
    text = (
        "The first panel has the score that PPO optimises, including penalties for responses without an end. "
        "Each dot is the mean of one iteration. The second panel has held-out prompts, if there are any: "
        "evaluations during training as dots, and SFT and the final policy with 95 % intervals."
    )
    return Section("Score against KL along PPO training", [_picture("score-kl.png"), Paragraph(text)])


def _best_of_n(results: Results) -> Section | None:
    """Best of n, for comparison with PPO: what the reward model achieves without training."""
    rows = results.best_of_n
    if not rows:
        return None
    text = (
        "For each held-out prompt, the reward model picks the best of n answers of the SFT policy. The KL to "
        "the SFT policy is log n - (n - 1)/n, which is exact if no answers tie. PPO is worth its training if "
        "its score is higher at the same KL."
    )
    measures = {"rm_score": "Reward score"} | ({"gold": "Gold score"} if "gold" in rows[0] else {})
    head = [
        "n",
        "KL, nats per response",
        *(label for name in measures for label in (measures[name], "95 % interval")),
    ]
    cells = [
        [Cell(str(row["n"])), Cell(show_number(row["kl"]))]
        + [
            cell
            for name in measures
            for cell in (Cell(show_figure(row, name).value), Cell(show_interval(row, name)))
        ]
        for row in rows
    ]
    return Section("Best of n", [Paragraph(text), Table(head, cells)])


def _answers(results: Results) -> Section | None:
    rows = results.evaluation[:ANSWERS_SHOWN]
    if not rows:
        return None
    temperature = results.experiment.ppo.rollout.temperature
    text = (
        f"The first {len(rows)} of {len(results.evaluation)} held-out prompts, in the order of "
        "ppo/evaluation.jsonl, not selected by their answers. Each answer is one sample at temperature "
        f"{temperature:g}."
    )
    roles = ("base", "sft", "ppo")
    cells = [[Cell(quote(row["prompt"])), *(_answer(row, role) for role in roles)] for row in rows]
    return Section(
        "Sample answers", [Paragraph(text), Table(["Prompt", "Base", "SFT", "PPO"], cells, "prose")]
    )


def _answer(row: Row, role: str) -> Cell:
    return Cell(quote(row[role]), _scores(gold=row.get(f"gold_{role}"), reward=row.get(f"score_{role}")))


def _scores(**values: float | None) -> str:
    """`gold 0.61, reward 1.25`, without the values that are None."""
    return ", ".join(f"{name} {value:.2f}" for name, value in values.items() if value is not None)


def _training(drawn: set[str]) -> Section | None:
    files = [file for stage in STAGES if (file := f"curves-{stage}.png") in drawn]
    return Section("Training curves", [_picture(file) for file in files]) if files else None


def _picture(file: str) -> Picture:
    return Picture(file, PICTURES[file])


def _samples(results: Results) -> Section | None:
    """Samples from the first to the last iteration of PPO."""
    first = [next(rows) for _, rows in groupby(results.samples, key=lambda row: row["step"])]
    if not first:
        return None
    shown = min(ITERATIONS_SHOWN, len(first))
    rows = [first[round(place * (len(first) - 1) / max(1, shown - 1))] for place in range(shown)]
    text = (
        "The first recorded response of iterations at equal distances. Prompts differ between iterations, so "
        "the scores of these rows are not a curve."
    )
    cells = [
        [
            Cell(str(row["step"])),
            Cell(quote(row["prompt"])),
            Cell(quote(row["response"]), _scores(reward=row.get("score"), KL=row.get("kl"))),
        ]
        for row in rows
    ]
    table = Table(["Iteration", "Prompt", "Response"], cells, "prose")
    return Section("Samples during training", [Paragraph(text), table])


def _rankings(results: Results) -> Section | None:
    held_out = [row for row in results.rankings if row.get("split") == "held_out"]
    rows = (held_out or results.rankings)[:RANKINGS_SHOWN]
    if not rows:
        return None
    text = (
        f"The first {len(rows)} {'held-out ' if held_out else ''}rankings in rm/rankings.jsonl, of "
        f"{len(results.rankings)} in all: answers of the SFT policy, ranked by "
        f"{results.experiment.rm.rankings.labelled_by}, best first. {TIES[results.experiment.rm.loss.ties]}"
    )
    table = Table(["Prompt", "Rank", "Answer"], [line for row in rows for line in _ranking(row)], "prose")
    untrained = results.final_metrics("rm").get("steps") == 0  # rm.max_steps: 0
    use = "by which the reward model was judged" if untrained else "from which the reward model learned"
    return Section(f"Rankings, {use}", [Paragraph(text), table])


def _ranking(row: Row) -> list[list[Cell]]:
    """One row for each answer. The first row has the prompt."""
    prompt = row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"]
    scores = row.get("scores") or [None] * len(row["completions"])
    lines: list[list[Cell]] = []
    for rank, answer, score in zip(row["ranks"], row["completions"], scores, strict=True):
        # Ranks start at 0 in the file and at 1 in the report.
        place = f"{rank + 1}, tied" if row["ranks"].count(rank) > 1 else str(rank + 1)
        lines.append(
            [Cell("" if lines else quote(prompt)), Cell(place), Cell(quote(answer), _scores(labeller=score))]
        )
    return lines
