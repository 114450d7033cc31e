"""The labelling server by HTTP: many people at once, tokens, hostile requests, a kill in the middle."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import unicodedata
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from apps.collect import app, serve
from apps.collect.assignment import Plan
from apps.collect.desk import Answer
from apps.collect.people import People, Person, read_people
from apps.collect.report import report as write_report
from apps.collect.serve import checked_people
from apps.web.server import listening_socket, url_of
from configs.errors import UserError
from data.people.results import rankings
from data.people.round import Kind, read_round
from data.storage.files import read_json_lines
from pipeline.terminal.console import SafeConsole
from tests.support.people import Labeller, collecting, desk_of, new_round
from tests.support.waiting import until

TOKEN, OTHER = "tiny-test-token-of-anna", "tiny-test-token-of-the-lead"
PEOPLE = People({TOKEN: Person("anna"), OTHER: Person("li", lead=True)})


def test_fifty_people_at_once_lose_and_double_nothing(tmp_path):
    content = new_round(tmp_path, tasks=150)

    def work(number: int) -> list[str]:
        person, done = Labeller(url, f"person {number}"), []
        while (task := person.next()) is not None:
            answer = {"showing": task["showing"], "submission": uuid4().hex, "seconds": 1.0}
            for _ in range(1 + number % 2):  # half of them send everything twice
                response = person.post("/api/submit", answer | {"ranks": [1, 2, 3, 4]})
                assert response.status_code == 200, response.text
            done.append(task["prompt"])
        return done

    def lead() -> list[int]:
        """How many people the figures count, asked again and again."""
        counted = []
        while not everybody.wait(0.1):
            response = Labeller(url, "lead").get("/api/progress")
            assert response.status_code == 200, response.text
            counted.append(len(response.json()["people"]))
        return counted

    everybody = threading.Event()
    with collecting(content, Plan(overlap=0.1, again=0.05)) as url:
        with ThreadPoolExecutor(51) as pool:
            watching = pool.submit(lead)
            try:
                done = list(pool.map(work, range(50)))
            finally:
                everybody.set()
        counted = watching.result()
        assert counted and counted == sorted(counted)
        figures = Labeller(url, "lead").get("/api/progress").json()
    rows = rankings(read_round(tmp_path))
    given = Counter((row["labeller"], row["task"]) for row in rows)
    assert max(given.values()) == 1
    shared = {task for task, people in Counter(row["task"] for row in rows).items() if people == 50}
    assert len(shared) == 15
    assert len(rows) == 15 * 50 + 135
    assert len({row["task"] for row in rows}) == 150
    assert sum(map(len, done)) == len(list(read_round(tmp_path).labels.submitted()))
    assert figures["missing"] == 0 and len(figures["people"]) == 50
    # All submit 1, 2, 3, 4 in the order shown, which is by chance: they agree like coins.
    pairwise = figures["agreement"]["pairwise"]
    assert pairwise["n"] == 15 and pairwise["low"] < 0.52 and pairwise["high"] > 0.48
    assert read_json_lines(tmp_path / "rankings.jsonl") == json.loads(json.dumps(rows))


def test_a_killed_server_has_everything_that_it_confirmed(tmp_path):
    """People submit as fast as they can; SIGKILL comes in the middle; nothing confirmed is missing."""
    new_round(tmp_path, tasks=400)
    command = [sys.executable, "-c", SERVE, str(tmp_path)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert server.stdout is not None
    url = server.stdout.readline().strip()
    confirmed: list[str] = []

    def work(number: int) -> None:
        person = Labeller(url, f"person {number}")
        try:
            while (task := person.next()) is not None:
                if person.rank(task).status_code == 200:
                    confirmed.append(task["showing"])
        except (requests.RequestException, AssertionError):
            return  # the server is gone

    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(work, number)
        until(lambda: len(confirmed) > 40)
        server.send_signal(signal.SIGKILL)
        server.wait(30)
    content = read_round(tmp_path)
    kept = {showing.showing for showing, _ in content.labels.submitted()}
    assert set(confirmed) <= kept
    assert len(kept) <= len(confirmed) + 8  # on disk, and the answer did not arrive
    with collecting(content) as again:
        person = Labeller(again, "person 0")
        assert person.rank(person.take()).status_code == 200


SERVE = """
import sys, threading
from pathlib import Path
from data.people.round import read_round
from tests.support.people import collecting
with collecting(read_round(Path(sys.argv[1]))) as url:
    print(url, flush=True)
    threading.Event().wait()
