"""The report of a run directory with finished and unfinished stages, and with hostile model output."""

import math
import re
from html.parser import HTMLParser
from struct import unpack

import pytest

from configs.errors import UserError
from configs.identity import stage_hash
from configs.load import dump_experiment
from configs.schema import Experiment, Ppo
from data.storage.files import read_json_lines
from pipeline.reporting.best_of_n import best_points
from pipeline.reporting.figures import score_against_kl
from pipeline.reporting.page import markdown, quote
from pipeline.reporting.report import write_report
from pipeline.reporting.warnings import warnings
from pipeline.state.results import read_results
from pipeline.state.rows import Row
from tests.support.finished_run import COST, Run, interval, write_lines

PICTURES = {"gold.png", "score-kl.png", "curves-sft.png", "curves-rm.png", "curves-ppo.png"}
HOSTILE = 'a|b <script>alert("1")</script>\n# **bold** \u202e\x07 end'


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
    header = png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    return unpack(">II", header[16:24])


def test_a_whole_run_shows_its_figures(run):
    html, text = run.complete().texts()
    outline = Outline(html)
    figures = [text_of_tag for tag, text_of_tag in outline.texts if tag == "span"]
    for shown in ("2.12", "0.761", "-0.200", "0.120", "0.610", "0.781", "6.25"):
        assert shown in figures
        assert f"**{shown}**" in text
    rows = [row for table in tables(text) for row in table]
    assert ["PPO", "gold score, PPO", "0.610", "0.540 to 0.680", "40"] in rows
    assert ["SFT", "held-out loss before", "4.56", "", ""] in rows
    assert ["wall time", "4:05", "4:05", "4:05"] in rows
    assert ["peak memory, GiB per rank", "1.50", "1.50", "1.50"] in rows
    assert ["tokens per second", "123", "123", "123"] in rows
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


def test_pictures_are_beside_the_page_and_are_linked(run):
    html, text = run.complete().texts()
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
    run.complete().texts()
    before = {path.name: path.read_bytes() for path in (run.path / "report").iterdir()}
    run.texts()
    assert {path.name: path.read_bytes() for path in (run.path / "report").iterdir()} == before


def test_markdown_tables_are_whole(run):
    run.evaluation[3]["ppo"] = HOSTILE
    _, text = run.complete().texts()
    parsed = tables(text)
    assert len(parsed) == 8
    for table in parsed:
        assert {len(row) for row in table} == {len(table[0])}
        assert set(table[1]) == {"---"}
        assert len(table) > 2


def test_texts_of_models_are_escaped(run):
    run.evaluation[3]["ppo"] = HOSTILE
    run.evaluation[4]["prompt"] = "<img src=x onerror=alert(1)>"
    html, text = run.complete().texts()
    outline = Outline(html)
    assert "script" not in outline.tags
    assert set(outline.pictures) == PICTURES
    shown = 'a|b <script>alert("1")</script>\n# **bold** \ufffd\u2407 end'
    assert ("td", shown) in outline.texts
    assert r'a\|b &lt;script&gt;alert("1")&lt;/script&gt;<br>\# \*\*bold\*\* ' in text
    assert "<img" not in text
    assert "\u202e" not in html + text


def test_answers_are_the_first_held_out_prompts(run):
    html, text = run.complete().texts()
    answers = next(table for table in tables(text) if table[0] == ["Prompt", "Base", "SFT", "PPO"])
    assert [row[0] for row in answers[2:]] == [f"held-out prompt {number}" for number in range(30)]
    assert answers[2][1:3] == ["base 0<br>(gold -0.20, reward -0.50)", "sft 0<br>(gold 0.10, reward 0.00)"]
    assert "The first 30 of 40 held-out prompts" in html


def test_rankings_come_from_the_held_out_part(run):
    _, text = run.complete().texts()
    rankings = next(table for table in tables(text) if table[0] == ["Prompt", "Rank", "Answer"])
    assert len(rankings) == 2 + 3 * 3
    assert rankings[2] == ["held\\_out prompt 0", "1", "Glad to hear it!<br>(labeller 0.60)"]
    assert rankings[3] == ["", "2, tied", "Fine.<br>(labeller 0.20)"]


