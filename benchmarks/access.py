"""Tries on a real broker who may do what: every user of a site, every topic, publishing and reading.

    python -m benchmarks.access [--forms NAME ...]

For each form of login and access rules it makes a folder as `distree broker init` does, runs mosquitto by it, and
judges by what is delivered: a judge, who may do everything, receives what others publish, and publishes what others try
to read, by the exact topic, by wildcards and by shared subscriptions. What the broker answers to a request counts for
nothing. The expectation comes from the roles in `distree.topics.TABLE`, not from the rules that are rendered from it.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from broker_config.managed import free_port
from broker_config.site import control
from broker_config.site.broker import SiteBroker
from broker_config.site.config import SiteConfig, UserConfig
from broker_config.site.folder import USERS, SiteFolder
from broker_config.site.mosquitto_conf import ACCESS, DYNAMIC_SECURITY
from distree import topics
from distree.roles import DISCOVERY, Principal, SiteAccess, rules
from distree.topics import ALL, BOARD_ROLES, ROOT, TABLE, Address, Kind, Role
from distree.transport.probe import ProbeClient

SITE, OTHER_SITE, PIPELINE, PREFIX = "lab", "home", "fashion", "homeassistant"
FOREIGN = "frigate/door/person/snapshot"
BARRIER = f"{ROOT}/{SITE}/barrier"
PATIENCE_S = 120.0
REMOVED = "removed"
JUDGE = UserConfig(name="judge", roles=("administrator",))
"""Sees and publishes everything, on other sites and of other programs too."""

USERS_OF_SITE = (
    UserConfig(name="cam1", roles=("origin", "stage"), reads=("frigate/+/+/snapshot",)),
    UserConfig(name="cam2", roles=("origin", "fuser")),
    UserConfig(name="b1", roles=("stage",)),
    UserConfig(name="b2", roles=("branch",)),
    UserConfig(name="hub", roles=("hub",)),
    UserConfig(name="orchestrator", roles=("orchestrator",)),
    UserConfig(name="dashboard", roles=("dashboard",)),
    UserConfig(name="reader", roles=("reader",)),
    UserConfig(name="submitter", roles=("submitter",), origins=("cam1",)),
    UserConfig(name="labeller", roles=("labeller",)),
    UserConfig(name="home-assistant", roles=("home-assistant",)),
    UserConfig(name="frigate", roles=("program",), topics=("frigate/#",)),
    UserConfig(name="admin", roles=("administrator",)),
    UserConfig(name=REMOVED, roles=("origin", "stage")),
)
"""One user for each role, and one that is removed before anything is tried, but has kept its secret."""

FORMS: dict[str, tuple[Literal["passwords", "certificates"], Literal["dynamic-security", "files"]]] = {
    "dynamic security, passwords": ("passwords", "dynamic-security"),
    "dynamic security, certificates": ("certificates", "dynamic-security"),
    "access file, passwords": ("passwords", "files"),
    "access file, certificates": ("certificates", "files"),
}


# ------------------------------------------------------------------ what is expected


def names() -> list[str]:
    """Return every topic that is tried: of all kinds, of several boards and senders, of two sites, and of others."""
    found: dict[str, None] = {}
    boards = ("cam1", "cam2", "b1", "b2", "hub")
    for site in (SITE, OTHER_SITE):
        for kind, topic in TABLE.items():
            own = [name for name in ("device", "origin", "to", "sender") if f"{{{name}}}" in topic.form]
            for one in boards if own else ("",):
                for other in boards if len(own) > 1 else ("",):
                    values = dict(zip(own, (one, other), strict=False))
                    found[topics.build(kind, site=site, pipeline=PIPELINE, stage=1, **values)] = None
            if "to" in own:
                found[topics.stage(site, PIPELINE, 1, ALL, "cam1")] = None
    for row in DISCOVERY:
        found[f"{PREFIX}/{row.form.replace('+', f'distree_{SITE}').replace('#', 'sensor/lamp/config')}"] = None
    return [*found, FOREIGN, "another/program"]


def may(who: Principal, act: str, topic: str) -> bool:
    """Whether a user has to be able to "publish" on a topic, or to "read" it."""
    if not topic.startswith(ROOT):
        return _may_elsewhere(who, act, topic)
    at = topics.parse(topic)
    if at.site != SITE:
        return False
    if Role.ADMINISTRATOR in who.roles:
        return True
    row = TABLE[at.kind]
    acting = row.publishers if act == "publish" else row.subscribers
    if (
        act == "read"
        and row.reads_back
        and any(_is_own(who, role, row.author, at) for role in who.roles & row.publishers)
    ):
        return True
    if at.to == ALL:  # of a wide stage's boards, those that run a branch read it
        acting = row.publishers if act == "publish" else frozenset({Role.BRANCH})
        return bool(who.roles & acting) and (act == "read" or at.sender == who.name)
    own = row.author if act == "publish" else row.addressee
    return any(_is_own(who, role, own, at) for role in who.roles & acting)


def _is_own(who: Principal, role: Role, own: str | None, at: Address) -> bool:
    if role is Role.SUBMITTER and who.origins:
        return (at.origin or at.device) in who.origins
    return own is None or role not in BOARD_ROLES or getattr(at, own) == who.name


def _may_elsewhere(who: Principal, act: str, topic: str) -> bool:
    if topic.startswith(PREFIX):
        wanted = {
            f"{PREFIX}/status": {"publish": {Role.HOME_ASSISTANT}, "read": {Role.ORCHESTRATOR, Role.HOME_ASSISTANT}},
            f"{PREFIX}/device/distree_{SITE}/config": {
                "publish": {Role.ORCHESTRATOR}, "read": {Role.ORCHESTRATOR, Role.HOME_ASSISTANT},
            },
        }.get(topic, {"publish": set(), "read": {Role.HOME_ASSISTANT}})  # fmt: skip
        return Role.ADMINISTRATOR in who.roles or bool(who.roles & wanted[act])
    return topic == FOREIGN and (Role.PROGRAM in who.roles or (act == "read" and bool(who.also_reads)))


# ------------------------------------------------------------------ how it is tried


OWN, EXACT = "own filters", "exact"


def ways(who: Principal) -> dict[str, Callable[[], list[str]]]:
    """Return the ways to ask for topics, by name: filters that should deliver what is allowed, and nothing else."""
    access = SiteAccess(site=SITE, principals=(who,), discovery_prefix=PREFIX)
    return {
        OWN: lambda: [rule.filter for rule in rules(access, who) if rule.read],
        EXACT: names,
        "wildcards of each kind": lambda: [topics.every(kind, site) for kind in Kind for site in (SITE, "+")],
        "wider wildcards": lambda: [
            "#", "+/#", f"{ROOT}/#", f"{ROOT}/{SITE}/#", f"{ROOT}/+/device/#", f"{ROOT}/{SITE}/pipeline/+/#",
            f"{ROOT}/{SITE}/+/+/+/+/+", f"{PREFIX}/+/+/+",
        ],
        "shared exact": lambda: [f"$share/{{group}}/{name}" for name in names()],
        "shared wildcards": lambda: ["$share/{group}/#", f"$share/{{group}}/{ROOT}/{SITE}/#"],
    }  # fmt: skip


@dataclass
class Counts:
    """How many cells were tried, and what came of them; a `fault` names a cell that went wrong."""

    forbidden: int = 0
    refused: int = 0
    needed: int = 0
    allowed: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def cells(self) -> int:
        """All that was tried."""
        return self.forbidden + self.needed

    def add(self, *, is_needed: bool, came: bool, cell: str) -> None:
        """Count a cell."""
        if is_needed:
            self.needed += 1
            self.allowed += came
        else:
            self.forbidden += 1
            self.refused += not came
        if is_needed != came:
            self.faults.append(f"{cell}: {'needed, and refused' if is_needed else 'forbidden, and allowed'}")


@dataclass
class Ear:
    """A connection of a user that has asked for topics in one of the ways."""

    who: Principal
    way: str
    client: ProbeClient


def try_all(config: SiteConfig, folder: Path) -> tuple[Counts, Counts]:
    """Try every cell on the broker of a folder; return the counts of publishing, and of reading."""
    until = time.monotonic() + PATIENCE_S
    everybody = [user.principal() for user in USERS_OF_SITE]
    judge = _connect(config, folder, JUDGE.name, "judge", until)
    assert judge is not None
    judge.subscribe("#", until)
    published = _try_publishing(config, folder, everybody, judge, until)
    return published, _try_reading(config, folder, everybody, judge, until)


def _try_publishing(
    config: SiteConfig, folder: Path, everybody: Sequence[Principal], judge: ProbeClient, until: float
) -> Counts:
    """Publish on every topic as each user, and see what reaches the judge."""
    counts = Counts()
    for who in everybody:
        client = _connect(config, folder, who.name, "mouth", until)
        if client is not None:
            for name in names():
                client.publish(name, who.name.encode(), qos=1, until=until)
            client.close()
    judge.publish(BARRIER, b"", qos=1, until=until)
    assert judge.listen(until, lambda: any(message.topic == BARRIER for message in judge.heard))
    came = {(message.payload.decode(), message.topic) for message in judge.heard}
    judge.heard.clear()
    for who in everybody:
        for name in names():
            needed = who.name != REMOVED and may(who, "publish", name)
            counts.add(is_needed=needed, came=(who.name, name) in came, cell=f"{who.name} publishes {name}")
    return counts


def _try_reading(
    config: SiteConfig, folder: Path, everybody: Sequence[Principal], judge: ProbeClient, until: float
) -> Counts:
    """Ask as each user and in each way, have the judge publish everything once, and see what came to whom."""
    counts = Counts()
    ears = [*_ears(config, folder, everybody, until)]
    for name in names():
        judge.publish(name, b"", qos=1, until=until)
    for ear in ears:
        _drain(ear.client, until)
    heard = {(ear.who.name, ear.way): {message.topic for message in ear.client.heard} for ear in ears}
    for who in everybody:
        for way in ways(who):
            came = heard.get((who.name, way), set())
            for name in names():
                allowed = who.name != REMOVED and may(who, "read", name)
                # A filter that is wider than the user's rights may be refused altogether; it must not deliver more.
                if way in (OWN, EXACT) or not allowed:
                    counts.add(is_needed=allowed, came=name in came, cell=f"{who.name} reads {name} ({way})")
    return counts


def _drain(client: ProbeClient, until: float) -> None:
    """Take all that waits for a connection, and close it: the broker answers a ping after what it may send at once."""
    before = -1
    while before < len(client.heard):
        before = len(client.heard)
        client.ping(until)
    client.close()


def _ears(config: SiteConfig, folder: Path, everybody: Sequence[Principal], until: float) -> Iterator[Ear]:
    for number, who in enumerate(everybody):
        for way, filters in ways(who).items():
            client = _connect(config, folder, who.name, f"ear-{len(way)}", until)
            if client is not None:
                for name in filters():
                    client.subscribe(name.replace("{group}", f"g{number}"), until)
                yield Ear(who=who, way=way, client=client)


def _connect(config: SiteConfig, folder: Path, name: str, purpose: str, until: float) -> ProbeClient | None:
    """Log in; return None where a user that was removed is refused."""
    try:
        return control.log_in(control.settings_of(config, folder / USERS / name, name), f"{purpose}-{name}", until)
    except Exception:
        if name == REMOVED:
            return None
        raise


def measure(form: str, folder: Path) -> tuple[Counts, Counts]:
    """Make a site's folder in `folder`, run its broker, and try every cell."""
    login, access = FORMS[form]
    config = SiteConfig(
        site=SITE,
        host="127.0.0.1",
        port=free_port(),
        login=login,
        tls=login == "certificates",
        access=access,
        discovery_prefix=PREFIX,
        users=(*USERS_OF_SITE, JUDGE),
    )
    place = SiteFolder(folder / "broker")
    place.create(config)
    removed = place.user_folder(REMOVED).rename(folder / REMOVED)
    place.remove(REMOVED)
    removed.rename(place.user_folder(REMOVED))
    _widen(place, config)
    with SiteBroker(place.path, listen_on="127.0.0.1", log=folder / "mosquitto.log"):
        return try_all(config, place.path)


