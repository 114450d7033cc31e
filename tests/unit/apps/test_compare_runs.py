"""`tristage compare`: settings that differ, results side by side, one figure."""

from __future__ import annotations

import pytest
from rich.console import Console

from apps.compare_runs import draw, print_runs, read_runs, write_comparison
from configs.errors import UserError
from tests.support.finished_run import Run


@pytest.fixture
def runs(tmp_path):
    first = Run(tmp_path / "first", kl_coef=0.05).stage("sft").stage("rm").stage("ppo")
    second = Run(tmp_path / "second", kl_coef=0.2)
    second.metrics["ppo"] |= {"gold_ppo": 0.9, "gold_ppo_low": 0.8, "gold_ppo_high": 1.0}
    second.stage("sft").stage("rm").stage("ppo")
    return read_runs([first.path, second.path])


def test_only_settings_that_differ_are_shown(runs) -> None:
    settings = dict(runs.settings())
    assert settings.pop("ppo.kl_coef") == ["0.05", "0.2"]
    assert set(settings) <= {"deepspeed.config"}  # its path is that of each made-up run


def test_results_stand_side_by_side(runs) -> None:
    rows = {label: values for stage, label, values in runs.metrics() if stage == "ppo"}
    assert rows["gold score, PPO"] == ["0.610 [0.540, 0.680], n = 40", "0.900 [0.800, 1.000], n = 40"]


def test_a_run_without_a_stage_has_no_figures_for_it(runs, tmp_path) -> None:
    young = Run(tmp_path / "young").stage("sft")
    both = read_runs([tmp_path / "first", young.path])
    rows = {(stage, label): values for stage, label, values in both.metrics()}
    assert rows["ppo", "gold score, PPO"][1] == "–"


def test_the_page_and_the_figure(runs, tmp_path) -> None:
    page = write_comparison(runs, tmp_path / "out")
    html = page.read_text()
    assert "ppo.kl_coef" in html
    assert 'src="curves.png"' in html
    assert (tmp_path / "out/curves.png").stat().st_size > 10_000
    figure = draw(runs)
    assert figure is not None
    lines = [axes.get_title() for axes in figure.axes if len(axes.get_lines()) == 2]
    assert "PPO: KL to the reference, nats per response" in lines


def test_the_terminal_has_both_tables(runs, capsys) -> None:
    print_runs(Console(width=140), runs)
    printed = capsys.readouterr().out
    assert "settings that differ" in printed
    assert "ppo win rate against SFT" in printed


@pytest.mark.parametrize("count", [0, 1, 7])
def test_too_few_and_too_many_are_refused(tmp_path, count) -> None:
    with pytest.raises(UserError, match="from 2 to 6"):
        read_runs([tmp_path / str(number) for number in range(count)])


def test_the_same_run_twice_is_one(runs, tmp_path) -> None:
    with pytest.raises(UserError, match="different"):
        read_runs([tmp_path / "first", tmp_path / "first"])
