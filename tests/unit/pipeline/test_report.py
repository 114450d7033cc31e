"""The report says what the run directory holds, whatever its stages got to and its models wrote."""

import json
import math
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from struct import unpack

import pytest

from configs.errors import UserError
from configs.identity import stage_hash
from configs.load import dump_experiment
from configs.schema import UPSTREAM, Experiment
from pipeline.reporting.page import markdown, quote
from pipeline.reporting.report import write_report
from pipeline.reporting.warnings import warnings
from pipeline.state.manifest import BaseModelId, Fingerprint, Input, Manifest
from pipeline.state.results import read_lines, read_results

PICTURES = {"gold.png", "score-kl.png", "curves-sft.png", "curves-rm.png", "curves-ppo.png"}
HOSTILE = 'a|b <script>alert("1")</script>\n# **bold** \u202e\x07 end'
ITERATIONS = 16
COST = {"steps": 36.0, "wall_seconds": 245.0, "peak_memory_bytes": 1.5 * 2**30, "tokens_per_second": 123.4}


def interval(name, value, reach):
    return {name: value, f"{name}_low": value - reach, f"{name}_high": value + reach}


METRICS = {
    "sft": {"eval_loss_before": 4.5592, "eval_loss": 2.1234, **COST},
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
    """A made-up run directory; a test changes what it wants to see changed, then writes the stages."""

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
        self.evaluation = [judged(number) for number in range(40)]

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

    def judge(self):
        if self.evaluation:
            write_lines(self.path / "ppo" / "evaluation.jsonl", self.evaluation)
        return self

    def whole(self):
        self.stage("sft").stage("rm").stage("ppo").judge()
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
                "val/explained_variance": -0.8 if step == 1 else 0.4,
            }
        )
        if step % 4 == 0 and step < ITERATIONS:
            gold = 0.1 + 0.5 * (1 - math.exp(-step / 6))
            rows.append({"step": step, "eval/kl": kl, "eval/gold": gold, "eval/score": score})
    return rows


def judged(number):
    texts = {"prompt": f"held-out prompt {number}"} | {
        role: f"{role} {number}" for role in ("base", "sft", "ppo")
    }
    scores = {"score_base": -0.5, "score_sft": 0.0, "score_ppo": 1.25, "kl": 6.0}
    return texts | scores | {"gold_base": -0.2, "gold_sft": 0.1, "gold_ppo": 0.1 + 0.9 * math.sin(number)}


@pytest.fixture
def run(tmp_path):
    return Run(tmp_path / "run")


class Outline(HTMLParser):
    """Texts by tag, pictures, and a check that every tag is closed in order."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, page):
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.pictures: list[str] = []
        self.tags: set[str] = set()
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag == "img":
            self.pictures.append(dict(attrs)["src"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.texts.append((self.open[-1], data.strip()))


def cells(line):
    """Cells of a Markdown table's row."""
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def tables(text):
    """The Markdown tables, each a list of rows."""
    blocks = [block.splitlines() for block in text.split("\n\n")]
    return [[cells(line) for line in block if line] for block in blocks if block[0].startswith("|")]


def size(png):
    head = png.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return unpack(">II", head[16:24])


def test_a_whole_run_shows_its_figures(run):
    html, text = run.whole().texts()
    outline = Outline(html)
    figures = [words for tag, words in outline.texts if tag == "span"]
    for shown in ("2.123", "0.7612", "-0.2", "0.12", "0.61", "0.7812", "6.25"):
        assert shown in figures
        assert f"**{shown}**" in text
    rows = [row for table in tables(text) for row in table]
    assert ["PPO", "gold score, PPO", "0.61", "0.54 to 0.68"] in rows
    assert ["SFT", "held-out loss before", "4.559", ""] in rows
    assert ["wall time", "4:05", "4:05", "4:05"] in rows
    assert ["peak memory, GiB per rank", "1.50", "1.50", "1.50"] in rows
    assert ["tokens per second", "123.4", "123.4", "123.4"] in rows
    assert ["torch", "2.13.0", "2.13.0", "2.13.0"] in rows
    hash_ = stage_hash(run.experiment, "rm")[:12]
    assert [
        "Reward model",
        "sft/adapter sftsftsftsft",
        "owner/messages",
        hash_,
        "rm/adapter rmrmrmrmrmrm",
    ] in rows
    assert "Missing" not in text


