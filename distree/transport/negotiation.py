"""How to begin a connection with a broker that may not like some of it; pure, without clock or socket.

A broker, or a proxy in front of it, that does not like a CONNECT or a SUBSCRIBE may silently close the connection, just
as it may when it is being restarted. So what is sent is varied until it is answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import zip_longest
from typing import Literal

from distree.transport.hangups import RETRY_MAX_S, RETRY_S

Version = Literal["5", "3.1.1"]

MAX_FILTERS_PER_SUBSCRIBE = 8
"""Most filters of one SUBSCRIBE: some brokers hang up on more (AWS IoT Core takes 8)."""

_TRIES = 2
"""How many times a way to connect is tried before the next one, and a filter before it is left out."""


class Handshake:
    """With which version of MQTT to connect, and whether with a will, until a broker has answered; then it stays so.

    What went unanswered may have come too early, while the broker was starting: a broker that has answered a lesser way
    to connect gets one more of each better way, to be sure. A version that it has refused in words is not tried again.
    """

    def __init__(self, versions: Sequence[Version], *, has_will: bool) -> None:
        self._plan = [(version, has_will) for version in versions for _ in range(_TRIES)]
        if has_will:
            self._plan += [(version, False) for version in versions]
        self._has_will = has_will
        self._at = 0
        self._better: list[tuple[Version, bool]] = []
        """What is tried once more, one after the other, after a lesser way was answered."""
        self._refused: set[Version] = set()
        self.settled = False

    @property
    def _way(self) -> tuple[Version, bool]:
        return self._better[0] if self._better else self._plan[self._at]

    @property
    def version(self) -> Version:
        """The version to connect with."""
        return self._way[0]

    @property
    def with_will(self) -> bool:
        """Whether to connect with a will."""
        return self._way[1]

    def unanswered(self) -> bool:
        """The connection ended without an answer; return whether to try again at once."""
        if self._better:
            self._give_up_better()
            return True
        if self.settled:
            return False
        self._at = (self._at + 1) % len(self._plan)
        return self._at != 0

    def other_version(self) -> bool:
        """The broker does not speak this version: return whether there is another one to try, at once."""
        version, will = self._way
        self._refused.add(version)
        if self._better:
            self._give_up_better()
            return True
        later = [at for at, (other, with_will) in enumerate(self._plan) if other != version and with_will is will]
        if later and not self.settled:
            self._at = later[0]
        return bool(later) and not self.settled

    def answered(self) -> Literal["go", "confirm"]:
        """The broker accepted; `confirm` asks for the connection to be closed and opened again, in a better way."""
        if self._better:  # it takes that after all
            self._at, self._better = self._plan.index(self._way), []
        elif not self.settled:
            best = dict.fromkeys((self._plan[0], (self.version, self._has_will)))
            self._better = [way for way in best if way != self._way and way[0] not in self._refused]
        self.settled = not self._better
        return "go" if self.settled else "confirm"

    def _give_up_better(self) -> None:
        self._better.pop(0)
        self.settled = not self._better


class Subscriptions:
    """Filters to subscribe to, a few at a time; one that a broker hangs up on is left out. QoS 2 counts as 1.

    The initial ones are needed, and come first; others may be added at any time, and are asked for once there is
    nothing else to wait for. After a connection that ended in the middle they go one at a time, to find out which one
    it was; and every suspect goes along with the initial ones, while nothing else is under way that the broker may hang
    up on. One that was left out is tried again after a while.
    """

    def __init__(self, filters: Sequence[tuple[str, int]], at_a_time: int) -> None:
        self._wanted = {name: min(qos, 1) for name, qos in filters}
        self._needed = set(self._wanted)
        self._suspected: set[str] = set()
        self._at_a_time = at_a_time
        self._left: dict[str, int] = {}
        self._asked: list[tuple[str, int]] = []
        self._suspicions: Counter[str] = Counter()
        self._without: dict[str, float] = {}
        """Those that the broker hangs up on, and when each is tried again."""
        self._left_out_s: dict[str, float] = {}
        """For how long each was left out last."""

    @property
    def without(self) -> set[str]:
        """Those that the broker hangs up on."""
        return set(self._without)

    def begin(self) -> None:
        """Start over, on a new connection."""
        self._left = {name: qos for name, qos in self._wanted.items() if name not in self._without}
        self._asked = []

    def add(self, filters: Sequence[tuple[str, int]]) -> bool:
        """Subscribe to these too, if they are new; return whether that leaves anything to ask for."""
        for name, qos in filters:
            if name not in self._wanted:
                self._wanted[name] = min(qos, 1)
                if name not in self._without:
                    self._left[name] = min(qos, 1)
        return bool(self._left)

    def remove(self, names: Sequence[str]) -> list[str]:
        """Stop subscribing to these; return those that the broker was asked for."""
        known = []
        for name in names:
            wanted = self._wanted.pop(name, None) is not None
            left = self._left.pop(name, None) is not None
            self._needed.discard(name)
            self._suspected.discard(name)
            if wanted and not left and name not in self._without:
                known.append(name)
        return known

    @property
    def asked(self) -> list[tuple[str, int]]:
        """What the last SUBSCRIBE was for, until it is answered."""
        return self._asked

    def is_needed(self, name: str) -> bool:
        """Whether a filter is one of the initial ones, and still wanted."""
        return name in self._needed

    def ask(self, *, for_more: bool = False) -> list[tuple[str, int]]:
        """Return what to subscribe to next; [] when it is done. What was added is asked `for_more`, after the rest."""
        first = self._needed | self._suspected
        names = [name for name in self._left if for_more or name in first][: self._at_a_time]
        self._asked = [(name, self._left.pop(name)) for name in names]
        return self._asked

    def answered(self, refusals: Sequence[str | None]) -> dict[str, str | None]:
        """The broker answered, with None for each filter that it accepted; return the answers by filter.

        A filter without an answer counts as refused.
        """
        given = zip_longest((name for name, _ in self._asked), refusals[: len(self._asked)], fillvalue="no answer")
        answers = {name: why for name, why in given if name in self._wanted}
        for name, _ in self._asked:
            self._suspected.discard(name)
            self._suspicions.pop(name, None)
            self._left_out_s.pop(name, None)
        self._asked = []
        return answers

    def acquit(self) -> None:
        """The connection is about to end, and not for what was asked."""
        self._asked = []

    def try_again(self, now: float) -> None:
        """Ask again for those that have been left out for long enough."""
        for name in [name for name, at in self._without.items() if at <= now]:
            del self._without[name]
            if name in self._wanted:
                self._left[name] = self._wanted[name]

    def unanswered(self, now: float) -> str | None:
        """The connection ended before the broker answered; return the filter to blame, once it is known."""
        asked, self._asked = self._asked, []
        if not asked:
            return None
        self._suspected.update(name for name, _ in asked if name in self._wanted)
        if len(asked) > 1:
            self._at_a_time = 1
            return None
        name = asked[0][0]
        self._suspicions[name] += 1
        if self._suspicions[name] < _TRIES:
            return None
        self._left_out_s[name] = min(RETRY_MAX_S, 2 * self._left_out_s.get(name, RETRY_S / 2))
        self._without[name] = now + self._left_out_s[name]
        return name
