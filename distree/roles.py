"""What the users of a broker may do: the topic table, applied to each of them by name.

A `Principal` is a user of the broker with its roles; `rules` says which topics it may publish on and read, as filters.
Access rules for brokers (`broker_config/access/`), what `distree broker init` sets up and the test that tries all of
them on a real broker come from here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from distree import topics
from distree.errors import ConfigError
from distree.record import record
from distree.topics import ALL, BOARD_ROLES, ROOT, TABLE, Kind, Role, Topic

IMPLIED = {Role.BRANCH: frozenset({Role.STAGE}), Role.HUB: frozenset({Role.FUSER})}
"""Roles that come with others: a branch belongs to a stage, and who fuses for others fuses."""


@record
class DiscoveryTopic:
    """A row of the topics of Home Assistant, below its discovery prefix."""

    form: str
    publishers: frozenset[Role]
    subscribers: frozenset[Role]


DISCOVERY = (
    DiscoveryTopic(
        form="device/+/config",
        publishers=frozenset({Role.ORCHESTRATOR}),
        subscribers=frozenset({Role.ORCHESTRATOR}),
    ),
    DiscoveryTopic(
        form="status", publishers=frozenset({Role.HOME_ASSISTANT}), subscribers=frozenset({Role.ORCHESTRATOR})
    ),
    # Other programs announce themselves there, too.
    DiscoveryTopic(form="#", publishers=frozenset(), subscribers=frozenset({Role.HOME_ASSISTANT})),
)
"""Who announces boards to Home Assistant, and who says that it has started."""


@record
class Principal:
    """A user of the broker: a board, a program or a person.

    A board's name is its device id. `origins` limits a submitter to these boards, `pipelines` limits anyone to these
    pipelines; if empty, all are meant. `also_reads` are topics of other programs, from which an origin takes inputs;
    `own_topics` are those that such a program publishes and reads. Raises ConfigError for a name that is not an id, for
    no role, for a board that is also something else, and for a program without topics.
    """

    name: str
    roles: frozenset[Role]
    pipelines: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    also_reads: tuple[str, ...] = ()
    own_topics: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        topics.check_device(self.name, "name")
        if not self.roles:
            raise ConfigError(
                f"{self.name}: no role is given", f"choose among {', '.join(role.value for role in Role)}"
            )
        if self.is_board and not self.roles <= BOARD_ROLES:
            others = ", ".join(sorted(role.value for role in self.roles - BOARD_ROLES))
            raise ConfigError(f"{self.name}: a board cannot also be {others}", "give each a user of its own")
        for name in self.pipelines:
            topics.check_id(name, f"{self.name}: pipelines")
        for name in self.origins:
            topics.check_device(name, f"{self.name}: origins")
        for name in self.also_reads:
            topics.check_filter(name, f"{self.name}: reads")
        for name in self.own_topics:
            topics.check_filter(name, f"{self.name}: topics")
        if (Role.PROGRAM in self.roles) != bool(self.own_topics):
            raise ConfigError(
                f"{self.name}: topics of its own are for the role {Role.PROGRAM.value}, which needs some",
                "name the program's topics, such as frigate/#",
            )

    @property
    def is_board(self) -> bool:
        """Whether this is a board, which acts under its own name."""
        return bool(self.roles & BOARD_ROLES)


def principal(
    name: str,
    given: Iterable[Role],
    *,
    pipelines: Iterable[str] = (),
    origins: Iterable[str] = (),
    also_reads: Iterable[str] = (),
    own_topics: Iterable[str] = (),
) -> Principal:
    """Return a user with the roles given and those that they imply; ConfigError as for `Principal`."""
    roles = set(given)
    for role in list(roles):
        roles |= IMPLIED.get(role, set())
    if roles & BOARD_ROLES:
        roles.add(Role.BOARD)
    return Principal(
        name=name,
        roles=frozenset(roles),
        pipelines=tuple(pipelines),
        origins=tuple(origins),
        also_reads=tuple(also_reads),
        own_topics=tuple(own_topics),
    )


@record
class SiteAccess:
    """Everybody who may do anything on a site. `discovery_prefix` is Home Assistant's, None if there is none."""

    site: str
    principals: tuple[Principal, ...]
    discovery_prefix: str | None = None

    def __post_init__(self) -> None:
        topics.check_id(self.site, "site")
        if self.discovery_prefix is not None:
            topics.check_prefix(self.discovery_prefix, "discovery_prefix")
        names = [one.name for one in self.principals]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"users: {', '.join(twice)} given twice", "give each a name of its own")


