"""A policy and a decoder from outside the project, as a package of one's own would bring them."""

from workers.modes import CachePolicy, Decoder, Layout


def _every_token(parameters: None, tokens: int, rows: int, layer_window: int | None) -> int:
    return tokens if layer_window is None else min(tokens, layer_window - 1 + rows)


def _unbounded(parameters: None) -> None:
    return None


EVERYTHING = CachePolicy(
    name="everything",
    mode="everything",
    grows=True,
    sees_all=True,
    absolute_positions=True,
    layout=Layout.APPENDED,
    kept=_every_token,
    context=_unbounded,
    engines={"eager": "oomline_example.cache:everything"},
    colour="#0f9d75",
)

STEADY = Decoder(
    name="steady",
    suffix="+steady",
    engines={"eager": "oomline_example.cache:steady"},
    matches_plain=True,
    dash=(2, 2, 0),
)
