"""Print the Markdown table of tasks that docs/tasks.md shows, or of tasks of yours.

python -m sppo_envs
python -m sppo_envs mytasks:my/Task-v0
"""

import sys

from . import HARDER, TASKS, table

try:
    print(table(sys.argv[1:] or TASKS + HARDER))
except ValueError as error:
    sys.exit(f"error: {error}")
