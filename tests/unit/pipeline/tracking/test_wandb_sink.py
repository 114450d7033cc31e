"""W&B: the choice of the mode, and the files of an offline run with the real library."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb

from configs.errors import UserError
from data.storage.files import write_json_lines
from pipeline.terminal.progress import PlainDisplay
from pipeline.tracking import wandb_sink
from pipeline.tracking.metric_files import FileSink
from pipeline.tracking.reporter import Reporter
from pipeline.tracking.wandb_sink import WandbSink, make_wandb_sink, wandb_mode
from tests.support.pipeline_runs import toy, write_stage

KEY = "0123456789abcdef" * 2 + "01234567"
ROOT = Path(__file__).resolve().parents[4]
VARIABLES = ("WANDB_MODE", "WANDB_DISABLED", "WANDB_API_KEY", "WANDB_DATA_DIR", "WANDB_CACHE_DIR")


@pytest.fixture(autouse=True)
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the variables, netrc and settings of the user who runs the tests."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what the code sets is undone, too
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_mode_of_the_configuration(mode: str) -> None:
    assert wandb_mode(toy(tracking__wandb=mode)) == mode


def test_variable_wins_over_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode(toy(tracking__wandb="online")) == "disabled"


def test_unknown_variable_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "of-line")
    with pytest.raises(UserError, match="WANDB_MODE=of-line"):
        wandb_mode(toy())


def run_in_process(code: str, *arguments: str) -> str:
    """Run code in a separate process, because W&B caches keys. Returns its output."""
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"},  # ours knows runs
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def auto_mode() -> str:
    code = (
        "from pipeline.tracking.wandb_sink import wandb_mode; from tests.support.pipeline_runs import toy\n"
    )
    return run_in_process(code + "print(wandb_mode(toy(tracking__wandb='auto')))").split()[-1]


def test_auto_is_offline_without_an_account_and_asks_nobody() -> None:
    assert auto_mode() == "offline"


@pytest.mark.parametrize("where", ["variable", "netrc"])
def test_auto_is_online_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    if where == "variable":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    else:
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert auto_mode() == "online"


def test_disabled_makes_no_sink(tmp_path: Path) -> None:
    assert (
        make_wandb_sink(toy(tracking__wandb="disabled"), write_stage(tmp_path, "sft"), tmp_path / "sft")
        is None
    )


START = """
import sys
from pathlib import Path
from pipeline.tracking.wandb_sink import make_wandb_sink
from tests.support.pipeline_runs import toy, write_stage
config, run = toy(tracking__wandb=sys.argv[2]), Path(sys.argv[1])
sink = make_wandb_sink(config, write_stage(run, "sft", config=config), run / "sft")
if sink:
    sink.log({"loss": 1.0}, 1)
    sink.close(0)
