"""What the disk caches of compiled kernels are keyed on."""

import hashlib
from pathlib import Path


def _digest() -> str:
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


#: Of all kernel files: Numba looks at the file of an entry point alone (numba#1833).
DIGEST = _digest()
