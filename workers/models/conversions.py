"""Imported once, by the fork server: what transformers compiles at a process's first `from_pretrained` (about a
thousand patterns, more than half of a small model's load) is there for every cell then."""

from transformers.conversion_mapping import get_checkpoint_conversion_mapping

get_checkpoint_conversion_mapping("gpt_neox")
