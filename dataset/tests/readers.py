"""Opens a corpus with the readers that other people use, and shows that its pictures are there.

usage: readers.py CORPUS

Checks pyarrow, DuckDB and Hugging Face datasets. A reader that is not installed is skipped, with
a line that says so; anything else that goes wrong ends with exit code 1.
"""

import glob
import importlib
import io
import json
import os
import sys


def load(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        print(f"skipped {name}: not installed ({error}); pip install {name}")
        return None


def check(condition, what):
    if not condition:
        sys.exit(f"failed: {what}")


def is_picture(data):
    return data[:8] == b"\x89PNG\r\n\x1a\n" or data[:2] == b"\xff\xd8" or data[:4] == b"RIFF"


def with_pyarrow(shards, manifest):
    pyarrow = load("pyarrow")
    if pyarrow is None:
        return
    parquet = importlib.import_module("pyarrow.parquet")
    rows = 0
    for shard, entry in zip(shards, manifest["shards"]):
        file = parquet.ParquetFile(shard)
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        sizes = [group.num_rows for group in groups]
        check(all(size == manifest["row_group_rows"] for size in sizes[:-1]), f"row groups {sizes}")
        pictures = next(
            group.column(i)
            for group in groups
            for i in range(group.num_columns)
            if group.column(i).path_in_schema == "image.bytes"
        )
        check(pictures.compression == "UNCOMPRESSED", "pictures are not compressed twice")
        check(pictures.has_offset_index, "the offset index is there")
        table = file.read()
        check(table.num_rows == entry["rows"], f"{shard} has {table.num_rows} rows")
        for row in table.to_pylist():
            check(row["image"] is None or is_picture(row["image"]["bytes"]), row["key"])
            json.loads(row["metadata"])
        rows += table.num_rows
    check(rows == manifest["rows"], f"{rows} rows")
    print(f"pyarrow {pyarrow.__version__}: {rows} rows, pictures and metadata are whole")


def with_duckdb(shards, manifest):
    duckdb = load("duckdb")
    if duckdb is None:
        return
    rows, pictures, keys = duckdb.execute(
        "select count(*), count(image.bytes), count(distinct key) from read_parquet(?)", [shards]
    ).fetchone()
    check((rows, keys) == (manifest["rows"], manifest["rows"]), f"{rows} rows, {keys} keys")
    check(pictures == manifest["columns"]["image"], f"{pictures} pictures")
    if pictures:
        data = duckdb.execute(
            "select image.bytes from read_parquet(?) where image is not null limit 1", [shards]
        ).fetchone()[0]
        check(is_picture(data), "a picture's first bytes")
    print(f"duckdb {duckdb.__version__}: {rows} rows, {pictures} pictures")


def with_datasets(shards, manifest):
    datasets = load("datasets")
    if datasets is None or load("PIL") is None:
        return
    cache = os.path.join(os.environ.get("TMPDIR", "/tmp"), "mks2-datasets-cache")
    loaded = datasets.load_dataset("parquet", data_files=shards, split="train", cache_dir=cache)
    kind = type(loaded.features["image"]).__name__
    check(kind == "Image", f"the column image is shown as {kind}")
    check(loaded.num_rows == manifest["rows"], f"{loaded.num_rows} rows")
    image = importlib.import_module("PIL.Image")
    shown = 0
    for row in loaded:
        if row["image"] is not None:
            check(isinstance(row["image"], image.Image), f"{row['key']} is shown as a picture")
            row["image"].load()
            shown += 1
    check(shown == manifest["columns"]["image"], f"{shown} pictures")
    streamed = datasets.load_dataset("parquet", data_files=shards, split="train", streaming=True)
    first = next(iter(streamed))
    check(first["key"] == loaded[0]["key"], "streaming begins with the same row")
    print(f"datasets {datasets.__version__}: {loaded.num_rows} rows, {shown} shown as pictures")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with io.open(os.path.join(sys.argv[1], "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    shards = [os.path.join(sys.argv[1], entry["path"]) for entry in manifest["shards"]]
    check(sorted(glob.glob(os.path.join(sys.argv[1], "shards", "*"))) == shards, "no other files")
    for reader in (with_pyarrow, with_duckdb, with_datasets):
        reader(shards, manifest)


main()
