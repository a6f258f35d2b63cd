"""Every test that asks for an engine runs on each that is installed."""

from __future__ import annotations

import pytest

from broker_config.managed import Engine, find_mosquitto, has_embedded


@pytest.fixture(params=["mosquitto", "embedded"])
def engine(request: pytest.FixtureRequest) -> Engine:
    installed = find_mosquitto() is not None if request.param == "mosquitto" else has_embedded()
    if not installed:
        pytest.skip(f"{request.param} is not installed")
    engine: Engine = request.param
    return engine
