"""The reward export in the package `rewardbench`: it gives this project's scores."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from apps.evaluate.reward_models.benchmarks import ties_score
from apps.export.export import write_export
from apps.export.formats import Export
from apps.trained_run import Adapters, load_policies, open_run, reward_scores, this_process
from tests.exports.conftest import run_in
from tests.unit.stages.maths.test_preferences import ranking

ROWS = [
    (f"How do I boil {number} eggs?", f"In water, for {number} minutes.", "I do not know." * (number % 3 + 1))
    for number in range(1, 9)
]
SCORE = """
import sys
import torch
from transformers import BatchEncoding
if not torch.cuda.is_available():
    BatchEncoding.to = lambda self, device: self  # RewardBench's pipeline moves its inputs to a GPU
from rewardbench.rewardbench import Args, rewardbench
rewardbench(Args(
    dataset=sys.argv[2], load_json=True, split="train", model=sys.argv[1], output_dir=sys.argv[3] + "/",
    not_quantized=True, torch_dtype="float32", max_length=256, batch_size=4,
))
"""
TIES = """
import json
import sys
from datasets import Dataset
from rewardbench.utils import process_single_model
rows = json.load(open(sys.argv[1]))
print("score", float(process_single_model(Dataset.from_list(rows))[1]))
"""


def test_rewardbench_gives_the_score_of_ties(rewardbench_bin: Path, tmp_path: Path) -> None:
    draw = np.random.default_rng(0).normal
    rows, ours = [], []
    for number in range(20):
        one, several = draw([1, 0, 0, 0]).tolist(), draw([2, 2, 2, 0, 0]).tolist()
        rows += [
            {"id": f"ref:{number}", "num_correct": 1, "scores": one},
            {"id": f"tied:{number}", "num_correct": 3, "scores": several},
        ]
        ours.append(ties_score(ranking(one, ranks=[0, 1, 1, 1]), ranking(several, ranks=[0, 0, 0, 1, 1])))
    (tmp_path / "ties.json").write_text(json.dumps(rows))
    printed = run_in(rewardbench_bin, TIES, tmp_path / "ties.json")
    assert float(printed.split("score")[-1]) == pytest.approx(sum(ours) / len(ours), abs=1e-6)


def test_rewardbench_gives_the_scores_of_the_reward_model(
    rewardbench_bin: Path, trained_run: Path, tmp_path: Path
) -> None:
    run = open_run(trained_run)
    folder = write_export(
        Export(run, "rm", None, say=lambda line: None), "reward", tmp_path / "reward", overwrite=False
    )
    data = tmp_path / "pairs.json"
    conversations = [
        {
            "chosen": [{"role": "user", "content": question}, {"role": "assistant", "content": good}],
            "rejected": [{"role": "user", "content": question}, {"role": "assistant", "content": bad}],
        }
        for question, good, bad in ROWS
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in conversations))
    run_in(rewardbench_bin, SCORE, folder, data, tmp_path / "out")
    written = Path(f"{folder}_outputs.jsonl")  # RewardBench joins its folder with the whole path of the model
    rows = [json.loads(line) for line in written.read_text().splitlines()]
    policies = load_policies(run, Adapters({"base": None}, run.adapter("rm")), this_process())
    constant = json.loads((folder / "export.json").read_text())["figures"]["constant"]
    for name, place in (("scores_chosen", 1), ("scores_rejected", 2)):
        pairs = [([{"role": "user", "content": row[0]}], row[place]) for row in ROWS]
        ours = [score - constant for score in reward_scores(policies, pairs, run.config.data)]
        assert [row[name] for row in rows] == pytest.approx(ours, abs=1e-3)