def test_pictures_lie_beside_the_page_and_are_linked(run):
    html, text = run.whole().texts()
    folder = run.path / "report"
    assert {path.name for path in folder.glob("*.png")} == PICTURES
    assert set(Outline(html).pictures) == PICTURES
    assert {name for name in PICTURES if f"]({name})" in text} == PICTURES
    for name in PICTURES:
        width, height = size(folder / name)
        assert 900 <= width <= 1500
        assert 300 <= height <= 1500
        assert (folder / name).stat().st_size > 8_000


def test_the_same_run_gives_the_same_report(run):
    run.whole().texts()
    before = {path.name: path.read_bytes() for path in (run.path / "report").iterdir()}
    run.texts()
    assert {path.name: path.read_bytes() for path in (run.path / "report").iterdir()} == before


def test_markdown_tables_are_whole(run):
    run.evaluation[3]["ppo"] = HOSTILE
    _, text = run.whole().texts()
    found = tables(text)
    assert len(found) == 8
    for table in found:
        assert {len(row) for row in table} == {len(table[0])}
        assert set(table[1]) == {"---"}
        assert len(table) > 2


def test_texts_of_models_are_escaped(run):
    run.evaluation[3]["ppo"] = HOSTILE
    run.evaluation[4]["prompt"] = "<img src=x onerror=alert(1)>"
    html, text = run.whole().texts()
    outline = Outline(html)
    assert "script" not in outline.tags
    assert set(outline.pictures) == PICTURES
    shown = 'a|b <script>alert("1")</script>\n# **bold** \ufffd\u2407 end'
    assert ("td", shown) in outline.texts
    assert r'a\|b &lt;script&gt;alert("1")&lt;/script&gt;<br>\# \*\*bold\*\* ' in text
    assert "<img" not in text
    assert "\u202e" not in html + text


def test_answers_are_the_first_held_out_prompts(run):
    html, text = run.whole().texts()
    answers = next(table for table in tables(text) if table[0] == ["Prompt", "Base", "SFT", "PPO"])
    assert [row[0] for row in answers[2:]] == [f"held-out prompt {number}" for number in range(12)]
    assert answers[2][1:3] == ["base 0<br>(gold -0.20, reward -0.50)", "sft 0<br>(gold 0.10, reward 0.00)"]
    assert "The first 12 of 40 held-out prompts" in html


def test_rankings_come_from_the_held_out_part(run):
    _, text = run.whole().texts()
    rankings = next(table for table in tables(text) if table[0] == ["Prompt", "Rank", "Answer"])
    assert len(rankings) == 2 + 3 * 3
    assert rankings[2] == ["held\\_out prompt 0", "1", "Glad to hear it!<br>(labeller 0.60)"]
    assert rankings[3] == ["", "2, tied", "Fine.<br>(labeller 0.20)"]


def test_samples_on_the_way_go_from_first_to_last_iteration(run):
    _, text = run.whole().texts()
    table = next(table for table in tables(text) if table[0] == ["Iteration", "Prompt", "Response"])
    assert [row[0] for row in table[2:]] == ["1", "4", "7", "10", "13", "16"]
    assert table[2][2] == "Reply 1.0<br>(reward 0.25, KL 1.50)"


def test_a_run_with_sft_alone_says_what_is_missing(run):
    html, text = run.stage("sft").texts()
    assert set(Outline(html).pictures) == {"curves-sft.png"}
    assert {path.name for path in (run.path / "report").iterdir()} == {
        "index.html",
        "report.md",
        "curves-sft.png",
    }
    assert "- Stage rm has not run." in text
    assert "- Stage ppo has not run." in text
    assert "2.123" in text
    assert warnings(read_results(run.path)) == []


def test_pictures_of_an_older_report_do_not_stay(run):
    run.whole().texts()
    for file in (run.path / "ppo").iterdir():
        file.unlink()
    html, _ = run.texts()
    assert "curves-ppo.png" not in html
    assert not (run.path / "report" / "gold.png").exists()


def test_a_run_that_has_not_begun_has_a_page(run):
    html, text = run.texts()
    assert Outline(html).pictures == []
    assert "- Stage sft has not run." in text


def test_without_a_judge_there_is_no_gold_figure(tmp_path):
    run = Run(tmp_path / "run", judge=None)
    run.metrics["ppo"] = {name: value for name, value in run.metrics["ppo"].items() if "gold" not in name}
    run.evaluation = [{k: v for k, v in row.items() if not k.startswith("gold")} for row in run.evaluation]
    for row in run.curves["ppo"]:
        row.pop("eval/gold", None)
    html, text = run.whole().texts()
    assert set(Outline(html).pictures) == PICTURES - {"gold.png"}
    assert "There is no gold score, because no judge is set (ppo.judge)" in text
    assert "| Reward score of PPO | **1.43** |" in text
    assert "sft 0<br>(reward 0.00)" in text


