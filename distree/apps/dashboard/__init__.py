"""A web page of what happens on a site: results, exits, thresholds, devices. It asks the broker itself."""
