"""Training of networks: chains, and branches that learn from a teacher. Most modules import torch."""
