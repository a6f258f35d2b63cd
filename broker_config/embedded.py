"""The embedded broker as a process of its own: `python -m broker_config.embedded --port N`.

It is rumqttd, from the package iotcore, which has no way to stop but the end of its process. It does QoS 0
and 1, retained messages, wills, sessions and redelivery. It does not do:

* MQTT 5 on the same port as MQTT 3.1.1. The port given here speaks MQTT 3.1.1, which every client knows, and in which a
  broker cannot report messages that nobody reads; its MQTT 5 listener ignores receive maximum and no-local.
* Anything on disk: sessions and retained messages end with the process.
* QoS 0 for what is published at QoS 0: it delivers at the subscription's QoS.
* Acknowledgements out of order: it disconnects the client. Overlapping filters give duplicates.
* A reader that falls some 8 MiB behind loses messages.
* Reliable shared subscriptions, so nothing here uses any: groups are identified by name only, and if the last member of
  one dies with messages unacknowledged, at QoS 1 and with a session that outlives the connection, the router panics
  ("group must exists") and serves no client any more. With plain filters it survives boards that die in any way,
  whatever their sessions.
* A prompt return to a session that was cut off amid traffic at QoS 1: the first CONNECT is not answered, and times out;
  the second one is. A CONNECT with clean session 1 is always answered, and the session after it is new.
* Retained messages for a session that repeats a subscription: only a new one gets them.
* UNSUBACK as the standard says: it is sent once per filter, and not at all for a filter that was not subscribed.

Users, passwords and access lists are not set up here; it listens on the loopback address only.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile

from broker_config.render import iotcore_toml


def main(arguments: list[str] | None = None) -> int:
    """Run the broker until the process is ended; 2 where iotcore is not installed."""
    parser = argparse.ArgumentParser(prog="python -m broker_config.embedded", description="Run a broker.")
    parser.add_argument("--port", type=int, default=1883, help="port on 127.0.0.1")
    parser.add_argument("--config", help="rumqttd configuration file, instead of --port")
    options = parser.parse_args(arguments)
    try:
        from iotcore import IotCoreBroker
    except ImportError:
        sys.stderr.write('the embedded broker is not installed; run: pip install "distree[broker]"\n')
        return 2
    # The broker never returns to Python, so Python's own handler of Ctrl-C would never run.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # The way rumqttd traces, each message would be logged as an error.
    logging.getLogger("rumqttd").setLevel(logging.CRITICAL)
    if options.config is not None:
        IotCoreBroker(config_path=options.config).run_forever()
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(iotcore_toml(options.port))
        file.flush()
        IotCoreBroker(config_path=file.name).run_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())
