"""Predictions by rehearsal: an engine's own passes, replayed through the allocator model."""
