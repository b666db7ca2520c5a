"""--track: a run's curves in Trackio or Weights & Biases, beside TensorBoard's file.

Both packages have the same three calls (init, log, finish). The run folder stays the record of the run. So a tracker that
fails in the middle of a run is left out with one line, and the run goes on.
"""

from __future__ import annotations

import importlib
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from . import extras
from .errors import UserError

Service = Literal["trackio", "wandb"]
"""Values of --track."""
AXIS = "global_step"
"""CleanRL's name of the x-axis: environment steps, or a language model's responses."""


class Tracker:
    """One run in Trackio or Weights & Biases. Its name is that of the run folder, so a resumed run goes on in it.

    The project is sppo_control, or what WANDB_PROJECT or TRACKIO_PROJECT says. Each package's own variables decide where
    the curves go: WANDB_MODE=offline needs no network and no account, and Trackio writes to this machine unless
    TRACKIO_SPACE_ID names a space.

    Args:
        service: which of the two.
        folder: the run folder.
        config: the script's arguments and the versions, as in config.json.

    Raises:
        MissingExtra: the package is not installed.
        UserError: the service refuses to begin, for example without an account.
    """

    def __init__(self, service: Service, folder: Path, config: Mapping[str, Any]) -> None:
        extras.require(service, service, wanted_by=f"--track {service}")
        self.service = service
        self._module: Any = importlib.import_module(service)
        project = os.environ.get(f"{service.upper()}_PROJECT") or "sppo_control"
        own: dict[str, Any] = {"resume": "allow"}
        if service == "wandb":  # the id is what a resumed run is found by
            own |= {"id": folder.name, "dir": str(folder), "save_code": False}
        elif space := os.environ.get("TRACKIO_SPACE_ID"):
            own |= {"space_id": space}
        try:
            self._run: Any = self._module.init(project=project, name=folder.name, config=dict(config), **own)
            if (
                service == "wandb"
            ):  # steps of a resumed run begin at the checkpoint, and wandb's own step never goes back
                self._run.define_metric(AXIS)
                self._run.define_metric("*", step_metric=AXIS)
        except Exception as error:  # of a service: a missing account, no network, a directory
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(f"--track {service} cannot begin ({reason}); {_way_out(service)}") from error

    def log(self, scalars: Mapping[str, float], step: int) -> None:
        """The scalars of one update.

        Args:
            scalars: tag to value, as in TensorBoard; what is not finite is left out.
            step: x-axis.
        """
        if self._run is None:
            return
        finite = {tag: value for tag, value in scalars.items() if math.isfinite(value)}
        try:
            if self.service == "wandb":
                self._run.log({**finite, AXIS: step})
            else:
                self._run.log(finite, step=step)
        except Exception as error:
            self._leave_out(error)

    def finish(self, summary: Mapping[str, float] | None = None) -> None:
        """End the run there.

        Args:
            summary: numbers of the whole run, such as the success after training; None if it was interrupted.
        """
        if self._run is None:
            return
        try:
            if summary is not None and self.service == "wandb":
                self._run.summary.update(dict(summary))
            elif summary is not None:
                self._run.log(dict(summary))
            self._run.finish()
        except Exception as error:
            self._leave_out(error)
        self._run = None

    def _leave_out(self, error: Exception) -> None:
        self._run = None
        reason = " ".join(str(error).split()) or type(error).__name__
        print(
            f"note: --track {self.service} failed ({reason[:300]}), so it has no more of this run; the run folder has all",
            file=sys.stderr,
        )


def _way_out(service: Service) -> str:
    if service == "wandb":
        return "WANDB_MODE=offline needs no account, or run `wandb login`; or leave --track out"
    return "see what is wrong there, or leave --track out"
