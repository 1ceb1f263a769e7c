import os
import sys
from pathlib import Path

# `python -m` puts the folder that it is called in before everything else: a file random.py or a folder workers/ there
# would be imported in place of the library's or of this project's.
if sys.path[0] == os.getcwd() != str(Path(__file__).resolve().parents[1]):
    del sys.path[0]

from jobs.cli import main

main()
