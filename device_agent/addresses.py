"""What a board subscribes to and publishes on: the topic table, applied to its configuration and its bundles.

The agent subscribes by these lists, and `distree doctor` tests them. Imports no broker client.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from device_agent.config import AgentConfig, AgentPipelineConfig
from device_agent.preflight import fuses, travels
from distree import topics
from distree.bundle.loading import Bundle
from distree.messages.device import DeviceMeta
from distree.record import record
from distree.topics import ADDRESSED, ALL, TABLE, Kind, Role


@record
class TopicFilter:
    """Something that this board reads.

    `filter` matches its topics; where they name their sender it ends in "+". `pipeline` is the number of the pipeline
    on this board, None for what belongs to no pipeline.
    """

    kind: Kind
    filter: str
    pipeline: int | None = None
    stage: int = 0
    is_foreign: bool = False
    """Whether other programs publish there, for whoever reads it: nothing is to be tried on it."""

    def topic_of(self, sender: str) -> str:
        """Return the topic on which `sender` would publish to this board.

        For this board's own announcements that is no particular topic: the result has wildcards.
        """
        head, _, last = self.filter.rpartition("/")
        return f"{head}/{sender}" if last == "+" else self.filter

    @property
    def is_own_announcements(self) -> bool:
        """Whether it is for this board's own announcements, subscribed to once they are made."""
        return self.kind is Kind.MEMBER and self.pipeline is None


def roles(config: AgentPipelineConfig, bundle: Bundle) -> frozenset[Role]:
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


def subscriptions(config: AgentConfig, bundles: Sequence[Bundle]) -> list[TopicFilter]:
    """Return all that this board reads, including its inputs by MQTT, which have a connection of their own.

    It does not include the states of boards that announce themselves, which become known only over time, nor what the
    board sends to itself for a moment, which it can do without.
    """
    found = [
        _plain(config, kind)
        for kind, topic in TABLE.items()
        if Role.BOARD in topic.publishers and topic.reads_back and not _is_of_pipeline(kind) and kind is not Kind.ECHO
    ]
    # Whatever an earlier run announced, and this one does not serve, must be cleared.
    found.append(TopicFilter(kind=Kind.MEMBER, filter=topics.member(config.site, "+", "+", config.device)))
    for index, (pipeline, bundle) in enumerate(zip(config.pipelines, bundles, strict=True)):
        own = roles(pipeline, bundle)
        for kind, topic in TABLE.items():
            if not topic.subscribers & own or not _is_of_pipeline(kind) or not _is_wanted(kind, pipeline):
                continue
            if kind is Kind.STAGE:
                found += _stages(config, index, bundle)
            elif kind is Kind.MEMBER:
                found += _members(config, index, bundle)
            else:
                found.append(_plain(config, kind, index))
        if pipeline.origin is not None:
            found += [
                TopicFilter(kind=Kind.INPUT, filter=name, pipeline=index, is_foreign=True)
                for name in pipeline.origin.source.foreign_topics()
            ]
    return found


def _is_of_pipeline(kind: Kind) -> bool:
    return "{pipeline}" in TABLE[kind].form


def _is_wanted(kind: Kind, config: AgentPipelineConfig) -> bool:
    """Whether the configuration uses a kind, where the role alone does not decide that."""
    origin = config.origin
    match kind:
        case Kind.INPUT:
            return origin is not None and origin.source.reads_input_topic
        case Kind.THUMBNAIL:
            return origin is not None and origin.thumbnails is not None
    return True


def _plain(config: AgentConfig, kind: Kind, index: int | None = None) -> TopicFilter:
    name = None if index is None else config.pipelines[index].name
    heard = topics.build(kind, site=config.site, pipeline=name, device=config.device, origin=config.device, sender="+")
    return TopicFilter(kind=kind, filter=heard, pipeline=index)


def _stages(config: AgentConfig, index: int, bundle: Bundle) -> Iterator[TopicFilter]:
    pipeline = config.pipelines[index]
    for k in served(pipeline, bundle):
        if k not in pipeline.stages:
            continue
        for to in (config.device, ALL) if bundle.stages[k].branches else (config.device,):
            heard = topics.stage(config.site, pipeline.name, k, to, "+")
            yield TopicFilter(kind=Kind.STAGE, filter=heard, pipeline=index, stage=k)


def _members(config: AgentConfig, index: int, bundle: Bundle) -> Iterator[TopicFilter]:
    """Read the announcements of boards that serve stages this one does not."""
    pipeline = config.pipelines[index]
    for k, stage in enumerate(bundle.stages):
        if travels(bundle, k) and (stage.branches or k not in pipeline.stages):
            heard = topics.member(config.site, pipeline.name, k, "+")
            yield TopicFilter(kind=Kind.MEMBER, filter=heard, pipeline=index, stage=k)


def served(config: AgentPipelineConfig, bundle: Bundle) -> list[int]:
    """Return the stages at which requests may come to this board: those on whose topics it announces itself."""
    stages = {k for k in config.stages if travels(bundle, k)}
    if config.fuse:
        stages |= {group[0] for group in bundle.wide_groups}
    return sorted(stages)


