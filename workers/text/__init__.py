"""Real text as token ids: the same ids for every mode."""


class CorpusError(Exception):
    """A corpus cannot be had, or is too short. One line: what, why, remedy."""


class CorpusUnavailable(CorpusError):
    """It cannot be had here and now, for a reason outside the text, as `workers.models.Unavailable`."""
