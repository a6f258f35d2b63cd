"""Inputs with labels, in the forms in which people have them: `load_examples` reads them all.

`examples` declares the result; `wanted` what is asked for and how labels are matched; `arrays` (single ones, or in
`archives`), `folders`, `tables`, `idx` and `splits` each read one form.
"""

from __future__ import annotations

from model_zoo.data.examples import Examples, LabelledExamples, Split, first_of_each_class, write_samples
from model_zoo.data.idx import DEFAULT_FASHION_DIR, FASHION_HINT, load_idx_set, read_idx
from model_zoo.data.loading import is_of_arrays, load_examples
from model_zoo.data.shipped import about_samples, shipped_samples
from model_zoo.data.splits import HELD_BACK, is_divided, load_jpeg_set, load_split, split_indices

__all__ = [
    "DEFAULT_FASHION_DIR",
    "FASHION_HINT",
    "HELD_BACK",
    "Examples",
    "LabelledExamples",
    "Split",
    "about_samples",
    "first_of_each_class",
    "is_divided",
    "is_of_arrays",
    "load_examples",
    "load_idx_set",
    "load_jpeg_set",
    "load_split",
    "read_idx",
    "shipped_samples",
    "split_indices",
    "write_samples",
]
