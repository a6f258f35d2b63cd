"""What a board subscribes to and publishes on: the topic table, applied to its configuration and its bundles.

The agent listens by these lists, and `distree doctor` tries them. Imports no broker client.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from device_agent.config import AgentConfig, PipelineConfig
from device_agent.startup import fuses, travels
from distree import topics
from distree.bundle import Bundle
from distree.messages.device import DeviceMeta
from distree.record import record
from distree.topics import ADDRESSED, ANY, TABLE, Kind, Role


@record
class Subscription:
    """Something that this board reads.

    `filter` matches its topics; where they name their sender it ends in "+". `shared` is the filter by which the boards
    of a stage share what comes, else the same. `pipeline` is the number of the pipeline among the board's, None for
    what is the board's own.
    """

    kind: Kind
    filter: str
    shared: str
    pipeline: int | None = None
    stage: int = 0

    def topic_of(self, sender: str) -> str:
        """Return the topic on which `sender` would publish to this board."""
        head, _, last = self.filter.rpartition("/")
        return f"{head}/{sender}" if last == "+" else self.filter


def roles(config: PipelineConfig, bundle: Bundle) -> frozenset[Role]:
    """Return what this board is in a pipeline."""
    has = {
        Role.BOARD: True,
        Role.STAGE: bool(config.stages),
        Role.BRANCH: config.branch is not None,
        Role.FUSER: fuses(config, bundle),
        Role.HUB: config.fuse,
        Role.ORIGIN: config.origin is not None,
    }
    return frozenset(role for role, it_is in has.items() if it_is)


def subscriptions(config: AgentConfig, bundles: Sequence[Bundle]) -> list[Subscription]:
    """Return all that this board reads, its inputs by MQTT included, for which it has a connection of their own."""
    found = [
        _plain(config, kind)
        for kind, topic in TABLE.items()
        if Role.BOARD in topic.subscribers and not _is_of_pipeline(kind)
    ]
    for index, (pipeline, bundle) in enumerate(zip(config.pipelines, bundles, strict=True)):
        own = roles(pipeline, bundle)
        for kind, topic in TABLE.items():
            if not topic.subscribers & own or not _is_of_pipeline(kind) or not _is_wanted(kind, pipeline):
                continue
            if kind is Kind.STAGE:
                found += _stages(config.site, index, pipeline, bundle)
            else:
                found.append(_plain(config, kind, index))
    return found


def _is_of_pipeline(kind: Kind) -> bool:
    return "{pipeline}" in TABLE[kind].form


def _is_wanted(kind: Kind, config: PipelineConfig) -> bool:
    """Whether the configuration has what a kind is for, where the role alone does not say so."""
    origin = config.origin
    match kind:
        case Kind.INPUT:
            return origin is not None and origin.source.kind == "mqtt"
        case Kind.THUMBNAIL:
            return origin is not None and origin.thumbnails is not None
    return True


def _plain(config: AgentConfig, kind: Kind, index: int | None = None) -> Subscription:
    name = None if index is None else config.pipelines[index].name
    heard = topics.build(kind, site=config.site, pipeline=name, device=config.device, origin=config.device, sender="+")
    return Subscription(kind=kind, filter=heard, shared=heard, pipeline=index)


def _stages(site: str, index: int, config: PipelineConfig, bundle: Bundle) -> Iterator[Subscription]:
    for k in config.stages:
        if travels(bundle, k):
            branch = (config.branch or 0) if bundle.stages[k].branches else 0
            yield Subscription(
                kind=Kind.STAGE,
                filter=topics.stage(site, config.name, k, "+"),
                shared=topics.shared_stage(site, config.name, k, branch),
                pipeline=index,
                stage=k,
            )


def publications(config: AgentConfig, bundles: Sequence[Bundle], metas: Sequence[DeviceMeta] = ()) -> list[str]:
    """Return the topics on which this board publishes; to other boards, on those of the boards in `metas`."""
    own = {"site": config.site, "device": config.device}
    found = [
        topics.build(kind, **own)
        for kind, topic in TABLE.items()
        if Role.BOARD in topic.publishers and not _is_of_pipeline(kind)
    ]
    others = [meta for meta in metas if meta.device != config.device]
    for pipeline, bundle in zip(config.pipelines, bundles, strict=True):
        for kind in _published_kinds(pipeline, bundle):
            names = {"site": config.site, "pipeline": pipeline.name, "sender": config.device}
            if kind is Kind.STAGE:
                found += [topics.build(kind, stage=k, to=ANY, **names) for k in sorted(_sent_to(pipeline, bundle))]
            elif kind in ADDRESSED:
                heard = [meta.device for meta in others if _reads(meta, pipeline.name, kind)]
                found += [topics.build(kind, device=to, origin=to, **names) for to in heard]
            else:
                found.append(topics.build(kind, origin=config.device, **names))
    return list(dict.fromkeys(found))


def unheard(config: AgentConfig, bundles: Sequence[Bundle], metas: Sequence[DeviceMeta], nobody: str) -> list[str]:
    """Return topics as this board publishes on to boards of which none was heard, addressed to `nobody`.

    Where rules are not for single boards, that one stands for those that were not heard.
    """
    others = [meta for meta in metas if meta.device != config.device]
    found = []
    for pipeline, bundle in zip(config.pipelines, bundles, strict=True):
        for kind in _published_kinds(pipeline, bundle):
            if kind not in ADDRESSED or _may_stay_here(kind, pipeline, bundle):
                continue
            if not any(_reads(meta, pipeline.name, kind) for meta in others):
                found.append(topics.to_board(config.site, pipeline.name, kind, nobody, config.device))
    return found


def _may_stay_here(kind: Kind, config: PipelineConfig, bundle: Bundle) -> bool:
    """Whether all messages of a kind may be for this board itself; decisions go to other branches in any case."""
    return kind is not Kind.DECISION and bool(TABLE[kind].subscribers & roles(config, bundle))


def _published_kinds(config: PipelineConfig, bundle: Bundle) -> Iterator[Kind]:
    own = roles(config, bundle)
    for kind, topic in TABLE.items():
        if topic.publishers & own and _is_of_pipeline(kind) and _is_wanted(kind, config):
            yield kind


def _reads(meta: DeviceMeta, pipeline: str, kind: Kind) -> bool:
    """Whether a board says of itself that it is what messages of a kind are addressed to."""
    is_role = {
        Role.ORIGIN: pipeline in meta.origins,
        Role.FUSER: pipeline in meta.fusers,
        Role.BRANCH: any(held.pipeline == pipeline and held.branch is not None for held in meta.stages),
    }
    return any(is_role[role] for role in TABLE[kind].subscribers)


def _sent_to(config: PipelineConfig, bundle: Bundle) -> set[int]:
    """Return the stages to which this board sends: the next ones of its own, and the first for its inputs."""
    wide_ends = [group[-1] for group in bundle.wide_groups] if fuses(config, bundle) else []
    plain = [k for k in config.stages if not bundle.stages[k].branches]
    following = {k + 1 for k in (*plain, *wide_ends) if k + 1 < len(bundle.stages)}
    if config.origin is not None:
        following.add(0)
    return {k for k in following if k not in config.stages}
