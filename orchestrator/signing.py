"""Plans and claims to bytes and back, signed if the orchestrator has a key; and labels of those whose keys it knows.

Each plan that is published gets the next number of the key, which the store keeps; it is at least the time in
milliseconds, so that it grows even after the store was lost, and more than any that was seen on a topic, so that two
orchestrators of a site can share a key. A plan that is only published again keeps its number.

Claims are numbered by the clock alone. They are not kept in the store, as each run of an orchestrator has another id.
Numbers of labels are kept, with the samples that they belong to: an input that is published again under its id, to an
origin that was restarted, has an audit that an earlier label would fit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from distree import topics
from distree.errors import RESTRICT, RemoteProtocolError
from distree.messages.codec import decode
from distree.messages.limits import MAX_SEQUENCE
from distree.messages.plan import Plan
from distree.messages.site import Claim, Label
from distree.signing import PublicKeys, SigningKey
from distree.topics import DELIVERY, Kind
from orchestrator import addresses
from orchestrator.addresses import Outgoing, of_pipeline
from orchestrator.store.database import Store

_ONE_EACH = "give each user who signs labels a key of their own; if you have, restrict who may publish there"

_LABELLER = "labels "
"""How the store's names of keys that sign labels begin: an orchestrator's own number is kept there too."""

MAX_CLAIMS = 64
"""Claims of others whose numbers are remembered."""


class Signing:
    """Writes and reads the plans and claims of a site; without a key they are neither signed nor checked.

    Labels are checked if there are `label_keys`, the public keys of those who sign them. `wall` gives Unix seconds.
    """

    def __init__(
        self,
        site: str,
        key: SigningKey | None,
        store: Store,
        wall: Callable[[], float],
        *,
        label_keys: Sequence[str] = (),
    ) -> None:
        self._site = site
        self._key = key
        self._own = PublicKeys([key.public]) if key is not None else None
        self._store = store
        self._wall = wall
        self._seen = 0
        self._last: dict[str, tuple[int, Plan, bytes]] = {}
        """The number, the content and the bytes of the plan of each pipeline that was published last."""
        self._claims: OrderedDict[tuple[str, bool], int] = OrderedDict()
        """The number of the last claim, and of the last one taken back, of each orchestrator."""
        self._claim = 0
        self._labellers = PublicKeys(label_keys) if label_keys else None
        kept = store.sequences().items() if label_keys else ()
        self.label_numbers = {name: last for name, last in kept if name.startswith(_LABELLER)}
        """The number of the last label that each key signed, of any pipeline; by the key's name in the store."""

    def plan(self, plan: Plan) -> Outgoing:
        """Return a plan as boards receive it. Raises StoreError where its number cannot be kept."""
        if self._key is None:
            return addresses.plan(self._site, plan)
        topic = topics.plan(self._site, plan.pipeline)
        last = self._last.get(plan.pipeline)
        # Another orchestrator with this key may have published since.
        if last is None or last[1] != plan or last[0] < self._seen:
            least = min(max(self._seen + 1, int(self._wall() * 1e3)), MAX_SEQUENCE)
            number = self._store.next_sequence(self._key.id.hex(), least)
            last = self._last[plan.pipeline] = number, plan, self._key.sign(topic, plan, number)
            self._seen = max(self._seen, number)
        return Outgoing(topic=topic, payload=last[2], delivery=DELIVERY[Kind.PLAN])

    def read_plan(self, name: str, payload: bytes) -> Plan:
        """Return the plan that is on the topic of a pipeline, without its signature.

        Raises RemoteProtocolError for what is no plan, is of another pipeline, or does not bear this key's signature.
        """
        plan = of_pipeline(name, decode(Plan, payload))
        if self._own is None:
            return replace(plan, signed=None)
        seal = self._own.check(topics.plan(self._site, name), payload)
        last = self._last.get(name)
        if last is not None and seal.sequence < last[0]:
            raise RemoteProtocolError("replay", f"number {seal.sequence}, after number {last[0]}", RESTRICT)
        self._seen = max(self._seen, seal.sequence)
        return replace(plan, signed=None)

    def claim(self, identity: str, *, running: bool) -> Outgoing:
        """Return an orchestrator's claim on the site, or the message that takes it back."""
        self._claim = max(self._claim + 1, self._seen + 1, int(self._wall() * 1e3))
        return addresses.claim(self._site, identity, running=running, key=self._key, sequence=self._claim)

    def read_claim(self, payload: bytes, *, own: str, retained: bool) -> Claim:
        """Return a claim; RemoteProtocolError for what is none, or is not signed with this key, or was heard before.

        `own` is the id of this orchestrator, whose claims come back to it. The broker repeats one that is `retained` at
        each connect. A will is older than the claims that it takes back, so it is only compared with what took back
        claims before.
        """
        claim = decode(Claim, payload)
        if self._own is None or claim.orchestrator == own:
            return claim
        seal = self._own.check(topics.orchestrator(self._site), payload)
        kind = claim.orchestrator, claim.running
        last = self._claims.get(kind, -1)
        if seal.sequence < last or (seal.sequence == last and not retained):
            raise RemoteProtocolError("replay", f"a claim of {claim.orchestrator} from before", RESTRICT)
        self._claims[kind] = seal.sequence
        self._claims.move_to_end(kind)
        if len(self._claims) > MAX_CLAIMS:
            self._claims.popitem(last=False)
        return claim

    def read_label(self, pipeline: str, payload: bytes) -> Label | None:
        """Return a label of a pipeline; None for the last one of its key, which the broker may deliver again.

        RemoteProtocolError for what is none, is not signed with any of the keys, or was signed before the last one.
        """
        label = decode(Label, payload)
        if self._labellers is None:
            return label
        seal = self._labellers.check(topics.label(self._site, pipeline), payload)
        name = _LABELLER + seal.key
        last = self.label_numbers.get(name, -1)
        if seal.sequence < last:
            raise RemoteProtocolError("replay", f"number {seal.sequence} of its key, after number {last}", _ONE_EACH)
        self.label_numbers[name] = seal.sequence
        return label if seal.sequence > last else None