def test_without_held_out_data_it_says_so(run):
    nothing = {"eval_loss_before": math.nan, "eval_loss": math.nan, **COST}
    run.metrics = {"sft": nothing, "rm": dict(COST), "ppo": dict(COST)}
    run.curves["sft"] = [row for row in run.curves["sft"] if "loss" in row]
    run.curves["sft"] += [{"step": 36, "eval/loss": None}]
    run.evaluation = []
    html, text = run.whole().texts()
    for key in ("data.sft.held_out", "data.rm.held_out", "data.ppo.held_out"):
        assert key in html
    assert "nan" not in text.lower()
    assert warnings(read_results(run.path)) == []


def test_an_interrupted_stage_is_named_and_its_curves_are_drawn(run):
    run.curves["ppo"] = run.curves["ppo"][:6]
    run.stage("sft").stage("rm").stage(
        "ppo", status="failed", error="ValueError: <b>", output=None, metrics={}
    )
    with (run.path / "ppo" / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 9, "objec')
    html, text = run.texts()
    assert "Stage ppo failed (ValueError: &lt;b&gt;); its final figures are not there" in html
    assert "curves-ppo.png" in html
    assert "gold.png" not in html
    assert ["PPO", "sft/adapter sftsftsftsft<br>rm/adapter rmrmrmrmrmrm"] in [
        row[:2] for table in tables(text) for row in table
    ]


def test_a_killed_stage_is_not_called_running(run):
    run.stage("sft", status="running", output=None, metrics={})
    assert "Stage sft was killed" in run.texts()[1]


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a run directory.*--run-dir"):
        write_report(tmp_path)


def test_a_broken_line_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged \(not JSON"):
        read_lines(file, ["step"])


def test_lines_end_at_line_feeds_alone(tmp_path):
    file = tmp_path / "evaluation.jsonl"
    file.write_text('{"prompt": "one\u2028line\x85still"}\n', encoding="utf-8")
    assert read_lines(file, ["prompt"]) == [{"prompt": "one\u2028line\x85still"}]


def test_a_good_run_has_no_warnings(run):
    html, _ = run.whole().texts()
    assert warnings(read_results(run.path)) == []
    assert "no warnings" in html


def figures(stage, **changes):
    return lambda run: run.metrics[stage].update(changes)


def late(name, value, count=4):
    """Set a PPO metric in the last `count` of the 16 iterations."""

    def change(run):
        for row in [row for row in run.curves["ppo"] if "objective/kl" in row][-count:]:
            row[name] = value

    return change


def few(count):
    return lambda run: setattr(run, "evaluation", run.evaluation[:count])


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
        (figures("rm", accuracy_low=0.5), "not clear of 0.5"),
        (figures("rm", accuracy_low=0.501), None),
        (figures("ppo", gold_ppo_low=0.2), "overlap"),
        (figures("ppo", gold_ppo_low=0.201), None),
        (figures("ppo", gold_ppo_low=-0.5, gold_ppo=-0.4, gold_ppo_high=-0.3), "made the answers worse"),
        (figures("ppo", kl=15.01), "15.01 nats per response, above 15"),
        (figures("ppo", kl=15.0), None),
        (figures("ppo", kl=-0.3, kl_low=-0.5, kl_high=-0.1), "A KL cannot be negative"),
        (figures("ppo", kl=-0.3, kl_low=-0.7, kl_high=0.1), None),
        (late("completions/clipped_ratio", 0.26), "26% of the responses ran into the limit of 128 tokens"),
        (late("completions/clipped_ratio", 0.25), None),
        (late("completions/clipped_ratio", 0.26, count=3), None),
        (late("val/ratio", 1.11, count=1), "was 1.11 at iteration 16"),
        (late("val/ratio", 0.89, count=1), "was 0.89 at iteration 16"),
        (late("val/ratio", 1.09), None),
        (late("val/explained_variance", -0.01), "explained variance is -0.01"),
        (late("val/explained_variance", 0.0), None),
        (
            late("loss/policy_avg", None, count=2),
            "loss/policy_avg of stage ppo was not a finite number at step 15",
        ),
        (late("objective/kl", 8.0), "running away: 8 nats per response in the last quarter of PPO, 3.99"),
        (late("objective/kl", 7.97), None),
        (late("objective/entropy", 0.7), "entropy has collapsed, from 2.35 to 0.7"),
        (late("objective/entropy", 0.71), None),
        (late("policy/clipfrac_avg", 0.31), "31% of the tokens' ratios were clipped"),
        (late("policy/clipfrac_avg", 0.3), None),
        (late("completions/mean_length", 24.5), "went from 12.2 to 24.5 tokens"),
        (late("completions/mean_length", 6.0), "went from 12.2 to 6 tokens"),
        (late("completions/mean_length", 24.0), None),
        (answers("so good so good so good"), "60% of their word pairs come again, 0% at first"),
        (answers("so good"), None),
        (few(19), "Only 19 held-out prompts"),
        (few(20), None),
    ],
)
def test_each_rule_strikes_exactly_where_it_should(run, change, sentence):
    change(run)
    run.whole()
    found = warnings(read_results(run.path))
    if sentence is None:
        assert found == []
    else:
        assert len(found) == 1
        assert sentence in found[0]


