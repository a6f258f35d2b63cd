"""Brokers that people have: each is started here, asked what it can do, and given a chain and a wide site to carry."""
