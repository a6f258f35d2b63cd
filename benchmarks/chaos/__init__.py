"""Faults played on real agents, a real mosquitto and real links: `python -m benchmarks.chaos`.

`faults/` is the matrix: one file per kind of fault. `play.py` plays one of them on a site under a stream of inputs
(`scene.py`, `site.py`), `ledger.py` accounts for every input by what was heard, by what went through the origin's links
(`tap.py`, `proxy.py`, `conditions.py`) and by what the whole network answers (`expected.py`), and `page.py` writes
docs/results/faults.md. `scenarios/` are plays with checks of their own, named for what they do.

What watches and publishes is plain paho and sockets, and what they read is plain JSON and msgpack, so that nothing here
shares an assumption with the code under test.
"""
