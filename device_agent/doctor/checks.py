"""What a check is, and how checks are run: one by one, each within its time limit, none after what it needs failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import TYPE_CHECKING, Literal

from device_agent.config import AgentConfig
from distree.errors import DistreeError, Problem
from distree.record import record
from distree.transport import connect_errors
from distree.transport.probe import Connack, HangUpError

if TYPE_CHECKING:
    from distree.bundle.loading import Bundle
    from distree.messages.device import DeviceMeta

Status = Literal["ok", "failed", "unknown", "skipped"]
"""`unknown` is what could not be found out: it is reported, but is no failure."""

_GRACE_S = 1.0
"""What a check may take beyond its limit before it is abandoned: its own messages are better than that."""


@record
class Finding:
    """What a check found: one line, and for a failure another one with the remedy."""

    status: Status
    text: str
    remedy: str = ""


def ok(text: str, remedy: str = "") -> Finding:
    """All is well; `remedy` is how it could be better still."""
    return Finding(status="ok", text=text, remedy=remedy)


def failed(text: str, remedy: str) -> Finding:
    """Something must be fixed."""
    return Finding(status="failed", text=text, remedy=remedy)


def unknown(text: str, remedy: str = "") -> Finding:
    """It could not be found out; `remedy` is how it could."""
    return Finding(status="unknown", text=text, remedy=remedy)


def failure_from(problem: Problem) -> Finding:
    """Report a problem as a failure."""
    return failed(*problem)


def note_from(problem: Problem) -> Finding:
    """Report a problem as something that is good to know, but no failure."""
    return ok(*problem)


@dataclass(slots=True)
class CheckContext:
    """What checks share: the board's configuration, and what checks found that later ones need."""

    config: AgentConfig
    timeout_s: float
    bundles: list[Bundle] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    tls: SSLContext | None = None
    is_mqtt5: bool = True
    """Whether the broker speaks MQTT 5."""
    logged_in: bool = False
    """Whether the login succeeded."""
    greeting: Connack = field(default_factory=lambda: Connack(code=0))
    withholds: bool | None = None
    """Whether what is published at QoS 2 and not released reaches nobody; None until that was tried."""
    qos: int = 2
    """The highest QoS of a publish that does not end the connection, as far as is known."""
    retains: bool | None = None
    """Whether retained messages work; None until that is known."""
    metas: list[DeviceMeta] | None = None
    """Other boards' descriptions; None until they were read."""
    disconnecting: set[str] = field(default_factory=set)
    """Topics to which a subscription, or on which a publish, ends the connection: later checks avoid them."""

    def until(self) -> float:
        """When the running check must be done, of the monotonic clock."""
        return time.monotonic() + self.timeout_s


@record
class Check:
    """A check. `needs` are the names of checks that must not have failed; one that `forks` runs in the main thread."""

    name: str
    run: Callable[[CheckContext], Finding]
    needs: tuple[str, ...] = ()
    forks: bool = False


@record
class CheckResult:
    """A finding with the name of its check and the seconds it took."""

    check: str
    finding: Finding
    took_s: float


def run_checks(
    context: CheckContext, checks: Sequence[Check], tell: Callable[[CheckResult], None]
) -> list[CheckResult]:
    """Run the checks in order, and report each as it is done."""
    results: list[CheckResult] = []
    bad: set[str] = set()
    for check in checks:
        started_at = time.monotonic()
        missing = [name for name in check.needs if name in bad]
        if missing:
            finding = Finding(status="skipped", text=f"needs {', '.join(missing)}")
        else:
            finding = _guarded(check, context) if check.forks else _within_limit(check, context)
        if finding.status in ("failed", "skipped"):
            bad.add(check.name)
        results.append(CheckResult(check=check.name, finding=finding, took_s=time.monotonic() - started_at))
        tell(results[-1])
    return results


def _within_limit(check: Check, context: CheckContext) -> Finding:
    """Run a check in a thread, which is abandoned if it hangs: some calls, such as name look-ups, cannot be stopped."""
    found: list[Finding] = []
    thread = threading.Thread(target=lambda: found.append(_guarded(check, context)), daemon=True, name=check.name)
    thread.start()
    thread.join(context.timeout_s + _GRACE_S)
    return found[0] if found else _too_slow(context)


def _too_slow(context: CheckContext) -> Finding:
    return failed(
        f"no answer within {context.timeout_s:g} s", "try again with a longer --timeout, or find out what hangs"
    )


def _guarded(check: Check, context: CheckContext) -> Finding:
    try:
        return check.run(context)
    except HangUpError:
        return failure_from(connect_errors.breaks_by_itself(context.config.broker))
    except DistreeError as error:
        return failure_from(error.problem)
    except TimeoutError:
        return _too_slow(context)
    except OSError as error:
        return failed(f"the operating system reports: {error}", "check the network and the disk")
    except Exception as error:  # noqa: BLE001 - a check with a bug must not end the others
        what = f"the check itself broke: {type(error).__name__}: {error}"
        return failed(what, "report this as a bug, with the file that --report writes")
