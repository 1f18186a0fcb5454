"""What every test shares: real data, read once, and a store of its own."""

import pytest
from hypothesis import settings

settings.register_profile("calm", deadline=None, database=None)  # a busy machine must not fail a law
settings.load_profile("calm")


@pytest.fixture(scope="session")
def mnist_5k():
    from regcompare.config import RunConfig
    from regcompare.data import load

    return load(RunConfig())
