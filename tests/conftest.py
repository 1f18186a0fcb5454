"""What every test shares: real data, read once, and a store of its own."""

import pytest


@pytest.fixture(scope="session")
def mnist_5k():
    from regcompare.config import RunConfig
    from regcompare.data import load

    return load(RunConfig())
