"""Renders broker configuration and runs a broker on this machine: mosquitto, or the embedded iotcore."""
