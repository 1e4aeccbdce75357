"""Input formats. To add one: write a `Reader` in a file of its own and give it a line in `READERS`."""

from mmbm_core.errors import UsageError
from workers.readers.base import Reader
from workers.readers.csv import CsvReader
from workers.readers.jsonl import JsonlReader
from workers.readers.lance import LanceReader
from workers.readers.manifest import ManifestReader
from workers.readers.media_folder import AudioFolderReader, ImageFolderReader
from workers.readers.parquet import ParquetReader
from workers.readers.tfrecord import TfRecordReader
from workers.readers.webdataset import WebDatasetReader

READERS: dict[str, Reader] = {
    "parquet": ParquetReader(),
    "jsonl": JsonlReader(),
    "csv": CsvReader(),
    "webdataset": WebDatasetReader(),
    "tfrecord": TfRecordReader(),
    "lance": LanceReader(),
    "image_folder": ImageFolderReader(),
    "audio_folder": AudioFolderReader(),
    "manifest": ManifestReader(),
}


def get_reader(name: str) -> Reader:
    """Raises: UsageError: no such format."""
    if name not in READERS:
        raise UsageError(f"unknown format {name!r}; known: {', '.join(READERS)}")
    return READERS[name]
