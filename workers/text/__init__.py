"""Real text as token ids: the same ids for every mode."""


class CorpusError(Exception):
    """A corpus cannot be had, or is too short. One line: what, why, remedy."""
