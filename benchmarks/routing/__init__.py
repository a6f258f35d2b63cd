"""Boards that go, stall, come back, or are slow: what the origins' choice of boards makes of it."""
