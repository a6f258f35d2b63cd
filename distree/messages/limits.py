"""Limits that messages share: of every length, depth and number that comes from outside."""

from __future__ import annotations

from distree.thresholds import NEVER

MAX_MESSAGE_BYTES = 1 << 20
"""Longest message that is looked at, in bytes; a longer one is refused unread."""

MAX_ITEMS = 1024
"""Longest list or map anywhere in a msgpack message."""

MAX_DECODE_BYTES = 16 << 20
"""Most memory that any message may take while it is decoded, whoever made it, beside its own bytes.

`tests/distree/messages/test_decode_memory.py` holds decoders to it, with the worst that can be made; the limits below
see to it.
"""

SMALL_BYTES = 1 << 16
"""A MessagePack message up to this long is unpacked without counting: its objects take at most some 70 times its bytes,
and lists that it only announces, one inside the other, 8 MiB more."""

MAX_VALUES = 1 << 15
"""Most values in a longer MessagePack message, and in any JSON: maps, lists, numbers and texts, at every depth. They
are counted before anything is made of them; a million empty maps would take 126 MB. A plan with all the thresholds that
it may have has 25,000."""

MAX_PACKED_BYTES = 1 << 13
"""Longest part that travels packed, such as the context of a request.

With a route through 64 branches and 31 plain stages, and all the rest at its limit, that takes 4,826 bytes.
"""

MAX_TEXT = 64
"""Longest text in characters, where a field says nothing else."""

MAX_COUNT = 1 << 53
MAX_EPOCH = 1_000_000
"""Highest epoch of a plan; after it, numbers begin at 1 again. At a new decision a minute that is after two years."""

EPOCH_STEP = 1_000
"""How far the epoch of a plan may be beyond that of the plan which its reader holds. An orchestrator takes the numbers
one after the other, so that one further on is a mistake or a forgery, and is not obeyed."""

SEAL_BYTES = 80
"""Length of the field `signed` of a message: key, sequence and signature, see `distree/signing.py`."""

MAX_SEQUENCE = 1 << 53
HASH_DIGITS = 16
"""Hexadecimal digits of the hash of a plan's content."""

MAX_NUMBER = 1e15
MAX_FINITE = NEVER
"""Largest number that may stand where any may. As a threshold it keeps an exit closed."""

MAX_HOPS = 32
MAX_RANK = 6
MAX_MEMORY = 1024
"""Most numbers of a criterion's memory: the embeddings of an exit are among what may have to be remembered."""

MAX_STAGES = 32
MAX_BRANCHES = 64
MAX_MASKED = 256
"""Most sets of missing branches for which a plan has thresholds."""

MAX_REVISIONS = 8
"""Most revisions of a bundle that a board can run at a time."""

MAX_CLASSES = 1 << 20
MAX_PIPELINES = 64
MAX_ATTEMPTS = 100
MAX_BUDGET_S = 3600.0
MAX_THUMBNAIL_BYTES = 64 << 10
"""Longest picture that is taken for a thumbnail."""
