"""One process at a time in a run directory."""

import fcntl
import os
import time
from pathlib import Path

LOOK_AGAIN = (0.05, 0.1, 0.2)
"""Seconds between attempts before a held lock is believed."""


class Locked(Exception):
    """Another live process holds the lock."""


class DirectoryLock:
    """An advisory lock that the operating system drops when its process ends, however it ends."""

    def __init__(self, path: Path):
        self._file = open(path, "a+")  # noqa: SIM115 (the open file is the lock)
        for wait in (*LOOK_AGAIN, None):  # `is_locked` of another process may hold it for an instant
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if wait is not None:
                    time.sleep(wait)
                    continue
                self._file.seek(0)
                owner = self._file.read().strip() or "unknown"
                self._file.close()
                raise Locked(f"{path.parent} is in use by process {owner}") from None
        self._file.truncate(0)
        self._file.write(f"{os.getpid()}\n")
        self._file.flush()

    def release(self) -> None:
        self._file.close()


def is_locked(path: Path) -> bool:
    """Whether a live process holds the lock, without taking it."""
    if not path.exists():
        return False
    with open(path) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
