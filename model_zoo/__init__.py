"""Recipes, training, export and evaluation of the bundles that DistrEE ships.

Listing, showing, verifying and evaluating a bundle need numpy and a TFLite runtime only. Building one needs
the extra ``zoo`` (torch, litert-torch, ai-edge-quantizer), which is imported by the modules that ``build``
reaches.
"""
