"""How glibc's allocator treats this process; elsewhere these do nothing. Numbers and meanings: mallopt(3)."""

import contextlib
import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8


def keep_freed(size: int = 1 << 30) -> None:
    """Keep up to `size` freed bytes for the next request.

    A training step needs the same few megabytes each time; glibc would hand them back and fetch them page by page again.
    """
    _set(M_TRIM_THRESHOLD, size)
    _set(M_MMAP_THRESHOLD, size)


def one_arena() -> None:
    """One heap for all threads: a page server has many, and what each keeps in a heap of its own adds up. Arrow uses it too."""
    _set(M_ARENA_MAX, 1)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # read when pyarrow is first imported


def give_back() -> None:
    """Hand pages that hold nothing any more back to the system, those between others included; a few milliseconds."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)


def _set(option: int, value: int) -> None:
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not glibc
        ctypes.CDLL(None).mallopt(option, value)