@record
class Rule:
    """What is allowed on the topics that match `filter`."""

    filter: str
    read: bool
    write: bool


def rules(access: SiteAccess, who: Principal) -> tuple[Rule, ...]:
    """Return all that a user may do, one rule per filter, in the order of the table; all else is forbidden."""
    may_write = dict.fromkeys(_written(access, who))
    may_read = dict.fromkeys(_read(access, who))
    return tuple(
        Rule(filter=name, read=name in may_read, write=name in may_write) for name in {**may_write, **may_read}
    )


def _written(access: SiteAccess, who: Principal) -> Iterator[str]:
    if Role.ADMINISTRATOR in who.roles:
        yield from _everything(access)
    for kind, topic in TABLE.items():
        for role in _in_order(who.roles & topic.publishers):
            yield from _filters(access.site, who, role, kind, topic.author)
    yield from _discovery(access, [row.form for row in DISCOVERY if who.roles & row.publishers])
    yield from who.own_topics


def _read(access: SiteAccess, who: Principal) -> Iterator[str]:
    if Role.ADMINISTRATOR in who.roles:
        yield from _everything(access)
    for kind, topic in TABLE.items():
        if topic.reads_back:
            for role in _in_order(who.roles & topic.publishers):
                yield from _filters(access.site, who, role, kind, topic.author)
        for role in _in_order(who.roles & topic.subscribers):
            yield from _filters(access.site, who, role, kind, topic.addressee)
        if kind is Kind.STAGE and Role.BRANCH in who.roles:
            yield from _of_all_branches(access.site, who, topic)
    yield from _discovery(access, [row.form for row in DISCOVERY if who.roles & row.subscribers])
    yield from (*who.also_reads, *who.own_topics)


def _filters(site: str, who: Principal, role: Role, kind: Kind, own: str | None) -> Iterator[str]:
    """Yield the filters of a kind, in which the name in braces called `own` is the user's."""
    named: dict[str, Sequence[str]] = dict.fromkeys(("device", "origin", "to", "sender"), ("+",))
    if role is Role.SUBMITTER and who.origins:
        named |= {"device": who.origins, "origin": who.origins}
    if own is not None and role in BOARD_ROLES:
        named[own] = (who.name,)
    # A board clears what an earlier configuration of it announced, whatever the pipeline was.
    is_own_member = kind is Kind.MEMBER and own is not None
    for pipeline in ("+",) if is_own_member or not who.pipelines else who.pipelines:
        for device in named["device"]:
            for origin in named["origin"]:
                yield topics.build(
                    kind,
                    site=site,
                    pipeline=pipeline,
                    stage="+",
                    device=device,
                    origin=origin,
                    to=named["to"][0],
                    sender=named["sender"][0],
                )


def _of_all_branches(site: str, who: Principal, topic: Topic) -> Iterator[str]:
    for pipeline in who.pipelines or ("+",):
        yield f"{ROOT}/{site}/" + topic.form.format(pipeline=pipeline, stage="+", to=ALL, sender="+")


def _discovery(access: SiteAccess, forms: Sequence[str]) -> Iterator[str]:
    if access.discovery_prefix is not None:
        yield from (f"{access.discovery_prefix}/{form}" for form in forms)


def _everything(access: SiteAccess) -> Iterator[str]:
    yield f"{ROOT}/{access.site}/#"
    yield from () if access.discovery_prefix is None else (f"{access.discovery_prefix}/#",)


def _in_order(roles: frozenset[Role]) -> list[Role]:
    return [role for role in Role if role in roles]
