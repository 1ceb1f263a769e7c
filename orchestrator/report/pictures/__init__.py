"""Pictures of a run, drawn by Vega-Lite: one colour per cache policy, dashes for speculation, units on every axis."""
