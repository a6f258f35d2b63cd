"""For users' own programs: a site's results as objects, where the broker is, and waiting for results."""
