"""systemd's notify protocol (sd_notify), without a library: one datagram per message."""

from __future__ import annotations

import os
import socket


class SystemdNotifier:
    """Sends READY, STOPPING and WATCHDOG to the service manager; does nothing where there is none."""

    def __init__(self, environ: dict[str, str] | None = None) -> None:
        environ = dict(os.environ) if environ is None else environ
        self._address = environ.get("NOTIFY_SOCKET", "")
        usec = environ.get("WATCHDOG_USEC", "")
        pid = environ.get("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        self.interval_s: float | None = int(usec) / 2e6 if usec.isdigit() and int(usec) and mine else None
        """Seconds between watchdog messages (half of what systemd waits); None where it does not watch."""

    def send(self, message: str) -> None:
        """Send one message, such as "READY=1"; a manager that does not listen is not an error."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
                channel.settimeout(1.0)
                channel.sendto(message.encode(), address)
        except OSError:
            return
