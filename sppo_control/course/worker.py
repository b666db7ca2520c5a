"""The process in which one exercise is graded; see `grading.work`."""

import sys
from pathlib import Path

from .grading import work

if __name__ == "__main__":
    work(Path(sys.argv[1]), Path(sys.argv[2]), *map(float, sys.argv[3:]))
