"""Who else has this board's name. Two agents of one name push each other off the broker, for ever.

Asking the broker by connecting under the agent's client id would push a running agent off. So this reads what it
leaves: the retained state, the announcement and the reports of the device, and whether the boot id in them is of an
agent on this very machine (`device_agent.presence`).
"""

from __future__ import annotations

import time

from device_agent import presence
from device_agent.doctor.checks import Finding, Visit, failed, ok, unknown
from device_agent.doctor.network import session
from distree import topics
from distree.errors import RemoteProtocolError
from distree.messages.codec import decode
from distree.messages.device import DeviceMeta, DeviceState, DeviceStatus
from distree.messages.telemetry import Telemetry
from distree.topics import Kind
from distree.transport.packets import Published

_ALIVE = (DeviceStatus.INIT, DeviceStatus.READY, DeviceStatus.DRAINING)
_OWN_NAME = "give one of the two another device id; distree_SITE_DEVICE is the client id"


class _Heard:
    """What came in on the topics of the device."""

    def __init__(self, messages: list[Published]) -> None:
        self.state: DeviceState | None = None
        self.meta: DeviceMeta | None = None
        self.boots: list[str] = []
        """Boot ids in the order in which they came, from what is alive: reports, and states not retained."""
        for message in messages:
            try:
                self._take(message)
            except RemoteProtocolError:
                continue  # a trial of another doctor, or no message of ours

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


def check_client_id(visit: Visit) -> Finding:
    """No other board uses this board's name."""
    config = visit.config
    heard, ours = _listen(visit)
    here = presence.boots_here(config)
    if len(here) > 1:
        return failed(f"{len(here)} agents named {config.device} run on this machine", "stop all but one")
    if len(ours) > 1:
        return failed(f"the agent {config.device} of this machine ends and starts over and over", "see its log")
    strangers = [boot for boot in heard.boots if boot not in ours]
    if strangers:
        who = f"an agent named {config.device} that is not on this machine is at work{_described(heard.meta)}"
        return failed(who, _OWN_NAME)
    if here:
        return ok(f"{config.client_id} is in use by the agent that runs on this machine, and by nobody else heard")
    if heard.state is not None and heard.state.status in _ALIVE:
        return unknown(
            f"{config.device} is said to be {heard.state.status.value}, but is silent{_described(heard.meta)}",
            "if another board has this name, give one of the two another device id",
        )
    return ok(f"{config.client_id} is free" + ("" if heard.state is None else f" ({heard.state.status.value})"))


def _listen(visit: Visit) -> tuple[_Heard, set[str]]:
    """Read what is retained of the device, and what it reports until two reports are due.

    Returns with it the boot ids of all agents that ran on this machine meanwhile.
    """
    config = visit.config
    kinds = (Kind.STATE, Kind.META, Kind.TELEMETRY)
    telemetry = topics.device(config.site, config.device, Kind.TELEMETRY)
    ours = presence.boots_here(config)

    def has_reported() -> bool:
        # Looked at with each message: an agent that is heard may be gone a moment later.
        ours.update(presence.boots_here(config))
        return sum(message.topic == telemetry for message in client.heard) >= 2

    with session(visit) as client:
        until = visit.until()
        for kind in kinds:
            topic = topics.device(config.site, config.device, kind)
            if topic not in visit.blamed:
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
