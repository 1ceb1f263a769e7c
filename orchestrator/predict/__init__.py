"""How much memory and time a cell should take, from configs alone: no weight is loaded, no device is
touched.
"""
