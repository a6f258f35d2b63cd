"""What a check is, and how they are run: one by one, each within its limit, none after what it needs failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import TYPE_CHECKING, Literal

from device_agent.config import AgentConfig
from distree.errors import DistreeError
from distree.record import record
from distree.transport import connect_errors
from distree.transport.probe import Connack, HangUpError

if TYPE_CHECKING:
    from distree.bundle.loading import Bundle
    from distree.messages.device import DeviceMeta

Status = Literal["ok", "failed", "unknown", "skipped"]
"""`unknown` is what could not be found out: said, and no reason to fail."""

_GRACE_S = 1.0
"""What a check may take beyond its limit before it is left alone: its own messages are the better ones."""


@record
class Finding:
    """What a check found: one line, and for a failure one more with the remedy."""

    status: Status
    text: str
    remedy: str = ""


def ok(text: str) -> Finding:
    """All is well."""
    return Finding(status="ok", text=text)


def failed(text: str, remedy: str) -> Finding:
    """Something must be mended."""
    return Finding(status="failed", text=text, remedy=remedy)


def unknown(text: str, remedy: str = "") -> Finding:
    """It could not be found out; `remedy` is how it could."""
    return Finding(status="unknown", text=text, remedy=remedy)


def blamed(error: Exception) -> Finding:
    """Make a finding of an error whose message says how to mend it."""
    return told(str(error))


def told(line: str) -> Finding:
    """Make a failure of a line "what: how to mend it" or "what: why; how to mend it"."""
    at = max(line.rfind(": "), line.rfind("; "))
    return failed(line[:at], line[at + 2 :]) if at > 0 else failed(line, "")


def noted(line: str) -> Finding:
    """Make of a line as `told` takes it something that is good to know, and no failure."""
    found = told(line)
    return Finding(status="ok", text=found.text, remedy=found.remedy)


@dataclass(slots=True)
class Visit:
    """A board under examination: its configuration, and what checks found that later ones need."""

    config: AgentConfig
    timeout_s: float
    bundles: list[Bundle] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    tls: SSLContext | None = None
    five: bool = True
    """Whether the broker speaks MQTT 5."""
    let_in: bool = False
    """Whether the login succeeded."""
    greeting: Connack = field(default_factory=lambda: Connack(code=0))
    withholds: bool | None = None
    """Whether what is published at QoS 2 and not released reaches nobody; None while that was not tried."""
    qos: int = 2
    """The highest QoS of a publish that does not end the connection, as far as is known."""
    retains: bool | None = None
    """Whether retained messages pass; None while that is not known."""
    metas: list[DeviceMeta] | None = None
    """What other boards say of themselves; None while nobody listened."""
    blamed: set[str] = field(default_factory=set)
    """Topics to which a subscription, or on which a publish, ends the connection: later checks leave them alone."""

    def until(self) -> float:
        """When the running check must be done, of the monotonic clock."""
        return time.monotonic() + self.timeout_s


@record
class Check:
    """One check. `needs` are the names of those that must not have failed; `forks` is for the main thread alone."""

    name: str
    run: Callable[[Visit], Finding]
    needs: tuple[str, ...] = ()
    forks: bool = False


@record
class Outcome:
    """A finding with the name of its check and the seconds that it took."""

    check: str
    finding: Finding
    took_s: float


def examine(visit: Visit, checks: Sequence[Check], tell: Callable[[Outcome], None]) -> list[Outcome]:
    """Run the checks in order, and tell of each as it is done."""
    outcomes: list[Outcome] = []
    bad: set[str] = set()
    for check in checks:
        started_at = time.monotonic()
        missing = [name for name in check.needs if name in bad]
        if missing:
            finding = Finding(status="skipped", text=f"needs {', '.join(missing)}")
        else:
            finding = _guarded(check, visit) if check.forks else _within_limit(check, visit)
        if finding.status in ("failed", "skipped"):
            bad.add(check.name)
        outcomes.append(Outcome(check=check.name, finding=finding, took_s=time.monotonic() - started_at))
        tell(outcomes[-1])
    return outcomes


def _within_limit(check: Check, visit: Visit) -> Finding:
    """Run a check in a thread, which is left behind if it hangs: some calls, as for names, cannot be interrupted."""
    found: list[Finding] = []
    thread = threading.Thread(target=lambda: found.append(_guarded(check, visit)), daemon=True, name=check.name)
    thread.start()
    thread.join(visit.timeout_s + _GRACE_S)
    return found[0] if found else _too_slow(visit)


def _too_slow(visit: Visit) -> Finding:
    return failed(f"no answer within {visit.timeout_s:g} s", "try again with a longer --timeout, or see what hangs")


def _guarded(check: Check, visit: Visit) -> Finding:
    try:
        return check.run(visit)
    except HangUpError:
        return told(connect_errors.breaks_by_itself(visit.config.broker))
    except DistreeError as error:
        return blamed(error)
    except TimeoutError:
        return _too_slow(visit)
    except OSError as error:
        return failed(f"the system says: {error}", "see that the network and the disk are in order")
    except Exception as error:  # noqa: BLE001 - a check that breaks must not end the others
        return failed(f"the check itself broke: {type(error).__name__}: {error}", "report it, with --bundle-report")
