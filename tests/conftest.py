"""What all tests begin with, and which worker runs which of them."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import pytest
import thoroughness

from broker_config.managed import ManagedBroker, find_mosquitto

# A run that was started in the background may have been told to ignore Ctrl-C, and so would be every program that a test
# starts and ends by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Compiled once, instead of by each worker and by each of the hundreds of programs that tests start.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False


thoroughness.register()


@pytest.fixture
def mosquitto_only() -> None:
    """Skips a test that is about mosquitto alone where there is none."""
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")


# ---------------------------------------------------------------- workers

SLOW_FIRST = (
    "tests/docs/test_pages.py", "tests/integration/", "tests/device_agent/doctor/", "tests/distree/apps/dashboard/"
)  # fmt: skip
"""What takes longest begins first, so that no worker is left with it at the end."""

ONE_BY_ONE = SLOW_FIRST[:3]
"""Where each test has a site of its own, so that workers can share a file. Others go to a worker as whole files: their
tests may share a broker or a browser."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Two more than cores, since tests wait more than they compute; PYTEST_XDIST_AUTO_NUM_WORKERS has the last word."""
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else len(os.sched_getaffinity(0)) + 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return the scheduler of `--dist loadfile`: in the order of collection, and some files not as a whole."""
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid if nodeid.startswith(ONE_BY_ONE) else super()._split_scope(nodeid)

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith(SLOW_FIRST))


# ---------------------------------------------------------------- brokers

_start_broker = ManagedBroker.start
_test: pytest.Item | None = None


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "any_broker: takes the broker that is installed; CI runs it on each of the two")
    config.addinivalue_line(
        "markers", "slow: takes half a minute or more of computing; `make test-slow`, and CI, run it"
    )


def pytest_runtest_setup(item: pytest.Item) -> None:
    global _test
    _test = item


def _start_broker_if_marked(broker: ManagedBroker) -> None:
    """Else `make test-embedded` would leave the test out."""
    is_marked = _test is None or _test.get_closest_marker("any_broker") is not None
    assert broker.engine != "auto" or is_marked, "name the broker's engine, or mark the test with any_broker"
    _start_broker(broker)


ManagedBroker.start = _start_broker_if_marked  # type: ignore[method-assign]
