"""Connections to a broker: `paho` speaks MQTT, `memory` is a broker inside the process, for tests."""
