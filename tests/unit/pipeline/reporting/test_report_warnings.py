"""Each warning of the report appears exactly at its limit, and a good run has none."""

import json

import pytest

from configs.load import dump_experiment
from pipeline.reporting.warnings import RULES, warnings
from pipeline.state.manifest import Fingerprint
from pipeline.state.results import read_results
from tests.support.finished_run import COST, Run, write_lines


def test_a_good_run_has_no_warnings(run):
    html, _ = run.complete().texts()
    assert warnings(read_results(run.path)) == []
    assert "no warnings" in html


def test_every_rule_says_when_it_warns_and_what_to_do():
    assert len({rule.name for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.condition.endswith(".") and rule.message and not rule.message.endswith(" "), rule.name
        assert rule.remedy.endswith(".") or "Raise {key}." in rule.message, rule.name


def figures(stage, **changes):
    return lambda run: run.metrics[stage].update(changes)


def late(name, value, count=4):
    """Set a PPO metric in the last `count` of the 16 iterations."""

    def change(run):
        for row in [row for row in run.curves["ppo"] if "objective/kl" in row][-count:]:
            row[name] = value

    return change


def kept_tokens(first, last):
    """Top-k and top-p keep `first` tokens, and `last` in the last quarter of the 16 iterations."""

    def change(run):
        late("rollout/support_size", first, count=16)(run)
        late("rollout/support_size", last)(run)

    return change


def disagreement(first, last):
    """Of the members of a reward model: `first`, and `last` in the last quarter of the 16 iterations."""

    def change(run):
        late("rewards/rm/disagreement", first, count=16)(run)
        late("rewards/rm/disagreement", last)(run)

    return change


def unwhitened(run):
    late("objective/reward_signal", 0.0, count=16)(run)
    run.experiment = run.experiment.model_copy(
        update={"ppo": run.experiment.ppo.model_copy(update={"whiten_advantages": False})}
    )
    (run.path / "config.yaml").write_text(dump_experiment(run.experiment))


def answers(text):
    def change(run):
        for row in run.evaluation:
            row["ppo"] = text

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (figures("sft", eval_loss=4.5592), "SFT did not lower the held-out loss"),
        (figures("sft", eval_loss=4.5591), None),
        (figures("rm", accuracy_low=0.5), "not clearly above 0.5"),
        (figures("rm", accuracy_low=0.501), None),
        (figures("ppo", gold_ppo_low=0.2), "overlap"),
        (figures("ppo", gold_ppo_low=0.201), None),
        (figures("ppo", gold_ppo_low=-0.5, gold_ppo=-0.4, gold_ppo_high=-0.3), "made the answers worse"),
        (figures("ppo", kl=15.01), "15.0 nats per response, above 15"),
        (figures("ppo", kl=15.0), None),
        (figures("ppo", kl=-0.3, kl_low=-0.5, kl_high=-0.1), "A KL cannot be negative"),
        (figures("ppo", kl=-0.3, kl_low=-0.7, kl_high=0.1), None),
        (late("completions/clipped_ratio", 0.26), "26% of the responses reached the limit of 128 tokens"),
        (late("completions/clipped_ratio", 0.25), None),
        (late("completions/clipped_ratio", 0.26, count=3), None),
        (late("val/ratio", 1.11, count=1), "was 1.11 at iteration 16"),
        (late("val/ratio", 0.89, count=1), "was 0.890 at iteration 16"),
        (late("val/ratio", 1.09), None),
        (late("val/explained_variance", -0.01), "explained variance is -0.01"),
        (late("val/explained_variance", 0.0), None),
        (
            late("objective/reward_signal", 0.099, count=9),
            "In 56% of PPO's iterations the rewards varied",
        ),
        (late("objective/reward_signal", 0.099, count=8), None),
        (late("objective/reward_signal", 0.1, count=16), None),
        (unwhitened, None),
        (
            late("loss/policy_avg", None, count=2),
            "loss/policy_avg of stage ppo was not a finite number at step 15",
        ),
        (
            late("objective/kl", 8.0),
            "rising fast: 8 nats per response in the last quarter of PPO, 3.99",
        ),
        (late("objective/kl", 7.97), None),
        (late("objective/entropy", 0.7), "entropy has collapsed, from 2.35 to 0.7"),
        (late("objective/entropy", 0.71), None),
        (kept_tokens(20.0, 9.9), "keep 9.90 tokens to sample from, 20 at first"),
        (kept_tokens(20.0, 10.0), None),
        (figures("ppo", kl=17.01, kl_sft=2.0), "is 15.0 nats per response beyond that of truncation alone"),
        (figures("ppo", kl=17.0, kl_sft=2.0), None),
        (disagreement(0.2, 0.31), "deviate by 0.310 in the last quarter of PPO, by 0.200 at first"),
        (disagreement(0.2, 0.3), None),
        (late("policy/clipfrac_avg", 0.31), "31% of the tokens' ratios were clipped"),
        (late("policy/clipfrac_avg", 0.3), None),
        (late("completions/mean_length", 24.5), "went from 12.2 to 24.5 tokens"),
        (late("completions/mean_length", 6.0), "went from 12.2 to 6 tokens"),
        (late("completions/mean_length", 24.0), None),
        (answers("so good so good so good"), "60% of their word pairs are repetitions, 0% at first"),
        (answers("so good"), None),
        (figures("sft", eval_loss_n=19), "Stage sft was judged on only 19 held-out prompts"),
        (figures("sft", eval_loss_n=500, **{"eval_loss/essays_n": 5}), None),
        (figures("rm", accuracy_n=19), "Stage rm was judged on only 19 held-out prompts"),
        (figures("ppo", kl_n=19), "Stage ppo was judged on only 19 held-out prompts"),
        (figures("ppo", kl_n=20), None),
        (figures("sft", steps=0, eval_loss=4.5592), None),
        (figures("rm", steps=0), None),
        (figures("sft", steps=7), "Stage sft made only 7 optimizer steps"),
        (figures("ppo", steps=7), "Stage ppo made only 7 iterations"),
        (figures("rm", steps=8), None),
    ],
)
def test_each_rule_applies_exactly_at_its_limit(run, change, sentence):
    change(run)
    run.complete()
    messages = warnings(read_results(run.path))
    if sentence is None:
        assert messages == []
    else:
        assert len(messages) == 1
        assert sentence in messages[0]


