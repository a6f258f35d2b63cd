"""Results of a site, as objects, for users' own programs."""

from __future__ import annotations

from pathlib import Path

from distree.broker_settings import BrokerSettings
from distree.client.broker_options import broker_at
from distree.client.subscription import Subscription
from distree.messages.codec import decode
from distree.messages.result import Result
from distree.topics import ROOT, check_id
from distree.transport.base import Received


def result_topic(site: str, pipeline: str | None = None, origin: str | None = None) -> str:
    """Return the topic filter of results; ConfigError for an invalid id. None stands for all.

    >>> result_topic("lab", "fashion")
    'distree/1/lab/pipeline/fashion/result/+'
    """
    ids = [
        "+" if value is None else check_id(value, what) for value, what in ((pipeline, "pipeline"), (origin, "origin"))
    ]
    return f"{ROOT}/{check_id(site, 'site')}/pipeline/{ids[0]}/result/{ids[1]}"


class Results(Subscription[Result]):
    """The results of a site as they arrive, for `for` and `async for`.

        with Results("mqtt://hub", site="lab", pipeline="fashion") as results:
            for result in results:
                print(result.input, result.label, result.confidence)

    `broker` is `mqtt://HOST:PORT`, `HOST:PORT` or settings. Without `pipeline` or `origin` it yields the results of
    all. Each request comes once, with its final result; with `late`, later ones come too (with `result.final` False).

    Entering returns once the subscription is confirmed, so nothing that is submitted from then on is missed. Iterating
    ends when `close` is called, and raises ResultTimeoutError when nothing arrived for `timeout_s` seconds. At most
    `queue` results wait to be read; beyond that the oldest are dropped, and counted in `dropped`. Malformed messages
    are counted in `malformed`, lost connections, during which results may be missed, in `interruptions`.

    Raises ConfigError, and BrokerError when the broker is not reached within `connect_timeout_s` seconds.
    """

    def __init__(
        self,
        broker: str | BrokerSettings = "mqtt://127.0.0.1",
        *,
        site: str,
        pipeline: str | None = None,
        origin: str | None = None,
        late: bool = False,
        username: str | None = None,
        password_file: Path | str | None = None,
        queue: int = 1024,
        timeout_s: float | None = None,
        connect_timeout_s: float = 10.0,
    ) -> None:
        def read(message: Received) -> Result | None:
            result = decode(Result, message.payload)
            return result if result.final or late else None

        super().__init__(
            broker_at(broker, username, password_file),
            [result_topic(site, pipeline, origin)],
            read,
            queue=queue,
            timeout_s=timeout_s,
            connect_timeout_s=connect_timeout_s,
            patient=True,
        )
