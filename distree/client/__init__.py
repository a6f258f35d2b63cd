"""Programs of one's own: a site's results as objects, where the broker is, and waiting for both."""
