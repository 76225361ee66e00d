"""Keeps compiled modules, before anything of ours is imported, even where the environment says otherwise.

Else each process that the tests start would spend a third of its start on compiling BCS again.
"""

import os
import sys

sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
