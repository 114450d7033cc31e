"""A made-up run directory with figures, curves, answers and samples, for tests of the report."""

import json
import math
from datetime import UTC, datetime

from configs.identity import stage_hash
from configs.load import dump_experiment
from configs.schema import UPSTREAM, Experiment
from pipeline.reporting.report import write_report
from pipeline.state.manifest import BaseModelId, Fingerprint, Input, Manifest

ITERATIONS = 16
COST = {"steps": 36.0, "wall_seconds": 245.0, "peak_memory_bytes": 1.5 * 2**30, "tokens_per_second": 123.4}


def interval(name, value, reach):
    return {name: value, f"{name}_low": value - reach, f"{name}_high": value + reach, f"{name}_n": 40}


METRICS = {
    "sft": {"eval_loss_before": 4.5592, "eval_loss": 2.1234, "eval_loss_n": 32, **COST},
    "rm": {
        **interval("accuracy", 0.7612, 0.05),
        **interval("margin", 1.2, 0.2),
        **interval("eval_loss", 0.5, 0.05),
        **COST,
    },
    "ppo": {
        **interval("gold_base", -0.2, 0.1),
        **interval("gold_sft", 0.12, 0.08),
        **interval("gold_ppo", 0.61, 0.07),
        **interval("rm_score_sft", 0.01, 0.2),
        **interval("rm_score_ppo", 1.43, 0.15),
        **interval("win_rate", 0.7812, 0.06),
        **interval("kl", 6.25, 0.8),
        **interval("mean_length", 14.2, 0.6),
        **COST,
    },
    "best": {**interval("gold_best", 0.4321, 0.1), "demonstrations": 77, **COST},
}


class Run:
    """A made-up run directory. A test changes its attributes, then writes the stages."""

    def __init__(self, path, **ppo):
        source = {"path": "owner/messages"}
        data = {"sft": source, "rm": source, "ppo": source}
        ppo = {"judge": "warmth"} | ppo
        self.experiment = Experiment.model_validate(
            {"name": "made-up", "base": {"model": "tiny-random"}, "data": data, "ppo": ppo}
        )
        self.path = path
        self.path.mkdir(exist_ok=True)
        (path / "config.yaml").write_text(dump_experiment(self.experiment))
        self.metrics = {stage: dict(figures) for stage, figures in METRICS.items()}
        self.curves = {"sft": sft_curve(), "rm": rm_curve(), "ppo": ppo_curve(), "best": []}
        self.evaluation = [evaluation_row(number) for number in range(40)]

    def stage(self, stage, **changes):
        folder = self.path / stage
        folder.mkdir(exist_ok=True)
        fields = {
            "stage": stage,
            "status": "finished",
            "config_hash": stage_hash(self.experiment, stage),
            "config": self.experiment.model_dump(mode="json"),
            "base": BaseModelId.of(self.experiment.base),
            "inputs": {name: Input(path=f"{name}/adapter", sha256=name * 20) for name in UPSTREAM[stage]},
            "output": Fingerprint(sha256=stage * 20, files={"adapter_model.safetensors": "0"}),
            "metrics": self.metrics[stage],
            "wall_seconds": 245.0,
            "versions": {"torch": "2.13.0", "peft": "0.21.2"},
            "started": datetime(2030, 1, 2, 3, 4, tzinfo=UTC),
            "attempt_started": datetime(2030, 1, 2, 3, 4, tzinfo=UTC),
        }
        Manifest.model_validate(fields | changes).write(folder / "manifest.json")
        write_lines(folder / "metrics.jsonl", self.curves[stage])
        return self

    def write_evaluation(self):
        if self.evaluation:
            write_lines(self.path / "ppo" / "evaluation.jsonl", self.evaluation)
        return self

    def complete(self):
        self.stage("sft").stage("rm").stage("ppo").write_evaluation()
        rankings = [
            {
                "split": split,
                "prompt": [{"role": "user", "content": f"{split} prompt {number}"}],
                "completions": ["Glad to hear it!", "Fine.", "Fine."],
                "ranks": [0, 1, 1],
                "scores": [0.6, 0.2, 0.2],
            }
            for split in ("train", "held_out")
            for number in range(5)
        ]
        write_lines(self.path / "rm" / "rankings.jsonl", rankings)
        samples = [
            {
                "step": step,
                "prompt": "I lost my keys.",
                "response": f"Reply {step}.{row}",
                "score": 0.25,
                "kl": 1.5,
            }
            for step in range(1, ITERATIONS + 1)
            for row in range(2)
        ]
        write_lines(self.path / "ppo" / "samples.jsonl", samples)
        return self

    def texts(self):
        page = write_report(self.path)
        return page.read_text(), (page.parent / "report.md").read_text()


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def sft_curve():
    rows = [{"step": 0, "eval/loss": 4.5592}]
    for step in range(1, 37):
        rows.append(
            {"step": step, "loss": 2 + 2.4 * math.exp(-step / 9), "mean_token_accuracy": 0.3 + step / 150}
        )
    return [*rows, {"step": 36, "eval/loss": 2.1234}]


def rm_curve():
    rows = []
    for step in range(1, 43):
        accuracy = 0.5 + 0.3 * (1 - math.exp(-step / 12)) + 0.04 * math.sin(step * 2.1)
        rows.append({"step": step, "loss": 0.35 + 0.4 * math.exp(-step / 15), "accuracy": accuracy})
    return [
        *rows,
        {"step": 42, **interval("eval/accuracy", 0.7612, 0.05), **interval("eval/loss", 0.5, 0.05)},
    ]


def ppo_curve():
    rows = []
    for step in range(1, ITERATIONS + 1):
        score, kl = 1.5 * (1 - math.exp(-step / 6)) + 0.1 * math.sin(step * 1.7), 0.42 * (step - 1)
        rows.append(
            {
                "step": step,
                "objective/scores": score,
                "objective/kl": kl,
                "objective/rlhf_reward": score - 0.05 * kl,
                "objective/entropy": 2.4 - 0.05 * step,
                "completions/mean_length": 12 + 0.2 * step,
                "completions/clipped_ratio": 0.1,
                "val/ratio": 1.002,
                "objective/reward_signal": 0.6,
                "val/explained_variance": -0.8 if step == 1 else 0.4,
            }
        )
        if step % 4 == 0 and step < ITERATIONS:
            gold = 0.1 + 0.5 * (1 - math.exp(-step / 6))
            rows.append({"step": step, "eval/kl": kl, "eval/gold": gold, "eval/score": score})
    return rows


def evaluation_row(number):
    texts = {"prompt": f"held-out prompt {number}"} | {
        role: f"{role} {number}" for role in ("base", "sft", "ppo")
    }
    scores = {"score_base": -0.5, "score_sft": 0.0, "score_ppo": 1.25, "kl": 6.0}
    return texts | scores | {"gold_base": -0.2, "gold_sft": 0.1, "gold_ppo": 0.1 + 0.9 * math.sin(number)}
