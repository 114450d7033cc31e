"""The user's reward functions, labellers and judges: what they may return, raise and change."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from configs.errors import UserError
from configs.load import load_experiment
from stages.distributed.ranks import Ranks
from stages.feedback.judgements import as_judgements
from stages.feedback.labellers import labeller
from stages.feedback.user_functions import as_numbers, load_function
from tests.contract.bad_inputs.entry import check_message, experiment, stage_run, tristage
from tests.support.chat_stub import chat_stub
from tests.support.pipeline_runs import write_stage

PROMPTS, COMPLETIONS = ["a", "b"], ["short", "much longer"]
Score = Callable[[str], list[float]]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Path]]:
    """module(text) writes the user's module `theirs` and puts it on the path."""
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("theirs", None)

    def write(text: str) -> Path:
        file = tmp_path / "theirs.py"
        file.write_text(
            "import math, os, random, signal, sys, tempfile\n"
            f"import numpy as np, pandas as pd\nimport torch\n{text}\n"
        )
        return file

    yield write
    sys.modules.pop("theirs", None)


def score(key: str = "ppo.rewards") -> list[float]:
    return load_function("theirs:score", key, as_numbers)(PROMPTS, COMPLETIONS)


def refused(key: str = "ppo.rewards") -> str:
    with pytest.raises(UserError) as caught:
        score(key)
    return str(caught.value)


RETURNED = {
    "[1.0, math.nan]": "gave nan for completions[1], 'much longer'. It must be a finite real number",
    "[math.inf, 1.0]": "gave inf for completions[0], 'short'",
    "[1.0, np.float32('nan')]": "for completions[1]",
    "torch.tensor([1.0, math.nan])": "gave tensor(nan) for completions[1]",
    "[1.0, 1e300]": "gave 1e+300 for completions[1]",
    "[10 ** 400, 1]": "for completions[0]",
    "[True, 1.0]": "gave True for completions[0]",
    "[1.0, np.bool_(True)]": "for completions[1]",
    "torch.tensor([True, False])": "gave tensor(True) for completions[0]",
    "['1', 2.0]": "gave '1' for completions[0]",
    "np.ma.array([1.0, 2.0], mask=[0, 1])": "gave masked for completions[1], 'much longer'",
    "[1.0, None]": "gave None for completions[1]",
    "[1.0, 1j]": "gave 1j for completions[1]",
    "[1.0, [2.0]]": "gave [2.0] for completions[1]",
    "[torch.ones(2), 1.0]": "for completions[0]",
    "[1.0]": "must give a number for each of 2 completions, gave 1",
    "[]": "gave 0",
    "[1.0, 2.0, 3.0]": "gave more",
    "iter(lambda: 1.0, 2.0)": "gave more",
    "(1.0 for _ in completions[1:])": "gave 1",
    "{0: 1.0, 1: 2.0}": "gave a dict, not a list of one number per completion",
    "{1.0, 2.0}": "gave a set, not a list",
    "'12'": "gave a str, not a list",
    "b'12'": "gave a bytes, not a list",
    "pd.DataFrame([[0.1, 0.2], [0.3, 0.4]])": "gave a DataFrame, not a list of one number per completion",
    "pd.DataFrame({'score': [0.1, 0.2]})": "gave a DataFrame, not a list of one number per completion. Give",
    "np.array([[0.1, 0.2], [0.3, 0.4]])": "for completions[0], 'short'. It must be a finite real number",
    "torch.ones(2, 2)": "for completions[0], 'short'. It must be",
    "1.5": "gave a float, not a list",
    "None": "gave a NoneType, not a list",
    "torch.tensor(1.0)": "raised TypeError: iteration over a 0-d tensor",
}


@pytest.mark.parametrize("returned", RETURNED)
def test_what_a_function_returns(returned: str, module: Callable[[str], Path]) -> None:
    module(f"def score(prompts, completions): return {returned}")
    for key in ("ppo.rewards", "ppo.judge", "rm.rankings.labeller"):
        check_message(refused(key), f"{key}: theirs:score ", RETURNED[returned])


@pytest.mark.parametrize(
    "returned",
    [
        "[1, 2.5]",
        "(1.0, np.float32(2.5))",
        "np.array([1.0, 2.5])",
        "torch.tensor([1.0, 2.5], requires_grad=True) * 1.0",
        "torch.tensor([[1.0], [2.5]])",
        "np.array([[1.0], [2.5]])",
        "pd.DataFrame({'score': [1.0, 2.5]})['score']",
        "(value for value in (1.0, 2.5))",
    ],
)
def test_numbers_are_taken_as_they_come(returned: str, module: Callable[[str], Path]) -> None:
    module(f"def score(prompts, completions): return {returned}")
    assert score() == [1.0, 2.5] and all(type(each) is float for each in score())


