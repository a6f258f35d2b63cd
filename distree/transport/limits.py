"""What a broker says that it supports."""

from __future__ import annotations

_PROTOCOL_LIMIT_BYTES = 268_435_455
_SILENT_LIMIT_BYTES = 1 << 20
"""With MQTT 3.1.1 a broker cannot state its limit, and whatever exceeds it ends the connection."""

_WINDOW = 64


class Limits:
    """What the broker says that it supports, in its CONNACK; what it hangs up on is for `hangups` to find.

    `window` bounds the publishes that are under way without an acknowledgement; `is_mqtt5` says that it speaks MQTT 5.
    """

    def __init__(self) -> None:
        self.is_mqtt5 = True
        self.max_packet_bytes = _PROTOCOL_LIMIT_BYTES
        self.window = _WINDOW
        self.retains = True
        self.takes_qos_1 = True

    def learn(self, said: object, *, is_mqtt5: bool) -> None:
        """Take in the properties of a CONNACK, None where it has none; a broker that was fixed is believed."""
        self.is_mqtt5 = is_mqtt5
        silent = _PROTOCOL_LIMIT_BYTES if is_mqtt5 else _SILENT_LIMIT_BYTES
        self.max_packet_bytes = getattr(said, "MaximumPacketSize", silent)
        self.window = min(_WINDOW, getattr(said, "ReceiveMaximum", _WINDOW))
        self.retains = bool(getattr(said, "RetainAvailable", 1))
        self.takes_qos_1 = getattr(said, "MaximumQoS", 2) > 0