def test_samples_during_training_go_from_first_to_last_iteration(run):
    _, text = run.complete().texts()
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
    assert "2.12" in text
    assert warnings(read_results(run.path)) == []


def test_pictures_of_an_older_report_are_removed(run):
    run.complete().texts()
    for file in (run.path / "ppo").iterdir():
        file.unlink()
    html, _ = run.texts()
    assert "curves-ppo.png" not in html
    assert not (run.path / "report" / "gold.png").exists()


def test_a_run_that_has_not_begun_has_a_page(run):
    html, text = run.texts()
    assert Outline(html).pictures == []
    assert "- Stage sft has not run." in text


def test_parts_of_the_gold_score_have_a_table(run):
    for role, value in {"base": -0.25, "sft": 0.25, "ppo": 0.5}.items():
        run.metrics["ppo"] |= {
            f"gold_warmth_{role}": value,
            f"gold_warmth_{role}_low": value - 0.125,
            f"gold_warmth_{role}_high": value + 0.125,
        }
    text = run.complete().texts()[1].replace("\\", "")  # Markdown's escapes
    rows = [row for table in tables(text) for row in table]
    assert ["Part of the gold score", "Base", "SFT", "PPO"] in rows
    assert ["warmth", "-0.250 [-0.375, -0.125]", "0.250 [0.125, 0.375]", "0.500 [0.375, 0.625]"] in rows


@pytest.mark.parametrize("label", ["gold", "gold_warmth"])
def test_a_term_called_gold_is_no_part_of_the_gold_score(label, tmp_path):
    figures = interval(f"{label}_score_sft", 3.0, 0.1) | interval(f"{label}_score_ppo", 7.5, 0.2)
    run = of_terms(tmp_path / "run", {"source": "my:score", "name": label}, **figures)
    html, text = run.complete().texts()
    assert "gold.png" in html and "Part of the gold score" not in text


def test_without_a_judge_there_is_no_gold_figure(tmp_path):
    run = Run(tmp_path / "run", judge=None)
    run.metrics["ppo"] = {name: value for name, value in run.metrics["ppo"].items() if "gold" not in name}
    run.evaluation = [
        {name: value for name, value in row.items() if not name.startswith("gold")} for row in run.evaluation
    ]
    for row in run.curves["ppo"]:
        row.pop("eval/gold", None)
    html, text = run.complete().texts()
    assert set(Outline(html).pictures) == PICTURES - {"gold.png"}
    assert "The run has no gold score: no judge is set (ppo.judge)" in text
    assert "| Reward score of PPO | **1.43** |" in text
    assert "sft 0<br>(reward 0.00)" in text


def of_terms(path, *terms, **figures):
    """A run whose reward has these terms."""
    run = Run(path, rewards=list(terms), critic="shared")
    run.metrics["ppo"] = {n: v for n, v in run.metrics["ppo"].items() if not n.startswith("rm_score")}
    run.metrics["ppo"] |= figures
    for row in run.curves["ppo"]:
        row |= {f"rewards/{name}/mean": row["step"] for name in ("score", "rm") if "objective/kl" in row}
    return run


def test_a_function_is_not_called_the_reward_model(tmp_path):
    figures = interval("score_score_sft", 3.0, 0.1) | interval("score_score_ppo", 7.5, 0.2)
    run = of_terms(tmp_path / "run", {"source": "my:score"}, **figures, score_win_rate=0.9)
    run.stage("sft").stage("ppo").write_evaluation()
    html, text = run.texts()
    assert any('PPO optimises the reward "score" (my:score).' in shown for _, shown in Outline(html).texts)
    assert "reward model" not in text.split("## How to read")[0], "headlines"
    assert "| Reward score of PPO | **7.50** | 95 %: 7.30 to 7.70<br>n = 40<br>SFT: 3 |" in text
    assert "| PPO | reward score, PPO | 7.50 | 7.30 to 7.70 | 40 |" in text
    assert "| PPO | score: win rate against SFT | 0.900 |  |  |" in text
    assert "Stage rm has not run" not in text


