"""Files that are there whole or not at all. Knows nothing of what is in them."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: Path, *, permissions: int = 0o666, on_disk: bool = False) -> Iterator[BinaryIO]:
    """A hidden file beside `path`, to be written, that becomes `path` if the block ends well, over what was there, and
    vanishes otherwise.

    Args:
        path: in a folder that there is.
        permissions: of the file, less what the process's umask takes away.
        on_disk: wait until its bytes are on the disk before it gets its name.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    try:
        # Not tempfile's, whose 0600 would hide the result from others who may read the folder.
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, permissions), "wb") as file:
            yield file
            if on_disk:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # what went wrong before says more
            temporary.unlink()
