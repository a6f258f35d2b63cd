"""What makes and checks the documentation, and measures the source; no part of the product."""