def unfinished(run, golds, response):
    """PPO is under way, its evaluations say `golds`, and its latest samples are all `response`."""
    run.evaluation = []
    run.curves["ppo"] = [row for row in run.curves["ppo"] if "objective/kl" in row]
    for step, gold in golds.items():
        run.curves["ppo"].append({"step": step, "eval/gold": gold, "eval/score": 0.1 * step})
    run.whole().stage("ppo", status="interrupted", metrics={}, output=None)
    samples = [json.loads(line) for line in (run.path / "ppo/samples.jsonl").read_text().splitlines()]
    for row in samples[-8:]:
        row["response"] = response
    write_lines(run.path / "ppo/samples.jsonl", samples)
    return warnings(read_results(run.path))


def test_trouble_is_told_while_ppo_runs(run):
    assert unfinished(run, {0: 0.2, 8: 0.3}, "so good") == []
    [gold] = unfinished(run, {0: 0.2, 8: 0.3, 16: 0.1}, "so good")
    assert "Up to iteration 16" in gold and "fell from 0.2 to 0.1" in gold
    [repeated] = unfinished(run, {0: 0.2, 8: 0.3}, "so good so good so good")
    assert "PPO's latest samples repeat themselves: 60%" in repeated


def test_what_a_good_run_looks_like_is_said(run):
    assert "In a good run" in run.whole().texts()[0]


@pytest.mark.parametrize(("low", "said"), [(0.22, True), (0.21, False)])
def test_over_optimisation_is_named_where_only_the_reward_rose(run, low, said):
    run.metrics["ppo"] |= {"gold_ppo_low": 0.1, "rm_score_ppo_low": low}
    run.whole()
    [sentence] = warnings(read_results(run.path))
    assert ("over-optimised" in sentence) is said


def test_without_held_out_prompts_the_last_iteration_speaks_for_the_kl(run):
    run.metrics["ppo"] = dict(COST)
    run.evaluation = []
    late("objective/kl", 15.5, count=1)(run)
    run.whole()
    [sentence] = warnings(read_results(run.path))
    assert "of iteration 16 is 15.5 nats" in sentence


def test_another_adapter_or_other_settings_upstream_are_named(run):
    run.whole().stage("sft", output=Fingerprint(sha256="f" * 64, files={"adapter_model.safetensors": "0"}))
    assert warnings(read_results(run.path)) == [
        "Stage rm was trained on another sft adapter than the present one.",
        "Stage ppo was trained on another sft adapter than the present one.",
    ]
    run.whole()
    changed = run.experiment.model_copy(update={"seed": 7})
    (run.path / "config.yaml").write_text(dump_experiment(changed))
    found = warnings(read_results(run.path))
    assert found[0] == "Stage sft was trained with other settings than config.yaml has: seed: 0 -> 7."
    assert len(found) == 3


def test_markdown_escapes_what_is_markup():
    assert markdown("a*b_c`d[e](f)~|$#\\<&>") == r"a\*b\_c\`d\[e\](f)\~\|\$\#\\&lt;&amp;&gt;"
    assert markdown("see https://x.org\nnow") == r"see https\://x.org<br>now"


def test_quotes_are_cut_and_show_control_characters():
    assert quote("x" * 12, longest=10) == "xxxxxxxxxx … [2 more characters]"
    assert quote("a\x00b\ud800c\u200dd\n\te") == "a\u2400b\ufffdc\ufffdd\n\te"
