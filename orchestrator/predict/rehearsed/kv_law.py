"""The law of one model's cache by rehearsal, kept on disk by the config's content."""

from typing import Any

from orchestrator.predict.rehearsed.store import answered


def rehearsed_law(config: Any, dtype: str, batch_size: int = 1) -> tuple[int, int]:
    """(bytes per token, constant bytes) of all sequences, beyond every window. A second, where it was not asked before.

    Raises `NotRehearsable`.
    """
    content = f"{type(config).__name__} {config.to_json_string(use_diff=False)}"
    question = {"ask": "kv law", "config": content, "dtype": dtype, "batch_size": batch_size}

    def find() -> list[int]:
        import torch  # seconds, which few commands need

        from workers.rehearsal.kv_law import kv_law

        law = kv_law(config, getattr(torch, dtype), batch_size)
        return [law.bytes_per_token, law.constant_bytes]

    per_token, constant = answered(question, find)
    return per_token, constant