"""


def test_a_task_once_skipped_undone_and_held(tmp_path):
    content = new_round(tmp_path)
    with collecting(content, instructions="Rank by truth.") as url:
        anna = Labeller(url, "安娜")
        about = anna.get("/api/round").json()
        assert about["labeller"] == "安娜" and about["instructions"] == "Rank by truth."
        assert about["kind"] == "rankings" and about["lead"] and not about["tokens"]
        task = anna.take()
        assert anna.post("/api/hold", {"showing": task["showing"]}).json() == {"expires_in": 900}
        skip = {"showing": task["showing"], "submission": uuid4().hex, "seconds": 1, "reason": "harmful"}
        assert anna.post("/api/skip", skip).json()["counts"]["done"] == 0
        back = anna.post("/api/undo").json()["task"]
        assert back["showing"] == task["showing"] and back["earlier"] is None
        assert anna.rank(back, [2, 1, 1, 3], demonstration="Mine.").status_code == 200
        earlier = anna.post("/api/undo").json()["task"]["earlier"]
        assert earlier["ranks"] == [2, 1, 1, 3] and earlier["demonstration"] == "Mine."
        again = anna.take()  # the answer of the undo may have been lost
        assert again["earlier"] == earlier and again["seconds"] == 3.5
        assert anna.rank(task).status_code == 200
        gone = anna.rank(task)
        assert (gone.status_code, gone.json()["error"]["code"]) == (409, "unknown_showing")


def test_ratings_pairs_and_demonstrations(tmp_path):
    cases: tuple[tuple[Kind, dict[str, Any], int], ...] = (
        ("ratings", {"rating": 6}, 1),
        ("pairs", {"ranks": [2, 1]}, 2),
        ("demonstrations", {"text": "A good answer."}, 1),
    )
    for kind, given, answers in cases:
        with collecting(new_round(tmp_path / kind, kind, answers=answers)) as url:
            anna = Labeller(url, "anna")
            task = anna.take()
            assert task["draft"] == (
                "Answer " + task["prompt"].split()[1] + ".0"
                if answers == 1 and kind == "demonstrations"
                else None
            )
            send = {"showing": task["showing"], "submission": uuid4().hex, "seconds": 1}
            for wrong in ({"rating": 0}, {"rating": 8}, {"ranks": [0, 1]}, {"ranks": ["1", 2]}, {"rank": 1}):
                assert anna.post("/api/submit", send | wrong).status_code == 400
            other = {"rating": 3} if kind != "ratings" else {"text": "no rating"}
            assert anna.post("/api/submit", send | other).json()["error"]["code"] == "wrong_kind"
            assert anna.post("/api/submit", send | given).status_code == 200
        assert len(read_json_lines(tmp_path / kind / f"{kind}.jsonl")) == 1


def test_people_with_tokens(tmp_path):
    with collecting(new_round(tmp_path), people=PEOPLE) as url:
        about = Labeller(url).get("/api/round").json()
        assert (about["labeller"], about["run"], about["instructions"]) == (None, "", None)
        for stranger in (Labeller(url), Labeller(url, name="anna"), Labeller(url, token="not-a-known-token")):
            refused = stranger.post("/api/next")
            assert (refused.status_code, refused.json()["error"]["code"]) == (401, "unknown_labeller")
        anna, lead = Labeller(url, token=TOKEN), Labeller(url, token=OTHER)
        assert anna.rank(anna.take()).status_code == 200
        assert anna.get("/api/progress").status_code == 403
        assert lead.get("/api/progress").json()["people"][0]["name"] == "anna"
        assert TOKEN not in (tmp_path / "labels.jsonl").read_text()


def test_nobody_waits_for_the_figures_and_they_are_computed_once(tmp_path, monkeypatch):
    """Those of fifty people take seconds, and several windows of the lead ask for them all the time."""
    computed, go_on, real = [], threading.Event(), app.progress

    def slow(content):
        computed.append(content)
        assert go_on.wait(30)
        return real(content)

    monkeypatch.setattr(app, "progress", slow)
    with collecting(new_round(tmp_path)) as url, ThreadPoolExecutor(2) as pool:
        anna = Labeller(url, "anna")
        asked = [pool.submit(anna.get, "/api/progress") for _ in range(2)]
        until(lambda: len(computed) == 1)
        assert anna.rank(anna.take()).status_code == 200  # meanwhile
        go_on.set()
        assert [one.result().json()["labelled"] for one in asked] == [0, 1]  # as of when each was computed
        assert anna.get("/api/progress").json()["labelled"] == 1
        assert len(computed) == 2


@pytest.mark.parametrize("name", ["अनिता", "Zoe\u0308", "Zoë", "O'Brien", "O’Brien", "名無し", "a-b_2"])
def test_a_name_of_any_script(tmp_path, name):
    with collecting(new_round(tmp_path)) as url:
        assert Labeller(url, name).rank(Labeller(url, name).take()).status_code == 200
    (shown,) = read_round(tmp_path).labels.showings.values()
    assert shown.labeller == unicodedata.normalize("NFC", name)


def test_one_person_has_one_name(tmp_path):
    """Anna who writes anna the next day would get her shared tasks again, and agree with herself."""
    content = new_round(tmp_path)
    with collecting(content) as url:
        first = Labeller(url, "Anna Zoë").take()
    with collecting(content) as url:
        other = Labeller(url, "anna  ZOE\u0308")
        assert other.take()["showing"] == first["showing"]
        assert other.get("/api/round").json()["labeller"] == "Anna Zoë"


def test_the_page_knows_the_round_and_its_instructions(tmp_path):
    """What a browser keeps belongs to one round: another one may have the run's name, too."""
    rounds = [new_round(tmp_path / str(number), tasks=number) for number in (2, 3)]
    ids = []
    for content, instructions in ((rounds[0], "a"), (rounds[0], "b"), (rounds[1], "b")):
        with collecting(content, instructions=instructions, people=PEOPLE) as url:
            about = Labeller(url, token=TOKEN).get("/api/round").json()
            ids.append((about["id"], about["instructions_id"]))
            assert Labeller(url).get("/api/round").json()["id"] == ""
    assert ids[0][0] == ids[1][0] != ids[2][0] and ids[0][1] != ids[1][1] == ids[2][1]


