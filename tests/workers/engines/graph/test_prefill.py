"""Chunks of one shape cover a prompt."""

from hypothesis import given
from hypothesis import strategies as st

from workers.engines.graph.prefill import starts


@given(chunk=st.integers(1, 64), more=st.integers(0, 500))
def test_chunks_cover_a_prompt_and_never_leave_it(chunk: int, more: int) -> None:
    prompt_tokens = chunk + more
    read = 0
    for start in starts(prompt_tokens, chunk):
        assert 0 <= start <= read  # no token is left out
        assert start + chunk > read  # each reads something new
        read = start + chunk
    assert read == prompt_tokens
