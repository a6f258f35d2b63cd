"""The AsyncAPI 3 document of all topics and payloads, and the JSON Schemas of what dashboards read.

`python -m tools.asyncapi docs` (or `make api`) writes `docs/asyncapi.yaml` and `docs/schemas/*.json`. Everything in
them comes from `distree.topics` and `distree.messages`; a test says when they are out of date.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from distree import topics
from distree.topics import DELIVERY, JSON, Kind
from tools.json_schema import DIALECT, MESSAGES, Schema, schema_of

_PARAMETERS = {
    "site": "Id of the site: 1 to 32 of a-z, 0-9 and '-', as all ids.",
    "device": "Id of the board.",
    "pipeline": "Id of the pipeline.",
    "origin": "Id of the board that accepted the input.",
    "stage": "Number of the stage, from 0.",
    "to": f"Id of the board addressed, or `{topics.ALL}`: those of a wide stage that the route names.",
    "sender": "Id of the board that says it.",
}
_CHANNELS = {
    Kind.STATE: "Life of a board's agent; also its will.",
    Kind.META: "What a board is and serves.",
    Kind.TELEMETRY: "Counters of a board since boot, every few seconds.",
    Kind.DEAD: "Messages that a board refused.",
    Kind.EVENT: "What people should know of a board: inputs refused, a source that died, a full disk.",
    Kind.SITE_EVENT: "What people should know of a site, from its orchestrator: boards lost and back.",
    Kind.ECHO: "Tiny messages of a board to itself, which show whether the broker holds them back.",
    Kind.PLAN: "Thresholds and their epoch, which all boards of the pipeline follow.",
    Kind.MEMBER: "Which stages of a pipeline a board serves, for the origins that choose among boards.",
    Kind.CALL: "Asks boards to say again what they serve.",
    Kind.STAGE: "Inputs (stage 0) and features for a stage, to a board that the origin chose.",
    Kind.INPUT: "Inputs for an origin whose source is mqtt.",
    Kind.OUTCOME: "Answers on their way to the origin.",
    Kind.RESULT: "Answers, for dashboards; exactly one of a request is final.",
    Kind.EXIT: "Embeddings of the branches of wide stages, to the board that fuses.",
    Kind.DECISION: "Whether the branches of a request go on, to a board of a branch.",
    Kind.AUDIT: "What all exits said of an input that its origin drew by lot.",
    Kind.LABEL: "What inputs really were, from users.",
    Kind.STATS: "How an origin did of late; published by an orchestrator with `home_assistant`.",
    Kind.THUMBNAIL: "Small pictures of some inputs, for dashboards; published by an origin with `thumbnails`.",
    Kind.ORCHESTRATOR: "Which orchestrator plans the site; also its will.",
}
_TO_DISTREE = frozenset({Kind.INPUT, Kind.LABEL})
"""What others may publish; all else DistrEE publishes itself."""

_RAW_INPUT = "rawInput"
_INFO = (
    "Distributed early exit of neural-network inference over MQTT. Dashboards read `result`, `state`, `meta` and "
    "`telemetry`; programs send inputs to `input` and, if they know better later, `label`; the other channels are "
    "between boards and the orchestrator. Payloads of content type application/msgpack are described as the map that "
    "unpacking gives."
)


def document() -> dict[str, Any]:
    """Return the AsyncAPI document as plain data."""
    made = {
        "asyncapi": "3.0.0",
        "id": "urn:distree:1",
        "info": {
            "title": "DistrEE",
            "version": topics.ROOT.rpartition("/")[2],
            "description": _INFO,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "servers": {
            "broker": {
                "host": "localhost:1883",
                "protocol": "mqtt",
                "description": "The site's MQTT broker, 5.0 or 3.1.1.",
            }
        },
        "channels": {kind.value: _channel(kind) for kind in Kind},
        "operations": {_operation_name(kind): _operation(kind) for kind in Kind},
        "components": {
            "messages": {
                **{kind.value: _message(kind) for kind in Kind},
                _RAW_INPUT: {
                    "summary": "What a file would hold: an image, a WAV or CSV file, an .npy array, or the raw values.",
                    "contentType": DELIVERY[Kind.INPUT].content_type,
                    "payload": {"type": "string", "contentEncoding": "binary"},
                },
            },
            "schemas": {kind.value: schema_of(kind) for kind in Kind},
        },
    }
    # What is shared becomes a copy: YAML would write it as an alias.
    copied: dict[str, Any] = json.loads(json.dumps(made))
    return copied


def _channel(kind: Kind) -> Schema:
    address = topics.template(kind)
    return {
        "address": address,
        "description": _CHANNELS[kind],
        "parameters": {
            name: {"description": what} for name, what in _PARAMETERS.items() if "{" + name + "}" in address
        },
        "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in _messages(kind)},
    }


def _messages(kind: Kind) -> list[str]:
    return [kind.value, _RAW_INPUT] if kind is Kind.INPUT else [kind.value]


def _operation_name(kind: Kind) -> str:
    return f"{'receive' if kind in _TO_DISTREE else 'send'}{kind.value.capitalize()}"


def _operation(kind: Kind) -> Schema:
    how = DELIVERY[kind]
    return {
        "action": "receive" if kind in _TO_DISTREE else "send",
        "channel": {"$ref": f"#/channels/{kind.value}"},
        "bindings": {"mqtt": {"qos": how.qos, "retain": how.retain, "bindingVersion": "0.2.0"}},
        "messages": [{"$ref": f"#/channels/{kind.value}/messages/{name}"} for name in _messages(kind)],
    }


def _message(kind: Kind) -> Schema:
    content_type = JSON if DELIVERY[kind].content_type == JSON else topics.MSGPACK
    return {
        "name": MESSAGES[kind].__name__,
        "contentType": content_type,
        "payload": {"$ref": f"#/components/schemas/{kind.value}"},
    }


def files() -> dict[str, str]:
    """Return what stands in docs/: path and text of the document and of the schema of each JSON message."""
    schemas = {
        f"schemas/{kind.value}.json": json.dumps({"$schema": DIALECT, **schema_of(kind)}, indent=2) + "\n"
        for kind in Kind
        if DELIVERY[kind].content_type == JSON
    }
    head = "# Written by `make api`: changes here are lost.\n"
    body = yaml.safe_dump(document(), sort_keys=False, width=120, allow_unicode=True)
    return {"asyncapi.yaml": head + body, **schemas}


def write(folder: Path) -> None:
    """Write all files below a folder, which is made where it is missing."""
    for name, text in files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
