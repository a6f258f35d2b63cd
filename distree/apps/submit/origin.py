"""What an origin says of itself, by which `distree submit` sees before it sends whether inputs will be taken."""

from __future__ import annotations

from collections.abc import Sequence

from distree import __version__, topics
from distree.bundle.loading import Bundle, find_bundle, load_bundle
from distree.errors import BrokerError, BundleError, ConfigError
from distree.messages.device import DeviceMeta, DeviceStatus, InputDescription
from distree.record import record
from distree.topics import Kind

_GONE = (DeviceStatus.LOST, DeviceStatus.DISCONNECTED, DeviceStatus.DRAINING)
_READS_MQTT = "mqtt"


def described_on(site: str, origin: str) -> Sequence[str]:
    """Return the topics on which a board describes itself, both retained, and refuses inputs."""
    return [topics.device(site, origin, kind) for kind in (Kind.STATE, Kind.META, Kind.DEAD)]


@record
class OriginFacts:
    """What is known of an origin; None is what was not heard, as from a broker that retains nothing."""

    site: str
    pipeline: str
    origin: str
    status: DeviceStatus | None = None
    meta: DeviceMeta | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing more is to be heard."""
        return self.status is not None and self.meta is not None

    @property
    def inputs(self) -> InputDescription | None:
        """What it takes as inputs of the pipeline, if it says so."""
        return next((one for one in self.meta.inputs if one.pipeline == self.pipeline), None) if self.meta else None

    def check(self) -> None:
        """Raise ConfigError or BrokerError if inputs would not be taken, as far as that is known."""
        if self.status in _GONE and self.status is not None:
            raise BrokerError(
                f"the board {self.origin!r} of site {self.site!r} is not running: its state is {self.status.value}",
                f"start its agent, or see its log: journalctl -u distree-agent on {self.origin}",
            )
        if self.meta is None:
            return
        if self.pipeline not in self.meta.origins:
            others = ", ".join(self.meta.origins)
            raise ConfigError(
                f"--origin {self.origin}: this board is not an origin of pipeline {self.pipeline!r}"
                + (f", but of {others}" if others else ""),
                "correct --pipeline or --origin, or give the pipeline an `origin` in the board's agent.yaml",
            )
        if self.inputs is not None and self.inputs.source != _READS_MQTT:
            raise ConfigError(
                f"--origin {self.origin}: its inputs of pipeline {self.pipeline!r} come from the source "
                f"{self.inputs.source}, not by MQTT",
                "hand them to that source, or set source: {kind: mqtt} in the board's agent.yaml",
            )

    def bundle(self, named: str | None) -> Bundle | None:
        """Return the origin's bundle if this machine has it: the one `named`, or the one of its name.

        ConfigError if the one that is named is another than the origin's.
        """
        found = self.inputs
        if named is not None:
            bundle = load_bundle(named, verify=())
            if found is not None and found.revision != bundle.revision:
                raise ConfigError(
                    f"--bundle {named}: it is {bundle.name} {bundle.revision}, but {self.origin} runs {found.model} "
                    f"{found.revision}",
                    "name the same bundle, or leave --bundle out",
                )
            return bundle
        # Another version may read files by other rules.
        if found is None or self.meta is None or self.meta.version != __version__:
            return None
        try:
            bundle = load_bundle(find_bundle(found.model), verify=())
        except BundleError:
            return None
        return bundle if bundle.revision == found.revision else None