def test_the_kl_is_high_to_what_it_is_to(tmp_path):
    run = Run(tmp_path / "run", **{"from": "/round-1", "reference": "from"})
    run.metrics["ppo"] |= {"kl": 18.0, "kl_from": 2.5, "kl_sft": 9.0}
    [message] = warnings(read_results(run.complete().path))
    assert "is 15.5 nats per response beyond that of truncation alone" in message
    assert "far from the starting policy" in message


def unfinished(run, golds, response):
    """Warnings while PPO runs: its evaluations have `golds`, and its latest samples are all `response`."""
    run.evaluation = []
    run.curves["ppo"] = [row for row in run.curves["ppo"] if "objective/kl" in row]
    for step, gold in golds.items():
        run.curves["ppo"].append({"step": step, "eval/gold": gold, "eval/score": 0.1 * step})
    run.complete().stage("ppo", status="interrupted", metrics={}, output=None)
    samples = [json.loads(line) for line in (run.path / "ppo/samples.jsonl").read_text().splitlines()]
    for row in samples[-8:]:
        row["response"] = response
    write_lines(run.path / "ppo/samples.jsonl", samples)
    return warnings(read_results(run.path))


def test_warnings_while_ppo_runs(run):
    assert unfinished(run, {0: 0.2, 8: 0.3}, "so good") == []
    [gold] = unfinished(run, {0: 0.2, 8: 0.3, 16: 0.1}, "so good")
    assert "Up to iteration 16" in gold and "fell from 0.200 to 0.100" in gold
    [repeated] = unfinished(run, {0: 0.2, 8: 0.3}, "so good so good so good")
    assert "PPO's latest samples repeat themselves: 60%" in repeated


def test_the_report_describes_a_good_run(run):
    assert "In a good run" in run.complete().texts()[0]


@pytest.mark.parametrize(("low", "mentioned"), [(0.22, True), (0.21, False)])
def test_over_optimisation_is_named_if_only_the_reward_rose(run, low, mentioned):
    run.metrics["ppo"] |= {"gold_ppo_low": 0.1, "rm_score_ppo_low": low}
    run.complete()
    [sentence] = warnings(read_results(run.path))
    assert ("over-optimised" in sentence) is mentioned


def test_without_held_out_prompts_the_kl_is_that_of_the_last_iteration(run):
    run.metrics["ppo"] = dict(COST)
    run.evaluation = []
    late("objective/kl", 15.5, count=1)(run)
    run.complete()
    [sentence] = warnings(read_results(run.path))
    assert "of iteration 16 is 15.5 nats" in sentence


def test_another_adapter_or_other_settings_upstream_are_named(run):
    run.complete().stage("sft", output=Fingerprint(sha256="f" * 64, files={"adapter_model.safetensors": "0"}))
    assert warnings(read_results(run.path)) == [
        "Stage rm was trained on another sft adapter than the current one. Run it again.",
        "Stage ppo was trained on another sft adapter than the current one. Run it again.",
    ]
    run.complete()
    changed = run.experiment.model_copy(update={"seed": 7})
    (run.path / "config.yaml").write_text(dump_experiment(changed))
    messages = warnings(read_results(run.path))
    settings = "Stage sft was trained with other settings than config.yaml has: seed: 0 -> 7."
    assert messages[0] == f"{settings} Run it again, or restore them."
    assert len(messages) == 3
