"""What each task takes where the command line is silent; the task's own file says it."""

from __future__ import annotations

from sppo_envs import TASKS as _IDS
from sppo_envs import Defaults, task

TASKS = {env_id: found.defaults for env_id in _IDS if (found := task(env_id)) is not None}
"""By environment id. Any other environment takes `Defaults()`."""


def defaults(env_id: str) -> Defaults:
    """What `env_id` takes."""
    found = task(env_id)
    return Defaults() if found is None else found.defaults
