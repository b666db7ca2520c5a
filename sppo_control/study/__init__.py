"""The study: what its results files hold, statistics, figures, tables."""
