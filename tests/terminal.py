"""A terminal for tests: a pseudo terminal to write to, and what its screen shows afterwards."""

import contextlib
import fcntl
import os
import re
import struct
import termios
import threading


def screen(text, columns):
    """The lines of a terminal that has been sent `text`; what was scrolled away is there too. Colours are left out."""
    lines, row, column = [""], 0, 0
    for number, command, character in re.findall(r"\x1b\[(\d*)([A-Za-z])|([^\x1b])", text):
        if command == "A":
            row = max(0, row - int(number or 1))
        elif command == "K":
            lines[row] = lines[row][:column]
        elif command == "m":
            pass
        elif command:
            raise AssertionError(f"an escape sequence that --watch does not need: {number}{command}")
        elif character == "\r":
            column = 0
        elif character == "\n":
            row += 1
        else:
            if column == columns:
                row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row][:column].ljust(column) + character + lines[row][column + 1 :]
            column += 1
        lines += [""] * (row + 1 - len(lines))
    return [line.rstrip() for line in lines]


class Terminal:
    """The program's side is `file`; `text` is all that was written to it."""

    def __init__(self, columns, rows):
        self.columns = columns
        self.master, self.slave = os.openpty()
        self.resize(columns, rows)
        self.settings = termios.tcgetattr(self.slave)
        self.bytes = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def resize(self, columns, rows):
        self.columns = columns
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _read(self):
        with contextlib.suppress(OSError):  # the other side was closed
            while part := os.read(self.master, 2**16):
                self.bytes += part

    def same_settings(self):
        return termios.tcgetattr(self.slave) == self.settings

    def close(self):
        os.close(self.slave)
        self._reader.join(10)
        os.close(self.master)

    @property
    def text(self):
        return self.bytes.decode()

    def screen(self, columns=None):
        return screen(self.text, columns or self.columns)


@contextlib.contextmanager
def terminal(columns=100, rows=30):
    """After the block, `text` and `screen()` are complete."""
    opened = Terminal(columns, rows)
    try:
        yield opened
    finally:
        opened.close()


@contextlib.contextmanager
def terminal_for_errors(monkeypatch, columns=100, rows=30):
    """The same, with sys.stderr of this process on it."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    with (
        terminal(columns, rows) as opened,
        os.fdopen(os.dup(opened.slave), "w", encoding="utf-8") as file,
        monkeypatch.context() as patch,
    ):
        patch.setattr("sys.stderr", file)
        yield opened


def pictures(lines):
    """Which lines of a screen are titles of a picture of --watch."""
    return [i for i, line in enumerate(lines) if line.startswith("     success and V(s_0)")]
