"""The file of labels: what is in it is whole, and what a kill cut short was never promised."""

from __future__ import annotations

import os

import pytest

from configs.errors import UserError
from data.people.events import LabelFile, Labels, Shown, Skipped, Submitted, Undone, read_events

SHOWN = Shown(showing="showing-1", task="task-1", labeller="anna", order=(1, 0))
RANKED = Submitted(showing="showing-1", submission="submission-1", seconds=2.5, ranks=(1, 0))


def written(tmp_path, *events):
    file = tmp_path / "labels.jsonl"
    labels = LabelFile(file)
    for event in events:
        labels.append(event)
    return file


def test_events_come_back_as_they_were(tmp_path):
    skipped = Skipped(showing="showing-1", submission="s-2", seconds=1, reason="harmful", note="a 🦔")
    events = [SHOWN, RANKED, Undone(showing="showing-1"), skipped]
    assert read_events(written(tmp_path, *events)) == events


def test_a_line_that_a_kill_cut_short_is_dropped(tmp_path):
    file = written(tmp_path, SHOWN, RANKED)
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        expected = whole[:length].count(b"\n")
        assert len(read_events(file)) == expected
        LabelFile(file)  # a server that starts again removes the rest
        assert file.read_bytes().count(b"\n") == expected
        assert file.read_bytes() == whole[: file.stat().st_size]


def test_a_full_disk_leaves_no_half_line(tmp_path, monkeypatch):
    file = written(tmp_path, SHOWN)
    before, labels = file.read_bytes(), LabelFile(file)
    real = os.write

    def write_some(descriptor, content):
        if len(content) < 20:
            raise OSError(28, "No space left on device")
        return real(descriptor, content[:20])

    monkeypatch.setattr(os, "write", write_some)
    with pytest.raises(OSError, match="No space left"):
        labels.append(RANKED)
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"{}\n", "Unable to extract tag"),
        (b'{"event": "shown"}\n', "showing: Field required"),
        (b"\xff\xfe\n", "Invalid JSON"),
        (b'{"event": "submitted", "showing": "a", "submission": "b", "seconds": -1}\n', "seconds"),
        (b'{"event": "submitted", "showing": "a", "submission": "b", "seconds": 1, "rating": 8}\n', "rating"),
    ],
)
def test_a_damaged_line_is_named(tmp_path, line, fault):
    file = written(tmp_path, SHOWN)
    file.write_bytes(file.read_bytes() + line)
    with pytest.raises(UserError, match=r"labels.jsonl, line 2: damaged \(.*" + fault):
        read_events(file)


def test_what_was_undone_does_not_count_but_its_submission_does():
    labels = Labels([SHOWN, RANKED, Undone(showing="showing-1")])
    assert labels.outcomes == {} and labels.undone == {"showing-1": RANKED}
    assert labels.has("submission-1")  # a page that sends it once more must not bring it back


def test_later_events_do_not_change_a_snapshot():
    labels = Labels([SHOWN])
    snapshot = labels.snapshot()
    labels.add(RANKED)
    labels.add(Undone(showing="showing-1"))
    assert (snapshot.events, snapshot.outcomes, snapshot.undone) == (1, {}, {})
    assert snapshot.showings == labels.showings and not snapshot.has("submission-1")
