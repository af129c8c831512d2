"""The nearest embeddings by a Milvus server, or by milvus-lite in a local file: for collections beyond one machine.

The index on disk stays as it is (pictures, embeddings, what is kept for the ranker); Milvus answers which pictures are
nearest. Tested with milvus-lite through the same client as a server.
"""

from typing import Any

import numpy as np

from .store import PictureIndex

_BATCH = 1000
_LONGEST_ID = 8192


class MilvusVectors:
    """A collection whose entries are the pictures of an index, by their ids.

    Args:
        uri: `http://host:19530`, or a file `name.db` for milvus-lite. collection: its name.
        token: "user:password", where the server wants one.
        metric is the inner product of unit vectors, the cosine.

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
        self.place_of: dict[str, int] | None = None

    def synchronise(self, index: PictureIndex, index_type: str = "AUTOINDEX") -> tuple[int, int]:
        """Make the collection hold what the index holds: insert or replace, and delete what is gone.

        Returns:
            how many were written and how many deleted.

        Raises:
            ValueError: an id longer than Milvus takes, or a collection of another dimension.
        """
        self._create(index.manifest.dimension, index_type)
        ids = index.table.column("id").to_pylist()
        if too_long := [id for id in ids if len(id.encode()) > _LONGEST_ID]:
            raise ValueError(f"Milvus takes ids of {_LONGEST_ID} bytes; too long: {too_long[0][:80]!r}…")
        stored = self._stored()
        written, start = 0, 0
        for embeds, contents in zip(index.all_embeds(), self._contents(index), strict=True):
            rows = [
                {"id": id, "content": content, "embedding": embed}
                for id, content, embed in zip(ids[start : start + len(embeds)], contents, embeds, strict=True)
                if stored.get(id) != content
            ]
            for place in range(0, len(rows), _BATCH):
                self.client.upsert(self.collection, rows[place : place + _BATCH])
            written, start = written + len(rows), start + len(embeds)
        gone = sorted(set(stored) - set(ids))
        for place in range(0, len(gone), _BATCH):
            self.client.delete(self.collection, ids=gone[place : place + _BATCH])
        self.client.flush(self.collection)
        self.client.load_collection(self.collection)
        return written, len(gone)

    def of(self, index: PictureIndex) -> "MilvusVectors":
        """This collection as the vectors of a retriever over `index`; what the index does not hold is passed over."""
        self.place_of = index.place_of
        return self

    def search(self, queries: np.ndarray, count: int) -> list[np.ndarray]:
        """Rows of the `count` nearest of each query (Q, D), best first.

        Raises:
            ValueError: `of` was not called, so that ids belong to no index.
        """
        if self.place_of is None:
            raise ValueError("MilvusVectors.of(index) says first which index its ids belong to")
        found = self.client.search(
            self.collection,
            data=[query.tolist() for query in np.asarray(queries, dtype=np.float32)],
            limit=min(count, 16_384),  # Milvus's own limit
            output_fields=["id"],
        )
        ids = [[hit["id"] for hit in hits] for hits in found]
        return [np.array([self.place_of[id] for id in line if id in self.place_of], np.int64) for line in ids]

    def _create(self, dimension: int, index_type: str) -> None:
        from pymilvus import DataType, MilvusClient

        if self.client.has_collection(self.collection):
            fields = {field["name"]: field for field in self.client.describe_collection(self.collection)["fields"]}
            found = int(fields["embedding"]["params"]["dim"]) if "embedding" in fields else None
            if found != dimension:
                raise ValueError(
                    f"the collection {self.collection!r} holds vectors of {found} numbers and the index of "
                    f"{dimension}: name another collection"
                )
            return
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=_LONGEST_ID)
        schema.add_field("content", DataType.VARCHAR, max_length=64)
        schema.add_field("embedding", DataType.FLOAT_VECTOR, dim=dimension)
        parameters = self.client.prepare_index_params()
        parameters.add_index("embedding", index_type=index_type, metric_type="IP")
        self.client.create_collection(self.collection, schema=schema, index_params=parameters)

    def _stored(self) -> dict[str, str]:
        """Content hash of every stored id."""
        iterator = self.client.query_iterator(self.collection, batch_size=_BATCH, output_fields=["id", "content"])
        stored: dict[str, str] = {}
        try:
            while rows := iterator.next():
                stored.update((row["id"], row["content"]) for row in rows)
        finally:
            iterator.close()
        return stored

    @staticmethod
    def _contents(index: PictureIndex) -> list[list[str]]:
        return [shard.rows.column("content").to_pylist() for shard in index.shards]
