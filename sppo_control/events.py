"""TensorBoard's log, written by the training's own thread.

TensorBoard's writer has a thread of its own. Where the disk is full or the folder is read-only, that thread prints twenty
lines and ends, and the training hears of it later or never. Here a failed write is an error at the place of the write.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import (
    Event,
    SessionLog,
    SourceMetadata,
)
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams
from torch.utils.tensorboard.writer import FileWriter

from .tracking import Tracker

_numbers = itertools.count()


class EventFile:
    """One event file, with the methods of TensorBoard's EventFileWriter."""

    def __init__(self, folder: Path) -> None:
        # TensorBoard reads the files of a folder in the order of their names, which begin with the second.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.path = folder / name
        self._file = self.path.open("xb")
        self._records = RecordWriter(self._file)
        source = SourceMetadata(writer="sppo_control.events")
        self.add_event(Event(wall_time=time.time(), file_version="brain.Event:2", source_metadata=source))
        self.flush()

    def get_logdir(self) -> str:
        """The folder."""
        return str(self.path.parent)

    def add_event(self, event: Event) -> None:
        """Append an event.

        Raises:
            OSError: it cannot be written.
        """
        self._records.write(event.SerializeToString())

    def flush(self) -> None:
        """Hand all events to the operating system, which keeps them if this process dies.

        Raises:
            OSError: they cannot be written.
        """
        self._file.flush()

    def check(self) -> None:
        """Flush, and see that the file is still in its folder. A removed file can be written without any error.

        Raises:
            OSError: it cannot be written, or it is not there any more.
        """
        self.flush()
        os.fsync(self._file.fileno())
        on_disk, opened = os.stat(self.path), os.fstat(self._file.fileno())
        if (on_disk.st_dev, on_disk.st_ino) != (opened.st_dev, opened.st_ino):
            raise FileNotFoundError(2, "another file has its name", str(self.path))

    def close(self) -> None:
        """Flush and close.

        Raises:
            OSError: what was left could not be written; the file is closed all the same.
        """
        self._file.close()  # Python closes the file even where the flush before it fails


class Writer(SummaryWriter):
    """torch's SummaryWriter over one `EventFile`, and over a tracker if there is one.

    Args:
        folder: where to write.
        purge_step: TensorBoard drops what earlier files of the folder have from this step on.
        tracker: it gets the scalars of every update, too.
    """

    def __init__(self, folder: Path, purge_step: int, tracker: Tracker | None = None) -> None:
        self.file, self.tracker = EventFile(folder), tracker
        self.file_writer: Any = None
        super().__init__(str(folder), purge_step=purge_step)

    def begin_session(self, arguments: Mapping[str, Any]) -> None:
        """Show the run on the page HPARAMS.

        torch's `add_hparams` writes into a folder of its own. It also writes a list of columns, and the page shows no
        other columns for all runs. Without that list the page has the arguments and curves of every run.

        Args:
            arguments: name to value. None is left out; what is no number, text or bool is shown as text.

        Raises:
            OSError: it cannot be written.
        """
        values = {k: v if v is None or isinstance(v, int | float | str) else str(v) for k, v in arguments.items()}
        self._get_file_writer().add_summary(hparams(values, {})[1])

    def add_update(self, scalars: Mapping[str, float], step: int) -> None:
        """Write the scalars of one update.

        Args:
            scalars: tag to value.
            step: x-axis.

        Raises:
            OSError: they cannot be written.
        """
        for tag, value in scalars.items():
            self.add_scalar(tag, value, step)
        if self.tracker is not None:
            self.tracker.log(scalars, step)

    def end_session(self) -> None:
        """Say on the page HPARAMS that the run is complete.

        Raises:
            OSError: it cannot be written.
        """
        self._get_file_writer().add_summary(hparams({}, {})[2])

    def _get_file_writer(self) -> Any:
        """What torch asks for before each write. Its own version would make TensorBoard's writer."""
        if self.file_writer is None:
            writer: Any = FileWriter.__new__(FileWriter)  # its constructor would start the thread
            writer.event_writer = self.file
            self.file_writer = writer
            self.all_writers: Any = {writer.get_logdir(): writer}
            version = Event(step=self.purge_step, file_version="brain.Event:2", wall_time=time.time())
            start = SessionLog(status=SessionLog.START)
            self.file.add_event(version)
            self.file.add_event(Event(step=self.purge_step, session_log=start, wall_time=time.time()))
            self.file.flush()
        return self.file_writer
