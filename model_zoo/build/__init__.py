"""From a trained network to a bundle: export, quantisation, thresholds, golden vectors, manifest."""