RAISED = {
    "raise ValueError('no\\nluck')": "raised ValueError: no luck (",
    "raise KeyError": "raised KeyError (",
    "1 / 0": "raised ZeroDivisionError: division by zero (",
    "torch.stack([])": "raised RuntimeError: ",  # torch's own lines are not the user's
    "raise BaseException('any')": "raised BaseException: any (",
    "score(prompts, completions)": "raised RecursionError: ",
    "raise type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})": "raised Mute (",
    "sys.exit()": "ended the process with status None (",
    "sys.exit(0)": "ended the process with status 0 (",
    "os._exit(0)": "ended the process with status 0 (",
    "sys.modules['posix']._exit(0)": "ended the process with status 0 (",
    "raise ValueError('x' * 10**6)": "raised ValueError: xxx",
}


@pytest.mark.parametrize("statement", RAISED)
def test_what_a_function_raises(statement: str, module: Callable[[str], Path]) -> None:
    file = module(f"def score(prompts, completions):\n    {statement}")
    check_message(refused(), f"ppo.rewards: theirs:score {RAISED[statement]}", f"({file}, line 5, in score)")


def test_a_users_error_keeps_its_stack_where_it_is_asked_for(
    module: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    module("def score(prompts, completions): return 1 / 0")
    assert "TRISTAGE_DEBUG=1 shows the stack" in refused()
    monkeypatch.setenv("TRISTAGE_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        score()


IMPORTED = {
    "import no_such_thing": ("cannot import 'theirs' of 'theirs:score', which raised ModuleNotFoundError", 4),
    "1 / 0": ("which raised ZeroDivisionError: division by zero", 4),
    "def score(": ("which raised SyntaxError", None),
    "sys.exit(0)": ("which ended the process with status 0", 4),
    "os._exit(0)": ("which ended the process with status 0", 4),
    "other = 1": ("the module 'theirs' has no function 'score'", None),
    "score = 1.0": ("the module 'theirs' has no function 'score'", None),
    "def score(completions): return []": ("got an unexpected keyword argument 'prompts'", None),
    "def score(prompts, completions, more): return []": ("missing a required argument: 'more'", None),
    "async def score(prompts, completions): return [1, 2]": ("gave a coroutine, not a list", None),
}


@pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning")
@pytest.mark.parametrize("text", IMPORTED)
def test_what_a_module_holds(text: str, module: Callable[[str], Path]) -> None:
    file = module(text)
    fault, line = IMPORTED[text]
    check_message(refused(), "ppo.rewards: ", fault, f"({file}, line {line}, in <module>)" if line else "")


@pytest.mark.parametrize("path", ["no_such:score", "no_such.below:score", "..:score", ".theirs:score"])
def test_where_a_function_is(path: str) -> None:
    with pytest.raises(UserError) as caught:
        load_function(path, "ppo.judge", as_judgements)
    check_message(str(caught.value), "ppo.judge: cannot import ")


CHANGES = """
def score(prompts, completions):
    prompts[0] = "changed"
    completions.clear()
    random.seed(7); np.random.seed(7); torch.manual_seed(7)
    {folder}; os.umask(0o777)
    for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, signal.SIG_IGN)
    signal.alarm(100)
    sys.stdout = sys.stderr = None
    np.seterr(all="raise")
    {precision}
    torch.set_flush_denormal(True)
    torch.backends.mkldnn.enabled = False
    os.environ["THEIRS"] = "1"; os.environ.pop("HOME"); os.environ["PATH"] = "theirs"
    sys.setrecursionlimit(5000)
    torch.use_deterministic_algorithms(True)
    torch.autograd.set_detect_anomaly(True)
    torch.set_autocast_enabled("cpu", True)
    torch.set_grad_enabled(False)
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_num_threads(torch.get_num_threads() + 1)
    {end}
"""


def state() -> list[Any]:
    """What functions share with the rest of the process."""
    settings = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device()
    noise = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # type: ignore[index]
    mask = os.umask(0o022)
    os.umask(mask)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    of_system = mask, handlers, dict(os.environ), sys.getrecursionlimit()
    of_python = signal.getitimer(signal.ITIMER_REAL)[0], sys.stdout, sys.stderr, np.geterr()
    backends: list[Any] = [torch.backends, torch.backends.cuda.matmul, torch.backends.mkldnn]
    of_torch = (
        torch.get_float32_matmul_precision(),
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        [backend.fp32_precision for backend in backends],
        torch.backends.mkldnn.enabled,
        (torch.tensor(1e-40) * 1).item() > 0,  # else denormal numbers are 0
        torch.are_deterministic_algorithms_enabled(),
        torch.is_anomaly_enabled(),
        torch.is_autocast_enabled("cpu"),
    )
    given = PROMPTS.copy(), COMPLETIONS.copy()
    return [*noise, *settings, *of_system, *of_python, *of_torch, torch.get_num_threads(), Path.cwd(), *given]


DELETED = "folder = tempfile.mkdtemp(); os.chdir(folder); os.rmdir(folder)"


@pytest.mark.parametrize("folder", ["os.chdir('/')", DELETED])
@pytest.mark.parametrize("end", ["return [1, 2]", "raise ValueError", "sys.exit(0)"])
def test_what_a_function_changes_is_put_back(end: str, folder: str, module: Callable[[str], Path]) -> None:
    module(CHANGES.format(end=end, folder=folder, precision="torch.set_float32_matmul_precision('medium')"))
    exit_of_the_system = os._exit
    before = state()
    if end.startswith("return"):
        assert score() == [1.0, 2.0]
        labeller("theirs:score", "ppo.judge", Ranks(0, 1, torch.device("cpu")))(PROMPTS, COMPLETIONS)
    else:
        refused()
    assert state() == before
    assert os._exit is exit_of_the_system


@pytest.mark.parametrize(
    "precision",
    [
        "torch.backends.cuda.matmul.allow_tf32 = True",
        "torch.backends.cudnn.allow_tf32 = False",
        "torch.backends.cuda.matmul.fp32_precision = 'tf32'",  # torch then refuses to read the older setting
        "torch.backends.cudnn.conv.fp32_precision = 'ieee'",
        "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
        "torch.backends.fp32_precision = 'tf32'",
    ],
)
def test_the_precision_that_a_function_sets_is_put_back(
    precision: str, module: Callable[[str], Path]
) -> None:
    module(CHANGES.format(end="return [1, 2]", folder="pass", precision=precision))
    before = state()
    assert score() == [1.0, 2.0]
    assert state() == before


def test_the_lowest_recursion_limit_is_put_back(module: Callable[[str], Path]) -> None:
    module(
        "def score(prompts, completions):\n"
        "    os.environ['THEIRS'] = '1'\n"
        "    for limit in range(1, 1000):\n"
        "        try: sys.setrecursionlimit(limit); break\n"
        "        except RecursionError: pass\n"
        "    return [1, 2]"
    )
    before = state()
    assert "raised RecursionError" in refused()
    assert state() == before


def test_what_an_import_says_to_the_environment_is_there_in_each_call(
    module: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THEIRS", "0")
    module(
        "os.environ['THEIRS'] = '1'\n"
        "def score(prompts, completions): return [int(os.environ.pop('THEIRS')), 2]"
    )
    function = load_function("theirs:score", "ppo.rewards", as_numbers)
    assert function(PROMPTS, COMPLETIONS) == function(PROMPTS, COMPLETIONS) == [1.0, 2.0]


def test_what_an_import_changes_is_put_back(module: Callable[[str], Path]) -> None:
    module(
        "random.seed(7); torch.manual_seed(7); os.chdir('/')\ndef score(prompts, completions): return [1, 2]"
    )
    before = state()
    assert score() == [1.0, 2.0]
    assert state() == before


def test_noise_of_a_function_depends_on_what_it_is_asked(module: Callable[[str], Path]) -> None:
    """So a stage that resumes gets the same rewards as one that was never stopped."""
    module(
        "def score(prompts, completions):\n"
        "    return [random.random() + np.random.rand(), torch.rand(1)][: len(completions)]"
    )
    first = score()
    random.seed(1)
    torch.manual_seed(1)
    assert score() == first
    assert load_function("theirs:score", "ppo.rewards", as_numbers)(PROMPTS, COMPLETIONS[::-1]) != first


def test_a_forked_child_of_a_function_may_end(module: Callable[[str], Path]) -> None:
    module(
        "def score(prompts, completions):\n"
        "    child = os.fork()\n"
        "    if not child: os._exit(3)\n"
        "    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] * 2"
    )
    assert score() == [3.0, 3.0]


@pytest.mark.parametrize(("end", "status"), [("sys.exit(3)", 3), ("return [1, 2]", 0), ("1 / 0", 1)])
def test_a_forked_child_of_a_function_never_leaves_it(
    end: str, status: int, module: Callable[[str], Path], tmp_path: Path
) -> None:
    """It would train on beside its parent, or record a failure of a stage that runs."""
    module(
        "def score(prompts, completions):\n"
        "    child = os.fork()\n"
        f"    if not child: {end}\n"
        "    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])] * 2"
    )
    process = os.getpid()
    values = score()
    if os.getpid() != process:
        (tmp_path / "escaped").touch()
        os._exit(9)
    assert values == [float(status)] * 2 and not (tmp_path / "escaped").exists()


ASKED_FIRST = {
    "score = 1": "ppo.rewards: the module 'theirs' has no function 'score'",
    "def score(prompts, completions): return [1 / len(text) for text in completions]": "division by zero",
    "def score(prompts, completions): os._exit(0)": "theirs:score ended the process with status 0",
    "def score(prompts, completions): os.kill(os.getpid(), 9)": "theirs:score ended its process with",
    "print('noise')\nos.kill(os.getpid(), 9)": "theirs:score ended its process with status -9",
}


@pytest.mark.parametrize(
    ("command", "text"), [("plan", "score = 1"), *(("run", text) for text in ASKED_FIRST)]
)
def test_functions_are_asked_before_anything_trains(
    command: str, text: str, module: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    options: list[str | Path] = ["--config", experiment(tmp_path), "--run-dir", tmp_path / "run"]
    status, _, err = tristage(command, *options, "ppo.rewards=[{source: rm}, {source: 'theirs:score'}]")
    assert status == 2 and not (tmp_path / "run").exists()
    check_message(err, "error: ppo.rewards: ", ASKED_FIRST[text])


def test_every_source_is_asked_of_the_stages_that_run(tmp_path: Path) -> None:
    options: list[str | Path] = ["--config", experiment(tmp_path), "--run-dir", tmp_path / "run"]
    options += ["rm.rankings.labeller=no_labeller:f", "ppo.judge=no_judge:f"]
    rewards = "ppo.rewards=[{source: 'no_reward:f'}, {source: 'http://127.0.0.1:9/', retries: 99}]"
    status, _, err = tristage("plan", *options, rewards)
    assert status == 2
    check_message(
        err, "rm.rankings.labeller: cannot import", "ppo.judge: cannot import", "ppo.rewards: cannot"
    )
    check_message(err, "ppo.rewards: http://127.0.0.1:9/ gave no rewards (ConnectionError")
    assert tristage("plan", *options, rewards, "--until", "sft")[0] == 0


def test_a_stage_by_itself_asks_as_well(tmp_path: Path) -> None:
    file = experiment(tmp_path)
    for stage in ("sft", "rm"):
        write_stage(tmp_path / "run", stage, config=load_experiment(file))
    status, said = stage_run(file, tmp_path / "run", "ppo", "ppo.judge=no_judge:f")
    assert status == 2 and not (tmp_path / "run/ppo").exists()
    check_message(said, "error: ppo.judge: cannot import 'no_judge'")


def test_a_judge_that_is_not_there_or_wrong_is_named_before_anything_starts(tmp_path: Path) -> None:
    options: list[str | Path] = ["--config", experiment(tmp_path), "--run-dir", tmp_path / "run"]
    status, _, err = tristage("plan", *options, f"rm.rankings.labeller={tmp_path}/judge.yaml")
    assert status == 2
    check_message(err, f"error: rm.rankings.labeller: {tmp_path}/judge.yaml: there is no such file")
    (tmp_path / "judge.yaml").write_text("url: http://127.0.0.1:9/\nmodel: m\nmodal: pairs")
    (tmp_path / "other.yaml").write_text("url: http://127.0.0.1:9/\nmodel: m\nretries: 99")
    both = f"rm.rankings.labeller={{agree: [{tmp_path}/judge.yaml, {tmp_path}/other.yaml]}}"
    for command in ("plan", "run"):
        status, _, err = tristage(command, *options, both)
        assert status == 2 and not (tmp_path / "run").exists()
        check_message(
            err,
            f"rm.rankings.labeller.agree[0]: {tmp_path}/judge.yaml: modal: Extra inputs are not permitted",
            "rm.rankings.labeller.agree[1]: http://127.0.0.1:9/ gave no verdict (ConnectionError",
        )
    assert tristage("plan", *options, both, "--until", "sft")[0] == 0


def test_the_plan_tells_how_much_a_judge_will_be_asked(tmp_path: Path) -> None:
    with chat_stub(lambda body: "A") as stub:
        (tmp_path / "judge.yaml").write_text(f"url: {stub.url}\nmodel: m")
        options: list[str | Path] = ["--config", experiment(tmp_path), "--run-dir", tmp_path / "run"]
        status, out, _ = tristage("plan", *options, f"rm.rankings.labeller={tmp_path}/judge.yaml")
    assert status == 0 and len(stub.bodies) == 1
    assert "rm.rankings.labeller: requests to m for each prompt: at most 12" in out
    assert "64 prompts of 4 completions each, ranked by judge.yaml" in out
