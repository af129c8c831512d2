"""The nearest embeddings by a Milvus server, or by milvus-lite in a local file: for collections beyond one machine.

The index on disk stays as it is (pictures, embeddings, what is kept for the ranker); Milvus answers which pictures are
nearest. Tested with milvus-lite through the same client as a server.
"""

import hashlib
from typing import Any

import numpy as np

from ..inference.identity import ModelIdentity, OtherModelError
from .store import ImageIndex

_BATCH = 1000
_LONGEST_ID = 65_535  # bytes of a Milvus string
_FINGERPRINT = "r2d2.model"


class MilvusVectors:
    """A collection whose entries are the pictures of an index.

    Its primary key is a digest of the picture's id: Milvus looks entries up and deletes them by expressions, in which
    quotes, backslashes and line breaks of an id would have a meaning. The collection carries the fingerprint of the
    model that made its vectors; its metric is the inner product of unit vectors, the cosine.

    Args:
        uri: `http://host:19530`, or a file `name.db` for milvus-lite.
        collection: its name.
        token: "user:password", where the server wants one.

    Raises:
        ImportError: pymilvus is not installed.
    """

    def __init__(self, uri: str, collection: str = "r2d2", token: str = "", client: Any = None):
        if client is None:
            try:
                from pymilvus import MilvusClient
            except ImportError as error:
                raise ImportError("a Milvus server needs pymilvus: pip install 'modeling-r2d2[milvus]'") from error
            client = MilvusClient(uri=uri, token=token)
        self.client, self.collection = client, collection
        self.place_of: dict[str, int] | None = None  # rows of the index by key

    def synchronise(self, index: ImageIndex, index_type: str = "AUTOINDEX") -> tuple[int, int]:
        """Make the collection hold what the index holds: insert or replace, and delete what is gone.

        Returns:
            how many were written and how many deleted.

        Raises:
            OtherModelError: the collection holds vectors of another model, or was not made here.
            ValueError: an id longer than Milvus takes.
        """
        ids, contents = (index.column(name).to_pylist() for name in ("id", "content"))
        if too_long := [id for id in ids if len(id.encode()) > _LONGEST_ID]:
            raise ValueError(f"Milvus takes ids of {_LONGEST_ID} bytes; too long: {too_long[0][:80]!r}…")
        if self.client.has_collection(self.collection):
            self._refuse_other(index.manifest.model)
        else:
            self._create(index, index_type)
        keys = [_key(id) for id in ids]
        stored = self._stored()
        written, start = 0, 0
        for embeds in index.all_embeds():
            part = slice(start, start + len(embeds))
            rows = [
                {"key": key, "id": id, "content": content, "embedding": embed}
                for key, id, content, embed in zip(keys[part], ids[part], contents[part], embeds, strict=True)
                if stored.get(key) != content
            ]
            for place in range(0, len(rows), _BATCH):
                self.client.upsert(self.collection, rows[place : place + _BATCH])
            written, start = written + len(rows), part.stop
        gone = sorted(set(stored) - set(keys))
        for place in range(0, len(gone), _BATCH):
            self.client.delete(self.collection, ids=gone[place : place + _BATCH])
        self.client.flush(self.collection)
        self.client.load_collection(self.collection)
        return written, len(gone)

    def of(self, index: ImageIndex) -> "MilvusVectors":
        """This collection as the vectors of a retriever over `index`; what the index does not hold is passed over.

        Raises:
            OtherModelError: the collection holds vectors of another model.
            ValueError: there is no such collection.
        """
        if not self.client.has_collection(self.collection):
            raise ValueError(f"there is no collection {self.collection!r}: synchronise(index) makes it")
        self._refuse_other(index.manifest.model)
        self.place_of = {_key(id): row for id, row in index.place_of.items()}
        return self

    def search(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """Rows of the `count` nearest of each query (Q, D), best first.

        Raises:
            ValueError: `of` was not called, so that entries belong to no index.
        """
        if self.place_of is None:
            raise ValueError("MilvusVectors.of(index) says first which index its entries belong to")
        found = self.client.search(
            self.collection,
            data=[query.tolist() for query in np.asarray(queries, dtype=np.float32)],
            limit=min(count, 16_384),  # Milvus's own limit
            output_fields=["key"],
        )
        keys = [[hit["key"] for hit in hits] for hits in found]
        return [np.array([self.place_of[key] for key in line if key in self.place_of], np.int64) for line in keys]

    def _create(self, index: ImageIndex, index_type: str) -> None:
        from pymilvus import DataType, MilvusClient

        fingerprint = _fingerprint(index.manifest.model)
        # a server keeps the description, milvus-lite the properties
        schema = MilvusClient.create_schema(auto_id=False, description=f"{_FINGERPRINT}={fingerprint}")
        schema.add_field("key", DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("id", DataType.VARCHAR, max_length=_LONGEST_ID)
        schema.add_field("content", DataType.VARCHAR, max_length=64)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=index.manifest.dimension)
        parameters = self.client.prepare_index_params()
        parameters.add_index("embedding", index_type=index_type, metric_type="IP")
        self.client.create_collection(
            self.collection, schema=schema, index_params=parameters, properties={_FINGERPRINT: fingerprint}
        )

    def _refuse_other(self, model: ModelIdentity) -> None:
        described = self.client.describe_collection(self.collection)
        found = (described.get("properties") or {}).get(_FINGERPRINT)
        if found is None and (described.get("description") or "").startswith(f"{_FINGERPRINT}="):
            found = described["description"].removeprefix(f"{_FINGERPRINT}=")
        wanted = _fingerprint(model)
        if found != wanted:
            made = f"made by another model or preprocessing ({found})" if found else "without a model's fingerprint"
            raise OtherModelError(
                f"the Milvus collection {self.collection!r} was {made}, and the index belongs to {wanted}: name "
                "another collection, or drop this one"
            )

    def _stored(self) -> dict[str, str]:
        """Content hash of every stored entry, by key."""
        iterator = self.client.query_iterator(self.collection, batch_size=_BATCH, output_fields=["key", "content"])
        stored: dict[str, str] = {}
        try:
            while rows := iterator.next():
                stored.update((row["key"], row["content"]) for row in rows)
        finally:
            iterator.close()
        return stored


def _key(id: str) -> str:
    """Primary key of a picture: hexadecimal digits, whatever its id holds."""
    return hashlib.blake2b(id.encode(), digest_size=16).hexdigest()


def _fingerprint(model: ModelIdentity) -> str:
    return f"{model.weights[:16]}-{model.preprocessing[:16]}"