def publications(config: AgentConfig, bundles: Sequence[Bundle], metas: Sequence[DeviceMeta] = ()) -> list[str]:
    """Return the topics on which this board publishes; to other boards, on those of the boards in `metas`."""
    own = {"site": config.site, "device": config.device}
    found = [
        topics.build(kind, **own)
        for kind, topic in TABLE.items()
        if Role.BOARD in topic.publishers and not _is_of_pipeline(kind) and kind is not Kind.ECHO
    ]
    others = [meta for meta in metas if meta.device != config.device]
    for pipeline, bundle in zip(config.pipelines, bundles, strict=True):
        for kind in _published_kinds(pipeline, bundle):
            names = {"site": config.site, "pipeline": pipeline.name, "sender": config.device}
            if kind is Kind.STAGE:
                found += [
                    topics.build(kind, stage=k, to=to, **names)
                    for k in sorted(_sent_to(pipeline, bundle))
                    for to in _readers(config, pipeline, bundle, k, others)
                ]
            elif kind is Kind.MEMBER:
                found += [topics.build(kind, stage=k, device=config.device, **names) for k in served(pipeline, bundle)]
            elif kind in ADDRESSED:
                heard = [meta.device for meta in others if _reads(meta, pipeline.name, kind)]
                found += [topics.build(kind, device=to, origin=to, **names) for to in heard]
            else:
                found.append(topics.build(kind, origin=config.device, **names))
    return list(dict.fromkeys(found))


def _readers(
    config: AgentConfig, pipeline: AgentPipelineConfig, bundle: Bundle, k: int, others: Sequence[DeviceMeta]
) -> list[str]:
    """Return the boards, of those that were heard, to which this one addresses what goes to a stage."""
    found = [meta.device for meta in others if _holds(meta, pipeline.name, k)]
    if bundle.stages[k].branches:
        # Branches get theirs from the broker, on this board too.
        return [*found, *([config.device] if k in pipeline.stages else []), ALL]
    if k in pipeline.stages and pipeline.origin is None:
        # What it could run itself it sends only to an origin that runs that stage for its own inputs.
        origins = {meta.device for meta in others if pipeline.name in meta.origins}
        return [device for device in found if device in origins]
    return found


def _holds(meta: DeviceMeta, pipeline: str, k: int) -> bool:
    return any(held.pipeline == pipeline and held.stage == k for held in meta.stages)


def unheard(config: AgentConfig, bundles: Sequence[Bundle], metas: Sequence[DeviceMeta], nobody: str) -> list[str]:
    """Return the topics on which this board publishes to kinds of boards of which none was heard, as to `nobody`.

    Unless the broker's rules name single boards, `nobody` stands for those that were not heard.
    """
    others = [meta for meta in metas if meta.device != config.device]
    found = []
    for pipeline, bundle in zip(config.pipelines, bundles, strict=True):
        for kind in _published_kinds(pipeline, bundle):
            if kind is Kind.STAGE:
                found += [
                    topics.stage(config.site, pipeline.name, k, nobody, config.device)
                    for k in sorted(_needed(pipeline, bundle))
                    if not any(_holds(meta, pipeline.name, k) for meta in others)
                ]
                continue
            if kind not in ADDRESSED or _may_stay_here(kind, pipeline, bundle):
                continue
            if not any(_reads(meta, pipeline.name, kind) for meta in others):
                found.append(topics.to_board(config.site, pipeline.name, kind, nobody, config.device))
    return found


def _may_stay_here(kind: Kind, config: AgentPipelineConfig, bundle: Bundle) -> bool:
    """Whether all messages of a kind may be for this board itself; decisions always go to other branches too."""
    return kind is not Kind.DECISION and bool(TABLE[kind].subscribers & roles(config, bundle))


def _published_kinds(config: AgentPipelineConfig, bundle: Bundle) -> Iterator[Kind]:
    own = roles(config, bundle)
    for kind, topic in TABLE.items():
        if kind is Kind.EXIT and Role.BRANCH not in own and (config.origin is None or config.origin.fuser is None):
            continue  # an origin only probes the board that is to fuse for it
        if topic.publishers & own and _is_of_pipeline(kind) and _is_wanted(kind, config):
            yield kind


def _reads(meta: DeviceMeta, pipeline: str, kind: Kind) -> bool:
    """Whether messages of a kind are addressed to a board, by its own description."""
    is_role = {
        Role.ORIGIN: pipeline in meta.origins,
        Role.FUSER: pipeline in meta.fusers,
        Role.BRANCH: any(held.pipeline == pipeline and held.branch is not None for held in meta.stages),
    }
    return any(is_role[role] for role in TABLE[kind].subscribers)


def _sent_to(config: AgentPipelineConfig, bundle: Bundle) -> set[int]:
    """Return the stages to which this board sends: those after its own; an origin to any, if only to probe it."""
    if config.origin is not None:
        return {k for k in range(len(bundle.stages)) if travels(bundle, k)}
    return _following(config, bundle)


def _following(config: AgentPipelineConfig, bundle: Bundle) -> set[int]:
    wide_ends = [group[-1] for group in bundle.wide_groups] if fuses(config, bundle) else []
    plain = [k for k in config.stages if not bundle.stages[k].branches]
    return {k + 1 for k in (*plain, *wide_ends) if k + 1 < len(bundle.stages)}


def _needed(config: AgentPipelineConfig, bundle: Bundle) -> set[int]:
    """Return the stages that another board must serve: those after its own, and the first for inputs of its own."""
    first = set() if config.origin is None else {0}
    return {k for k in _following(config, bundle) | first if bundle.stages[k].branches or k not in config.stages}
