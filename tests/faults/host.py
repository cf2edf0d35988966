"""ktd's engine host, and SGLang's processes below it, with the points at which they can fail.

SGLang's children import the main module of their parent again, under another name; so this reaches
them too.
"""

from __future__ import annotations

import os
import sys

from ktd.sgl.host import main
from tests.faults.points import plant_in_ranks

plant_in_ranks()

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