print("went on")
"""


@pytest.mark.parametrize(
    ("name", "value", "mode"),
    [
        ("WANDB_RUN_ID", "a/b", "offline"),
        ("WANDB_BASE_URL", "zork", "auto"),
        ("WANDB_TAGS", "x" * 80, "offline"),
        ("WANDB__SERVICE_WAIT", "0.0001", "auto"),
        ("WANDB_CONFIG_DIR", "/dev/null", "auto"),
    ],
)
def test_tracking_that_cannot_start_ends_no_stage(
    name: str, value: str, mode: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv(name, value)
    assert run_in_process(START, str(tmp_path), mode).splitlines()[-1] == "went on"


def test_a_file_in_place_of_its_folder_ends_no_stage(tmp_path: Path) -> None:
    manifest = write_stage(tmp_path, "sft")
    (tmp_path / "sft/wandb").write_text("precious")
    assert make_wandb_sink(toy(tracking__wandb="offline"), manifest, tmp_path / "sft") is None
    assert (tmp_path / "sft/wandb").read_text() == "precious"


def test_offline_run_is_complete_inside_the_folder_and_resumes_by_id(tmp_path: Path) -> None:
    config = toy(tracking__wandb="offline")
    write_stage(tmp_path, "sft", config=config)
    manifest = write_stage(tmp_path, "rm", config=config).model_copy(update={"run_id": "abcd1234"})
    for first_step in (1, 3):  # the second time it is resumed
        sink = make_wandb_sink(config, manifest, tmp_path / "rm")
        assert sink is not None
        run = sink._run
        assert run is not None
        assert (run.id, run.group, run.job_type, run.offline) == ("abcd1234", "toy", "rm", True)
        assert run.config["inputs"]["sft"]["sha256"] == manifest.inputs["sft"].sha256
        assert run.config["rm"]["learning_rate"] == config.rm.learning_rate
        sink.log({"loss": 0.5}, first_step)
        sink.samples([{"prompt": "p", "response": "r"}], first_step)
        sink.finish(manifest, tmp_path / "rm/adapter")
        sink.close(0)
    records = sorted((tmp_path / "rm/wandb").glob("offline-run-*-abcd1234/run-abcd1234.wandb"))
    assert records and all(path.stat().st_size > 0 for path in records)
    assert list((tmp_path / "rm/wandb").glob("data/artifacts/staging/*")), (
        "the adapter waits for `wandb sync`"
    )
    assert os.environ["WANDB_DATA_DIR"].startswith(str(tmp_path))


MIXED = [
    {"step": 0, "prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]},
    {
        "step": 0,
        "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "q"}],
        "completion": [{"role": "assistant", "content": "c"}],
    },
    {"step": 0, "prompt": "r", "completion": "d"},
]


def test_texts_and_conversations_are_one_table(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """W&B itself refuses a column of texts and lists."""
    config = toy(tracking__wandb="offline")
    manifest = write_stage(tmp_path, "sft", config=config).model_copy(update={"run_id": "abcd1234"})
    write_json_lines(tmp_path / "sft" / "samples.jsonl", MIXED)
    sink = make_wandb_sink(config, manifest, tmp_path / "sft")
    assert sink is not None
    sink.close(0)
    (file,) = (tmp_path / "sft/wandb").glob("offline-run-*-abcd1234/files/media/table/samples_*.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["step", "prompt", "completions", "ranks", "completion"]
    assert table["data"] == [
        [0, "p", '["a", "b"]', "[0, 1]", None],
        [0, "System: Be kind.\n\nUser: q", None, None, "Assistant: c"],
        [0, "r", None, None, "d"],
    ]
    assert "W&B failed" not in caplog.text


class Recorder:
    """A stub of a W&B run that fails from a given call on."""

    offline = True

    def __init__(self, fail_after: int = 1000) -> None:
        self.logged: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.fail_after = fail_after
        self.exit_code: int | None = None

    def log(self, values: dict[str, Any], **options: Any) -> None:
        if len(self.logged) >= self.fail_after:
            raise wandb.errors.CommError("the network is gone")
        assert not options, "no step= may be given"
        self.logged.append(values)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


def test_steps_are_a_metric(tmp_path: Path) -> None:
    run = Recorder()
    sink = WandbSink(run, toy(), tmp_path)
    sink.log({"loss": 0.5}, 7)
    sink.close(0)
    assert run.logged == [{"trainer/step": 7, "loss": 0.5}]


def test_table_has_the_samples_of_earlier_attempts_and_not_those_that_were_rewound(tmp_path: Path) -> None:
    for attempt, step in enumerate((7, 8)):
        run = Recorder()
        reporter = Reporter(PlainDisplay(print), [FileSink(tmp_path), WandbSink(run, toy(), tmp_path)])
        reporter.rewind(7)
        reporter.samples([{"prompt": "p", "score": 1.0}] if attempt == 0 else [{"prompt": "q"}], step)
        reporter.samples([{"prompt": "lost"}] if attempt == 0 else [], 9)
        reporter.close(0)
    table = run.logged[0]["samples"]
    assert table.columns == ["step", "prompt", "score"]
    assert table.data == [[7, "p", 1.0], [8, "q", None]]


def test_table_is_uploaded_every_ten_minutes_while_the_stage_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb_sink, "SECONDS_PER_TABLE", 0.0)
    run = Recorder()
    sink = WandbSink(run, toy(), tmp_path)
    write_json_lines(tmp_path / "samples.jsonl", [{"step": 1, "prompt": "p"}])
    sink.samples([{"prompt": "p"}], 1)
    assert run.logged[0]["samples"].data == [[1, "p"]]


def test_a_run_ends_even_if_its_table_is_refused(tmp_path: Path) -> None:
    run = Recorder(fail_after=0)
    write_json_lines(tmp_path / "samples.jsonl", [{"step": 1}])
    WandbSink(run, toy(), tmp_path).close(3)
    assert run.exit_code == 3 and not run.logged


def test_tables_of_a_long_run_hold_the_latest_samples(tmp_path: Path) -> None:
    run = Recorder()
    sink = WandbSink(run, toy(), tmp_path)
    write_json_lines(tmp_path / "samples.jsonl", [{"step": step} for step in range(3000)])
    sink.close(0)
    assert run.logged[0]["samples"].data == [[step] for step in range(2000, 3000)]


def test_the_report_of_a_reward_model_is_charts_and_tables(tmp_path: Path) -> None:
    one = {"value": 0.7, "low": 0.6, "high": 0.8, "n": 56}
    report = {
        "accuracy": one,
        "baselines": {"longer": one | {"value": 0.6}},
        "groups": {"length": {"equal lengths": one}},
        "calibration": {"bins": [{"confidence": 0.55, "accuracy": 0.5, "weight": 1.0}]},
        "mistakes": [{"prompt": "p", "better": "b", "worse": "w", "margin": -3.0}],
    }
    manifest = write_stage(tmp_path, "sft")
    (tmp_path / "evaluation.json").write_text(json.dumps(report))
    run = Recorder()
    WandbSink(run, toy(tracking__artifacts=False), tmp_path).finish(manifest, tmp_path)
    accuracy, reliability, mistakes = (
        run.logged[0][f"report/{name}"] for name in ("accuracy", "reliability", "mistakes")
    )
    assert accuracy.table.columns == ["pairs", "accuracy", "low", "high", "n"]
    assert accuracy.table.data == [
        ["all", 0.7, 0.6, 0.8, 56],
        ["length: equal lengths", 0.7, 0.6, 0.8, 56],
        ["simple rule: longer", 0.6, 0.6, 0.8, 56],
    ]
    assert reliability.table.data == [[0.55, 0.5, 1.0]]
    assert reliability.spec.fields == {"x": "confidence", "y": "accuracy", "stroke": None}
    assert [chart.spec.string_fields["title"] for chart in (accuracy, reliability)] == [
        "Accuracy by kind of pair",
        "Reliability",
    ]
    assert mistakes.data == [["p", "b", "w", -3.0]]


def test_a_service_that_dies_does_not_end_the_stage(tmp_path: Path) -> None:
    """W&B's own process is killed between two steps. The stage continues and ends in time."""
    write_stage(tmp_path, "sft")
    code = (
        "import sys, time, psutil; from pathlib import Path; from pipeline.state import manifest\n"
        "from pipeline.tracking import wandb_sink\n"
        "from tests.support.pipeline_runs import toy\n"
        "folder = Path(sys.argv[1]) / 'sft'\n"
        "record = manifest.read_manifest(folder / 'manifest.json')\n"
        "sink = wandb_sink.make_wandb_sink(toy(tracking__wandb='offline'), record, folder)\n"
        "sink.log({'loss': 1.0}, 1)\n"
        "service = psutil.Process().children(recursive=True)\n"
        "assert service; [each.kill() for each in service]\n"
        "for step in range(2, 50): sink.log({'loss': 1.0}, step); time.sleep(0.02)\n"
        "sink.close(0)\n"
        "print('ended')\n"
    )
    assert "ended" in run_in_process(code, str(tmp_path))


