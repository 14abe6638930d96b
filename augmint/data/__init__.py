"""Labelled images in, and out again: `load_data`, `DataSet`, `inspect_data`, `write_folder`, `write_npz`.

Readers (`folder`, `table`, `npz`, `idx`, `builtin`) list what is there; `dataset` decodes it; `duplicates` finds what
belongs together; `split` decides once what is for training, validation and test; `report` tells about it; `writing`
writes.
"""

from augmint.data.dataset import DataSet, load_data
from augmint.data.records import SPLITS, BadFile, natural_key
from augmint.data.report import DataReport, inspect_data
from augmint.data.writing import write_folder, write_npz

__all__ = [
    "SPLITS",
    "BadFile",
    "DataReport",
    "DataSet",
    "inspect_data",
    "load_data",
    "natural_key",
    "write_folder",
    "write_npz",
]
