"""What all tests begin with."""

from __future__ import annotations

import signal

import pytest

from broker_config.managed import find_mosquitto

# A run that was started in the background may have been told to ignore Ctrl-C, and so would be every program that a test
# starts and ends by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def mosquitto_only() -> None:
    """Skips a test that is about mosquitto alone where there is none."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