def test_results_are_written_as_soon_as_the_disk_takes_them(tmp_path, monkeypatch, capsys):
    """A full disk for a moment must not leave the file behind for good; at the end, the error is told."""
    real, fails = serve.write_results, [True]

    def write(content):
        if fails[0]:
            raise OSError(28, "No space left on device")
        real(content)

    monkeypatch.setattr(serve, "write_results", write)
    monkeypatch.setattr(serve, "SECONDS_BETWEEN_RESULTS", 0.05)
    with collecting(new_round(tmp_path)) as url:
        anna = Labeller(url, "anna")
        assert anna.rank(anna.take()).status_code == 200
        until(lambda: "rankings.jsonl: not written: [Errno 28]" in capsys.readouterr().err)
        fails[0] = False
        until(lambda: (tmp_path / "rankings.jsonl").exists())
        assert len(read_json_lines(tmp_path / "rankings.jsonl")) == 1
        fails[0] = True
    with pytest.raises(OSError, match="No space left"):
        run_for_a_moment(tmp_path, monkeypatch)


def run_for_a_moment(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve`, whose server ends at once."""
    monkeypatch.setattr(serve.Server, "run_at", lambda *_: None)
    serve.serve(folder, serve.Desktop("127.0.0.1", 0, None, None, Plan()))


def test_a_server_reads_the_round_once_it_holds_it(tmp_path, monkeypatch):
    """What the server before it wrote until its end is in the results that this one writes."""
    new_round(tmp_path)
    with desk_of(tmp_path) as desk:
        shown = desk.next("anna")
        assert shown is not None
        with pytest.raises(UserError, match="another server collects labels there"):
            run_for_a_moment(tmp_path, monkeypatch)
        desk.submit("anna", Answer(shown.showing, uuid4().hex, 1.0, [1, 2, 3, 4]))
    run_for_a_moment(tmp_path, monkeypatch)
    assert len(read_json_lines(tmp_path / "rankings.jsonl")) == 1


def test_a_report_leaves_the_results_to_a_server_that_runs(tmp_path):
    content, console = new_round(tmp_path), SafeConsole(file=io.StringIO())
    with desk_of(tmp_path):
        write_report(console, content)
        assert not (tmp_path / "rankings.jsonl").exists()
    write_report(console, content)
    assert (tmp_path / "rankings.jsonl").exists()


def test_any_address_of_this_machine_serves_it(tmp_path):
    content = new_round(tmp_path)
    with collecting(content) as url:
        port = url.rpartition(":")[2]
        for host in ("127.0.0.2", "localhost", "[::1]"):
            headers = {"Host": f"{host}:{port}"}
            assert requests.get(f"{url}/api/round", headers=headers, timeout=30).status_code == 200
        refused = requests.get(f"{url}/api/round", headers={"Host": f"192.0.2.1:{port}"}, timeout=30)
        assert refused.status_code == 403


def test_links_name_this_machine(capsys, tmp_path):
    """0.0.0.0 is no address that somebody else could open; and without a lead, nobody opens /progress."""
    with listening_socket("0.0.0.0", 0) as listener:
        url = url_of(listener)
    assert url == f"http://{socket.gethostname()}:{url.rpartition(':')[2]}"
    content = new_round(tmp_path)
    serve._say_where(content, url, People({TOKEN: Person("anna")}))
    assert "/progress" not in capsys.readouterr().out
    serve._say_where(content, url, PEOPLE)
    assert f"progress: {url}/progress" in capsys.readouterr().out


def test_hostile_requests(tmp_path):
    with collecting(new_round(tmp_path)) as url:
        anna = Labeller(url, "anna")
        task = anna.take()
        headers = anna.headers() | {"Content-Type": "application/json"}
        for body in (b"", b"[]", b"{", b"\xff", b'{"showing": NaN}', b"[" * 100_000, b'{"a": "\\ud800"}'):
            assert requests.post(f"{url}/api/submit", data=body, headers=headers).status_code == 400
        assert requests.post(f"{url}/api/submit", data=b"x" * 2**21, headers=headers).status_code == 413
        assert requests.post(f"{url}/api/next", data="a=b", headers=anna.headers()).status_code == 415
        assert requests.get(f"{url}/api/round", headers={"Host": "rebound.example"}).status_code == 403
        for name in ("", " ", "../..", "<script>", "a" * 41, "\x00", "\u0301a", "'a", "a\u200bb"):
            assert Labeller(url, name).post("/api/next").status_code == 401
        assert anna.get("/page/../desk.py").status_code == 404
        assert anna.get("/labels.jsonl").status_code == 404
        assert anna.take()["showing"] == task["showing"]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "nobody is in it"),
        ("anna short\n", "line 1: a line has a name, and a token of at least 16"),
        ("anna\n", "line 1: a line has a name"),
        (f"anna {TOKEN}\nben {TOKEN}\n", "line 2: the name or the token stands there twice"),
        (f"anna {TOKEN}\nanna {OTHER}\n", "line 2: the name or the token stands there twice"),
        (f"Zoë {TOKEN}\nzoe\u0308 {OTHER}\n", "line 2: the name or the token stands there twice"),
        (f"<b>anna {TOKEN}\n", "line 1"),
    ],
)
def test_a_file_of_people_that_cannot_be_used(tmp_path, text, fault):
    file = tmp_path / "people.txt"
    file.write_text(text)
    with pytest.raises(UserError, match=fault):
        read_people(file)


def test_a_file_of_people(tmp_path):
    file = tmp_path / "people.txt"
    file.write_text(f"\ufeff# our group\nAnna Maria  {TOKEN}\n\n李 {OTHER} lead\n")  # as Notepad saves it
    people = read_people(file).by_token
    assert people == {TOKEN: Person("Anna Maria"), OTHER: Person("李", lead=True)}
    assert checked_people("0.0.0.0", file).by_token == people
    with pytest.raises(
        UserError, match=r"--host 0.0.0.0: other machines reach this address. Name the people"
    ):
        checked_people("0.0.0.0", None)
    assert Path(file).exists()
