"""Whether another board has this board's name. Two agents of one name disconnect each other forever.

Connecting under the agent's client id would disconnect a running agent. So this reads what an agent publishes: the
retained state, the description and the reports of the device, and whether the boot id in them belongs to an agent on
this very machine (`device_agent.presence`).
"""

from __future__ import annotations

import time

from device_agent import presence
from device_agent.doctor.checks import Check, CheckContext, Finding, failed, ok, unknown
from device_agent.doctor.network import session
from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.codec import decode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus
from distree.messages.telemetry import Telemetry
from distree.topics import Kind
from distree.transport.packets import Published

_ALIVE = (DeviceStatus.INIT, DeviceStatus.READY, DeviceStatus.DRAINING)
_OWN_NAME = "give one of the two another device id, which is part of the client id"


class _Heard:
    """What arrived on the topics of the device."""

    def __init__(self, messages: list[Published]) -> None:
        self.state: DeviceState | None = None
        self.meta: DeviceMeta | None = None
        self.boots: list[str] = []
        """Boot ids in the order of arrival, from live messages: reports, and states that were not retained."""
        for message in messages:
            try:
                self._take(message)
            except RemoteProtocolError:
                continue  # another doctor's trial, or not a message of ours

    def _take(self, message: Published) -> None:
        match topics.parse(message.topic).kind:
            case Kind.STATE:
                self.state = decode(DeviceState, message.payload)
                if not message.retain and self.state.status in _ALIVE:
                    self._note(self.state.boot)
            case Kind.META:
                self.meta = decode(DeviceMeta, message.payload)
            case Kind.TELEMETRY:
                report: Telemetry = decode(Telemetry, message.payload)
                self._note(report.boot)

    def _note(self, boot: str) -> None:
        if boot not in self.boots:
            self.boots.append(boot)


def check_client_id(context: CheckContext) -> Finding:
    """No other board uses this board's name."""
    config = context.config
    heard, ours = _listen(context)
    here = presence.boots_here(config)
    if len(here) > 1:
        return failed(f"{len(here)} agents named {config.device} run on this machine", "stop all but one")
    if len(ours) > 1:
        return failed(f"the agent {config.device} on this machine keeps restarting", "check its log")
    strangers = [boot for boot in heard.boots if boot not in ours]
    if strangers:
        who = f"an agent named {config.device} runs on another machine{_described(heard.meta)}"
        return failed(who, _OWN_NAME)
    if here:
        return ok(f"{config.client_id} is in use by the agent on this machine, and by no other")
    if heard.state is not None and heard.state.status in _ALIVE:
        return unknown(
            f"{config.device} has the state {heard.state.status.value}, but is silent{_described(heard.meta)}",
            "if another board has this name, give one of the two another device id",
        )
    return ok(f"{config.client_id} is free" + ("" if heard.state is None else f" ({heard.state.status.value})"))


def _listen(context: CheckContext) -> tuple[_Heard, set[str]]:
    """Read what is retained for the device, and what it reports until two reports are due.

    Returns it with the boot ids of all agents that ran on this machine meanwhile.
    """
    config = context.config
    kinds = (Kind.STATE, Kind.META, Kind.TELEMETRY)
    telemetry = topics.device(config.site, config.device, Kind.TELEMETRY)
    ours = presence.boots_here(config)

    def has_reported() -> bool:
        # Checked with each message: an agent that is heard may be gone a moment later.
        ours.update(presence.boots_here(config))
        return sum(message.topic == telemetry for message in client.heard) >= 2

    with session(context) as client:
        until = context.until()
        for kind in kinds:
            topic = topics.device(config.site, config.device, kind)
            if topic not in context.disconnecting:
                client.subscribe(topic, until)
        patience = min(until, time.monotonic() + max(1.0, 2.5 * config.telemetry_interval_s)) - 0.1
        client.listen(min(patience, time.monotonic() + 0.5), has_reported)
        state = _Heard(client.heard).state
        if state is not None and state.status in _ALIVE:
            client.listen(patience, has_reported)
        ours |= presence.boots_here(config)
        return _Heard(client.heard), ours


def _described(meta: DeviceMeta | None) -> str:
    if meta is None:
        return ""
    return f" (Python {meta.python} on {meta.machine}, {meta.memory_mb} MiB, version {meta.version}, boot {meta.boot})"


CHECKS = (Check(name="client-id", run=check_client_id, needs=("login",)),)
