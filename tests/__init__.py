import os
from pathlib import Path

if os.environ.get("NUMBA_BOUNDSCHECK"):  # before numba is imported: no kernel of the usual cache checks its bounds
    os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "numba-bounds"))