def test_a_second_round_names_what_its_kl_is_to(tmp_path):
    run = Run(tmp_path / "run", **{"from": "/round-1", "reference": "from"})
    html, text = run.complete().texts()
    assert "KL of PPO to the starting policy" in text and "KL of PPO to the SFT policy" not in text
    assert "KL to the starting policy, nats per response" in text
    assert any("between the policy and the starting policy." in shown for _, shown in Outline(html).texts)
    figure = score_against_kl(read_results(run.path))
    assert figure is not None
    held_out = figure.axes[1]
    assert held_out.get_xlabel() == "KL to the starting policy, nats per response"
    assert held_out.get_legend_handles_labels()[1] == ["PPO"], "SFT is not at KL 0"


def test_the_adapter_that_a_stage_starts_from_is_in_its_lineage(run):
    run.complete().stage("ppo", sources={"ppo.from": "ab" * 32})
    [row] = [row for table in tables(run.texts()[1]) for row in table if "ppo.from" in " ".join(row)]
    assert row[1].endswith("<br>ppo.from abababababab")


def test_rankings_of_a_reward_model_that_was_not_trained(run):
    run.metrics["rm"]["steps"] = 0.0
    text = run.complete().texts()[1]
    assert "by which the reward model was judged" in text and "the reward model learned" not in text


def test_each_of_several_terms_has_its_figures(tmp_path):
    figures = {
        f"{name}_{role}": 1.5
        for name in ("rm_score", "score_score", "reward_total")
        for role in ("sft", "ppo")
    }
    terms = {"source": "rm"}, {"source": "my:score", "weight": -0.5}
    run = of_terms(tmp_path / "run", *terms, **figures)
    html, text = run.complete().texts()
    words = "the sum of 1 times the reward model's score and -0.5 times the reward"
    assert words in text.replace("\\", "")
    for label in ("Reward of PPO, the sum of its terms", "Reward rm of PPO", "Reward score of PPO"):
        assert f"| {label} | **1.50** |" in text
    run.stage("ppo", metrics=run.metrics["ppo"])
    assert "curves-ppo.png" in html


def test_the_reward_model_has_a_tile_by_any_name_with_the_score_of_sft(tmp_path):
    """Of an ensemble's lowest score, that is not 0."""
    figures = interval("helpful_score_sft", -0.7, 0.1) | interval("helpful_score_ppo", 1.5, 0.2)
    run = of_terms(tmp_path / "run", {"source": "rm", "name": "helpful"}, **figures)
    text = run.complete().texts()[1]
    assert "| Reward score of PPO | **1.50** | 95 %: 1.30 to 1.70<br>n = 40<br>SFT: -0.700 |" in text


def test_the_held_out_prompts_are_what_is_known_of_them(run):
    run.complete()
    assert "to each of 40 prompts that no stage was trained on" in run.texts()[0]
    run.stage("ppo", metrics=run.metrics["ppo"] | {"stages_not_compared": 1.0})
    assert "to each of 40 prompts that PPO was not trained on" in run.texts()[0]


def test_what_is_said_of_ties_is_what_the_loss_does_with_them(run):
    ignored = "does not train on pairs that tie"
    assert ignored in run.complete().texts()[0]
    tree = run.experiment.model_dump() | {"rm": {"loss": {"ties": "half"}}}
    (run.path / "config.yaml").write_text(dump_experiment(Experiment.model_validate(tree)))
    html = run.texts()[0]
    assert ignored not in html and "A pair that ties counts as half a win each way" in html


