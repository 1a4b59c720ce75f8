"""HDF5 files made in memory, to be written in one step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import h5py
from numpy.typing import NDArray


def hdf5_image(name: str, tables: Mapping[str, NDArray[Any]], attributes: Mapping[str, Any], **storage: Any) -> bytes:
    """The bytes of an HDF5 file with these tables, each stored by h5py's options `storage`, and attributes."""
    with h5py.File(name, "w", driver="core", backing_store=False) as file:  # in memory
        file.attrs.update(attributes)
        for key, table in tables.items():
            file.create_dataset(key, data=table, **storage)
        file.flush()
        return bytes(file.id.get_file_image())
