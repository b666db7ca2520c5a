"""Where scripts write: tried before the work, and by one process at a time.

A script marks the arguments that name what it writes, and the command line tries them (cli.py):

    out: Annotated[Path, File(".png", ".svg")] = Path("curve.png")
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, get_type_hints

from .checkpoints import writing
from .errors import UserError
from .limits import flag


class File:
    """Marks an argument that names a file to write.

    Args:
        endings: what the name may end in; none is anything.
        new_folder: the script makes the file's folder if there is none.
    """

    def __init__(self, *endings: str, new_folder: bool = False) -> None:
        self.endings, self.new_folder = endings, new_folder

    def check(self, path: Path) -> str:
        """What is wrong with the path; empty if nothing is.

        Raises:
            OSError: nothing can be written there.
        """
        mode = _mode(path)
        if mode is not None and stat.S_ISDIR(mode):
            return "it is a folder; name a file in it"
        if self.endings and path.suffix not in self.endings:
            return f"its name must end in {' or '.join(self.endings)}"
        if mode is not None and not stat.S_ISREG(mode):
            return "it is something else than a file; name another one"
        if mode is not None and not os.access(path, os.W_OK):
            return "the file may not be changed; make it writable, or name another one"
        _mode(path.with_name(f".{path.name}.writing"))  # a longer name, under which files are written first
        if not self.new_folder and not path.parent.is_dir():
            return f"there is no folder {path.parent}; name a file in a folder that exists and is writable"
        return _try_folder(path.parent)


class Folder:
    """Marks an argument that names a folder to write to. The script makes it if there is none."""

    def check(self, path: Path) -> str:
        """What is wrong with the path; empty if nothing is.

        Raises:
            OSError: nothing can be written there.
        """
        return _try_folder(path)


def check_outputs(args: Any) -> None:
    """Try all that a script will write, before its work. Nothing is left behind.

    Args:
        args: a dataclass, whose marked fields are paths, texts or None.

    Raises:
        ValueError: names the argument, its value and what is wrong.
    """
    for name, hint in get_type_hints(type(args), include_extras=True).items():
        value = getattr(args, name)
        for mark in getattr(hint, "__metadata__", ()):
            if value is not None and isinstance(mark, File | Folder):
                check_output(flag(name), Path(value), mark)


def check_output(name: str, path: Path, mark: File | Folder) -> None:
    """Try one path that a script will write.

    Args:
        name: the flag that the message names.
        path: file or folder.
        mark: which of the two.

    Raises:
        ValueError: names the flag, the path and what is wrong.
    """
    try:
        wrong = mark.check(path)
    except (OSError, ValueError) as error:
        wrong = f"{getattr(error, 'strerror', None) or error}; name another place, or make it writable"
    if wrong:
        raise ValueError(f"cannot write {name} {str(path)[:200]}: {wrong}")


def _mode(path: Path) -> int | None:
    """Kind and permissions of what is there; None if there is nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


def _try_folder(folder: Path) -> str:
    """What is wrong with a folder that exists, or will be made; empty if a file can be written to it."""
    folder = folder.absolute()
    while (mode := _mode(folder)) is None:
        folder = folder.parent
    if not stat.S_ISDIR(mode):
        return f"{folder} is no folder; name another place"
    with tempfile.TemporaryFile(dir=folder):
        return ""


# ----------------------------------------------------------------------------------------------- one writer at a time
@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Keep other processes from writing the same file: inside this context a second `only_writer` is refused.

    The lock is one of the operating system, on a file beside `path`. It ends with the process, however that ends, so no
    lock is ever stale. The file says which process has it.

    Raises:
        UserError: another process has it, or the file of the lock cannot be written.
    """
    beside = path.with_name(f".{path.name}.lock")
    while True:
        with writing(beside):
            file = beside.open("a+b")
        try:
            _lock(file)
        except (BlockingIOError, PermissionError) as error:  # of Unix, of Windows
            with file, contextlib.suppress(OSError):  # Windows does not let others read it
                file.seek(0)
                who = file.read(200).decode(errors="replace")
            who = f" ({who})" if who else ""
            raise UserError(
                f"another process{who} is writing {path}; wait until it ends, or name another --out"
            ) from error
        # The process that had the lock may have removed the file after it was opened here.
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(beside), os.fstat(file.fileno())):
                break
        file.close()
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield
    finally:
        if sys.platform != "win32":
            beside.unlink(missing_ok=True)
        file.close()
        if sys.platform == "win32":  # an open file cannot be removed there
            with contextlib.suppress(OSError):
                beside.unlink()


def _lock(file: IO[bytes]) -> None:
    """Lock an open file until it is closed; the first byte of it, on Windows.

    Raises:
        BlockingIOError, PermissionError: another process has the lock.
    """
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def wait_for_heirs(file: IO[Any]) -> None:
    """Wait until no other process holds an open file on which this was called, or has inherited it; then hold it.

    On Windows, where programs do not inherit locks, this does nothing.
    """
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
