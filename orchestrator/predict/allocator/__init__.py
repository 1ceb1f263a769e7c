"""torch's CUDA caching allocator as a pure model, and traces replayed through it."""
