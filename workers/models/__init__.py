"""Models on one device: where the weights come from, how they get there, what the loaded model says of itself."""


class LoadError(Exception):
    """A model, its configuration or its tokenizer cannot be had. One line: what, why, remedy."""
