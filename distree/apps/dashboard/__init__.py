"""A web page of a site: results, exits, thresholds, devices. It connects to the broker itself."""
