"""Where memory runs out: the questions of a sweep, the search that answers one, what an answer spares
others.
"""
