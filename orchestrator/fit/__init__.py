"""Whether a model fits a card, and how far: no sweep file, no device, no weights."""
