"""`distree label`: say what inputs really were, so that the orchestrator tunes by that and not by the last exit."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from uuid import uuid4

from distree import topics
from distree.broker_settings import BrokerSettings, Session
from distree.client.broker_options import add_broker_arguments, broker_settings
from distree.client.confirmations import Confirmations
from distree.errors import BrokerError, ConfigError, RemoteProtocolError
from distree.formatting import counted
from distree.messages.codec import decode, encode
from distree.messages.site import Label
from distree.printable import quoted
from distree.signing import SigningKey, load_signing_key
from distree.transport import make_transport


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `distree label`."""
    add_broker_arguments(parser)
    parser.add_argument("--pipeline", required=True, help="pipeline id")
    parser.add_argument(
        "--signing-key",
        type=Path,
        metavar="FILE",
        help="private key to sign with, if the orchestrator has label_keys (needs the extra `signed`)",
    )
    parser.add_argument(
        "labels", nargs="+", metavar="REQUEST=LABEL", help="the request id of a result, and what its input really was"
    )
    parser.epilog = "example: distree label --site lab --pipeline fashion 5b1c09e4-2a=Sneaker"


def run(args: argparse.Namespace) -> int:
    """Carry out `distree label`; return 0 if an orchestrator was there to read the labels, as far as brokers say."""
    settings = broker_settings(args)
    topic = topics.label(args.site, topics.check_id(args.pipeline, "--pipeline"))
    key = None if args.signing_key is None else load_signing_key(args.signing_key)
    unread = publish(settings, topic, [read(given) for given in args.labels], key)
    if unread:
        raise BrokerError(
            f"nobody reads {topic}",
            "check --site and --pipeline; start the orchestrator; and set labels_wait_s in the goal of this pipeline",
        )
    print(f"{counted(len(args.labels), 'label')} published")
    return 0


def read(given: str) -> Label:
    """Return a label as people give it; ConfigError for anything else."""
    request, found, label = given.rpartition("=")
    form = "write it as REQUEST=LABEL, as in 5b1c09e4-2a=Sneaker"
    if not (request and found and label):
        raise ConfigError(f"{quoted(given)} is no label", form)
    try:
        return decode(Label, encode(Label(request=request, label=label)))
    except RemoteProtocolError as error:
        raise ConfigError(f"{quoted(given)} is no label: {error.problem.what}", form) from None


def publish(settings: BrokerSettings, topic: str, labels: list[Label], key: SigningKey | None) -> int:
    """Publish labels; return how many of them nobody reads. Raises BrokerError if the broker does not confirm them."""
    heard = Confirmations()
    transport = make_transport(settings, client_id=f"distree-{uuid4().hex[:12]}", session=Session.NONE)
    try:
        transport.open(heard, [])
        transport.connect_now(settings.connect_timeout_s + 1.0)
        number = int(time.time() * 1e3)
        payloads = [
            encode(label) if key is None else key.sign(topic, label, number + index)
            for index, label in enumerate(labels)
        ]
        heard.publish(transport, [(topic, payload) for payload in payloads])
    finally:
        transport.close()
    return heard.unread