def _widen(place: SiteFolder, config: SiteConfig) -> None:
    """Let the judge do everything, which no user of a site may."""
    if config.access == "files":
        with (place.path / ACCESS).open("a") as file:
            file.write(f"\nuser {JUDGE.name}\ntopic readwrite #\n")
        return
    path = place.path / DYNAMIC_SECURITY
    there = json.loads(path.read_text())
    acls = next(role["acls"] for role in there["roles"] if role["rolename"] == JUDGE.name)
    kinds = ("publishClientSend", "publishClientReceive", "subscribePattern")
    acls += [{"acltype": kind, "topic": "#", "priority": 0, "allow": True} for kind in kinds]
    path.write_text(json.dumps(there))


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table of docs/results/access.md; exit status 1 if a cell went wrong."""
    parser = argparse.ArgumentParser(description="try who may do what on a real broker")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=[*FORMS], metavar="NAME")
    args = parser.parse_args(arguments)
    print("| form | | cells | forbidden | refused | needed | allowed |\n| --- | --- | --- | --- | --- | --- | --- |")
    faults = []
    for form in args.forms:
        with tempfile.TemporaryDirectory(prefix="distree-access-") as made:
            for act, counts in zip(("publish", "read"), measure(form, Path(made)), strict=True):
                row = (counts.cells, counts.forbidden, counts.refused, counts.needed, counts.allowed)
                print(f"| {form} | {act} | {' | '.join(f'{number:,}' for number in row)} |", flush=True)
                faults += [f"{form}: {fault}" for fault in counts.faults]
    print("\n".join(faults[:50]), file=sys.stderr)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
