"""Does a model still find what it read? Tasks with known answers in texts of an exact length. Pure: free of torch and of devices.

The tasks are those of passkey retrieval (arXiv:2305.16300) and RULER (arXiv:2404.06654), written anew.
"""
