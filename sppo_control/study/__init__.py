"""The study: algorithm variants, grids of runs, results files, statistics, figures and tables.

| file          | what                                                                                 |
| ------------- | ------------------------------------------------------------------------------------ |
| variants.py   | one table of algorithm variants: script, flags, label, colour; scripts of your own   |
| grids.py      | grids of runs as TOML files (results/grids/)                                         |
| cells.py      | what identifies a run of a grid, and whether a results file contains it              |
| results.py    | reads results files                                                                  |
| statistics.py | interquartile means, intervals, tests                                                |
| figures.py    | the figures of scripts/report.py                                                     |
| tables.py     | the tables of scripts/report.py                                                      |
| rates.py      | each algorithm at its best learning rate, for scripts/report_rates.py                |
| credit.py     | exact gradients of all algorithms on the chains of sppo/Credit-v0, and sampled ones  |
| credit_figures.py | the pictures of scripts/credit.py                                                |

It needs the extra `study`. If that is not installed, the import raises `extras.MissingExtra`. Its message is the command.
"""

from sppo_control import extras

extras.require("study", "matplotlib", "pandas", "pyarrow", "scipy", wanted_by="the study")
