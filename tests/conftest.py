"""Two profiles of Hypothesis: 200 cases of each property, the same ones in every run, or 2,000 random ones."""

import os

from hypothesis import HealthCheck, settings

common = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("normal", max_examples=200, derandomize=True, **common)
settings.register_profile("nightly", max_examples=2000, print_blob=True, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))
