"""Faults played against real agents, a real mosquitto and real links: `python -m benchmarks.chaos`.

Each scenario is a module named for what it does. What watches and publishes is plain paho and sockets, and what they
read is plain JSON and msgpack, so that nothing here shares an assumption with the code under test.
"""