def test_sft_and_best_of_n_stand_where_truncated_samples_are(run):
    """With top-p, SFT's own samples are 0.8 nats from the distribution that PPO's KL is to."""
    run.metrics["ppo"] |= interval("kl_sft", 0.8, 0.1)
    run.complete()
    (run.path / "best").mkdir()
    rows = [
        {"n": n, "kl": kl, **interval("rm_score", 1.0, 0.1), "gold": kl} for n, kl in ((1, 0.0), (4, 0.64))
    ]
    write_lines(run.path / "best" / "curve.jsonl", rows)
    figure = score_against_kl(read_results(run.path))
    assert figure is not None
    handles, labels = figure.axes[1].get_legend_handles_labels()
    drawn = dict(zip(labels, handles, strict=True))
    assert drawn["SFT"].lines[0].get_xdata().tolist() == [0.8]
    assert drawn["best of n"].get_xdata().tolist() == pytest.approx([0.8, 1.44])


@pytest.mark.parametrize(
    ("options", "measure", "drawn"),
    [
        ({}, "score", True),
        ({"rewards": [{"source": "rm", "name": "helpful"}]}, "score", True),
        ({"rewards": [{"source": "my:score"}]}, "score", False),
        ({"ensemble": "min"}, "score", False),  # best of n picks by the mean
        ({"ensemble": "min"}, "gold", True),
        ({"from": "/a", "reference": "from"}, "gold", False),
    ],
)
def test_best_of_n_is_drawn_where_it_can_be_compared(options, measure, drawn):
    rows: list[Row] = [
        {"n": 2, "kl": 0.2, "rm_score": 1.0, "gold": 3.0},
        {"n": 4, "kl": 0.6, "rm_score": None},
    ]
    score = 3.0 if measure == "gold" else 1.0
    assert best_points(rows, measure, Ppo.model_validate(options), 0.0) == (
        [(2, 0.2, score)] if drawn else []
    )


def test_missing_held_out_data_is_named(run):
    no_losses = {"eval_loss_before": math.nan, "eval_loss": math.nan, **COST}
    run.metrics = {"sft": no_losses, "rm": dict(COST), "ppo": dict(COST)}
    run.curves["sft"] = [row for row in run.curves["sft"] if "loss" in row]
    run.curves["sft"] += [{"step": 36, "eval/loss": None}]
    run.evaluation = []
    html, text = run.complete().texts()
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
    assert "Stage ppo failed (ValueError: &lt;b&gt;). It has no final metrics" in html
    assert "curves-ppo.png" in html
    assert "gold.png" not in html
    assert ["PPO", "sft/adapter sftsftsftsft<br>rm/adapter rmrmrmrmrmrm"] in [
        row[:2] for table in tables(text) for row in table
    ]


def test_a_killed_stage_is_not_called_running(run):
    run.stage("sft", status="running", output=None, metrics={})
    assert "Stage sft was killed" in run.texts()[1]


def test_a_folder_that_is_not_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"not a run directory.*--run-dir"):
        write_report(tmp_path)


def test_a_broken_line_is_named(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1}\n{"step": \n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl, line 2: damaged \(not JSON"):
        read_json_lines(file, ["step"], growing=True)


def test_lines_end_at_line_feeds_alone(tmp_path):
    file = tmp_path / "evaluation.jsonl"
    file.write_text('{"prompt": "one\u2028line\x85still"}\n', encoding="utf-8")
    assert read_json_lines(file, ["prompt"], growing=True) == [{"prompt": "one\u2028line\x85still"}]


def test_markdown_escapes_what_is_markup():
    assert markdown("a*b_c`d[e](f)~|$#\\<&>") == r"a\*b\_c\`d\[e\](f)\~\|\$\#\\&lt;&amp;&gt;"
    assert markdown("see https://x.org\nnow") == r"see https\://x.org<br>now"


def test_quotes_are_cut_and_control_characters_are_visible():
    assert quote("x" * 12, max_length=10) == "xxxxxxxxxx … [2 more characters]"
    assert quote("a\x00b\ud800c\u200dd\n\te") == "a\u2400b\ufffdc\ufffdd\n\te"