def test_temporary_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    write_stage(tmp_path, "sft")
    code = (
        "import os, sys; from pathlib import Path; from pipeline.state import manifest\n"
        "from pipeline.tracking import wandb_sink\n"
        "from tests.support.pipeline_runs import toy\n"
        "folder = Path(sys.argv[1]) / 'sft'\n"
        "record = manifest.read_manifest(folder / 'manifest.json')\n"
        "sink = wandb_sink.make_wandb_sink(toy(tracking__wandb='offline'), record, folder)\n"
        "sys.argv[2:] and (sink.close(0), os._exit(0))\n"
        "print(len(list((folder / 'wandb/tmp').iterdir())), flush=True); sink.close(0)\n"
    )
    run_in_process(code, str(tmp_path), "as if killed")
    temporary_files = set((tmp_path / "sft/wandb/tmp").iterdir())
    assert temporary_files, "what W&B makes lies in the run directory"
    run_in_process(code, str(tmp_path))
    assert not temporary_files & set((tmp_path / "sft/wandb/tmp").iterdir())


def test_a_failing_network_does_not_end_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Recorder(fail_after=1)
    sink = WandbSink(run, toy(), tmp_path)
    for step in range(5):
        sink.log({"loss": 0.5}, step)
    sink.close(0)
    assert len(run.logged) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"], "said once"


def test_a_stage_that_is_being_stopped_says_nothing_of_the_service_that_the_launcher_ended(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    sink = WandbSink(Recorder(fail_after=0), toy(), tmp_path)
    sink.stopping = lambda: True
    sink.log({"loss": 0.5}, 1)
    failures = [record.levelname for record in caplog.records if "W&B failed" in record.message]
    assert failures == ["INFO"], "the log file alone has it"


def test_unreachable_server_falls_back_to_offline_under_the_same_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: no process listens there
    write_stage(tmp_path, "sft")
    code = (
        "import sys; from pathlib import Path; from pipeline.state import manifest\n"
        "from pipeline.tracking import wandb_sink\n"
        "from tests.support.pipeline_runs import toy\n"
        "wandb_sink.INIT_TIMEOUT_SECONDS = 2\n"
        "folder = Path(sys.argv[1]) / 'sft'\n"
        "record = manifest.read_manifest(folder / 'manifest.json')\n"
        "record.run_id = 'abcd1234'\n"
        "sink = wandb_sink.make_wandb_sink(toy(tracking__wandb='online'), record, folder)\n"
        "sink.log({'loss': 1.0}, 1)\n"
        "sink.close(0)\n"
    )
    run_in_process(code, str(tmp_path))
    assert list((tmp_path / "sft/wandb").glob("offline-run-*-abcd1234/run-abcd1234.wandb"))
