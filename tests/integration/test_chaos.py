"""Some faults of `make chaos`, in short: no input is lost, answered wrongly or answered twice and differently."""

from __future__ import annotations

import pytest

from benchmarks.chaos.faults import FAULTS
from benchmarks.chaos.play import Tempo, play
from benchmarks.chaos.scene import ORIGINS
from benchmarks.chaos.site import Options
from broker_config.managed import find_mosquitto

INPUTS = 400


@pytest.mark.parametrize("name", ["kill:origin", "resetting:middle", "plans:published"])
def test_every_input_is_accounted_for(name):
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed: apt install mosquitto")
    played = play(FAULTS[name], Tempo(INPUTS), Options())
    assert played.failures == []
    assert played.accounts.keys() == ORIGINS.keys()
    for origin, account in played.accounts.items():
        assert account.offered >= INPUTS / len(ORIGINS)
        assert account.accepted == account.offered
        assert account.wrong == account.lost == 0
        if ORIGINS[origin]:
            assert account.labelled + account.shed == account.offered
            assert account.twice_other == 0


def test_faults_have_names_of_their_own():
    assert all(name == fault.name for name, fault in FAULTS.items())
    assert {name.partition(":")[0] for name in FAULTS} == {
        "kill", "pause", "restart", "half-open", "delayed", "slow", "stalling", "resetting", "same-name", "disk", "clock",
        "plans",
    }  # fmt: skip
