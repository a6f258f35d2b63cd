"""The commands that people run beside agent and orchestrator: they may import everything, and nothing imports them."""
