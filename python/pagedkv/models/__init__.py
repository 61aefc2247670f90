"""Models: what runs, how it is loaded, and what its KV cache looks like."""

from pagedkv.models.geometry import KvGeometry, KvGroup, StorageShape
from pagedkv.models.loading import LoadedModel, load_model, parse_dtype, prepare_model
from pagedkv.models.padding import padded_rows

__all__ = [
    "KvGeometry",
    "KvGroup",
    "LoadedModel",
    "StorageShape",
    "load_model",
    "padded_rows",
    "parse_dtype",
    "prepare_model",
]
