"""A model whose libraries take their time, in Ray's workers alone."""

import sys
import time

from tests.toys import Doubler

if sys.argv[0].endswith("default_worker.py"):
    time.sleep(4)


class SlowToImport(Doubler):
    """Doubles."""
