"""Models on one device: where the weights come from, how they get there, what the loaded model says of itself."""

import errno


class LoadError(Exception):
    """A model, its configuration or its tokenizer cannot be had. One line: what, why, remedy."""


class Unavailable(LoadError):
    """It cannot be had here and now, for a reason outside the model: the hub, the network, a token, a store, a disk, a
    folder or a package that this node lacks."""


def kind_of(error: BaseException) -> type[LoadError]:
    """What an error while a model is read amounts to: `Unavailable` where a package is missing or a disk is full."""
    is_full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    return Unavailable if is_full or isinstance(error, ImportError | Unavailable) else LoadError
