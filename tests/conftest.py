"""Where a package of an optional extra is missing, a test that needs it is skipped, with the product's own words.

Hypothesis has two profiles: 200 cases of each property, the same ones in every run, or 2,000 random ones.
"""

import os
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from sppo_control.extras import MissingExtra

OPTIONAL = (
    "Box2D", "datasets", "envpool", "h5py", "imageio", "imageio_ffmpeg", "math_verify", "matplotlib", "minari",
    "mujoco", "numba", "optuna", "pandas", "pyarrow", "pygame", "ray", "scipy", "stable_baselines3", "threadpoolctl",
    "transformers", "trl",
)  # fmt: skip
MISSING = {name for name in OPTIONAL if find_spec(name) is None}
"""Looked up before any test can hide a package."""


def skip_if_missing():
    """Only where the package is truly missing: a test that hides one must handle the refusal itself."""
    try:
        return (yield)
    except MissingExtra as error:
        if error.name not in MISSING:
            raise
        pytest.skip(str(error))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem):
    return (yield from skip_if_missing())


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    return (yield from skip_if_missing())


common = {"deadline": None, "database": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("normal", max_examples=200, derandomize=True, **common)
settings.register_profile("nightly", max_examples=2000, print_blob=True, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "normal"))
