"""Why memory ran out where it did: the parts just before, and measured growth beside what the config
implies.
"""
