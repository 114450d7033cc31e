"""What the report lacks because the run does not have it."""

from __future__ import annotations

from collections.abc import Callable

from configs.schema import STAGES, Stage
from pipeline.reporting.people import ask_people, people_win_rate
from pipeline.state.results import Results
from pipeline.state.stage_state import PREDICATES, state_of


def missing(results: Results) -> list[str]:
    """One message for each part of the report that the run has no data for."""
    unfinished = [message for stage in STAGES if (message := _unfinished(results, stage))]
    checks: tuple[Callable[[Results], str | None], ...] = (_no_held_out_loss, _no_accuracy, _no_evaluation)
    return unfinished + [message for check in checks if (message := check(results))]


def _unfinished(results: Results, stage: Stage) -> str | None:
    needed = [*STAGES[-1:], *results.experiment.upstream("ppo")]
    if results.finished(stage) or (stage not in needed and stage not in results.manifests):
        return None
    if stage not in results.manifests:
        return f"Stage {stage} has not run."
    manifest = results.manifests[stage]
    state = PREDICATES[state_of(manifest, results.run.is_locked)]
    error = f" ({manifest.error})" if manifest.error else ""
    return f"Stage {stage} {state}{error}. It has no final metrics; its curves end where it ended."


def _no_held_out_loss(results: Results) -> str | None:
    if not results.finished("sft") or "eval_loss" in results.final_metrics("sft"):
        return None
    return "SFT has no held-out loss: no demonstrations were held out (data.sft.held_out)."


def _no_accuracy(results: Results) -> str | None:
    if not results.finished("rm") or "accuracy" in results.final_metrics("rm"):
        return None
    return "The reward model has no held-out accuracy: no rankings were held out (data.rm.held_out)."


def _no_evaluation(results: Results) -> str | None:
    if not results.finished("ppo"):
        return None
    if not results.evaluation:
        return "Base, SFT and PPO were not compared: no prompts were held out (data.ppo.held_out)."
    if "gold_ppo" not in results.final_metrics("ppo") and not people_win_rate(results):
        return (
            "The run has no gold score: no judge is set (ppo.judge). The reward, which PPO optimised, "
            f"cannot show whether the answers improved. People can tell: {ask_people(results.run.path)}"
        )
    return None
