"""Chunks cover what is left of a prompt, each token once; only the first is short."""

from hypothesis import given
from hypothesis import strategies as st

from workers.engines.graph.prefill import chunks


@given(chunk=st.integers(1, 64), kept=st.integers(0, 500), left=st.integers(1, 500))
def test_chunks_cover_a_prompt_once(chunk: int, kept: int, left: int) -> None:
    found = list(chunks(kept, kept + left, chunk))
    assert [position for first, end in found for position in range(first, end)] == list(
        range(kept, kept + left)
    )
    assert 1 <= found[0][1] - kept <= chunk
    assert all(end - first == chunk for first, end in found[1:])
