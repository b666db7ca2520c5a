"""The checks and hints of each exercise: a module has the exercise's name, and has `CHECKS` and `HINTS`."""
