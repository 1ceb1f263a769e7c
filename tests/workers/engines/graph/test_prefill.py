"""Chunks cover a prompt, each token once; only the first is short."""

from hypothesis import given
from hypothesis import strategies as st

from workers.engines.graph.prefill import chunks


@given(chunk=st.integers(1, 64), tokens=st.integers(1, 500))
def test_chunks_cover_a_prompt_once(chunk: int, tokens: int) -> None:
    found = list(chunks(tokens, chunk))
    assert [position for first, end in found for position in range(first, end)] == list(range(tokens))
    assert 1 <= found[0][1] <= chunk
    assert all(end - first == chunk for first, end in found[1:])
