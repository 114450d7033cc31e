"""What the fuzzers draw from, and what they expect: success, or an error for the user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from hypothesis import settings
from hypothesis import strategies as st

from configs.error_messages import all_keys
from configs.errors import UserError
from tests.contract.bad_inputs.entry import LONGEST

quick = settings(max_examples=60, deadline=None)

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just(10**400)
    | st.text(st.characters(codec=None, categories=["Cs", "Cc", "L"]), max_size=8)
)  # fmt: skip
known = st.sampled_from([*sorted({keys[-1] for keys in all_keys()}), "x"])
trees = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(known, inner, max_size=5),
    max_leaves=15,
)
contents = st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode(errors="replace"))


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """`content` cut somewhere, with some bytes of it replaced."""
    places = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=4)

    def change(cut: int, edits: list[tuple[int, int]]) -> bytes:
        changed = bytearray(content)
        for at, value in edits:
            changed[at] = value
        return bytes(changed[:cut])

    return st.builds(change, st.integers(0, len(content)) | st.just(len(content)), places)


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Success, or an error for the user of reasonable length."""
    try:
        yield
    except UserError as error:
        assert 0 < len(str(error)) < 3 * LONGEST
