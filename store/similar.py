"""What `like` means: the embedding and the vector that clips are compared with."""

import re
from typing import TYPE_CHECKING

import pyarrow as pa

from store.digest import KINDS
from store.embedding import words
from store.errors import StoreError, nearest
from store.expression import equals
from store.scan import scan

if TYPE_CHECKING:
    from store.database import Store

_ID = re.compile(rf"(?:{'|'.join(KINDS)})-\S*\d\S*")  # what is meant as an id, found or not


def like_what(store: "Store", like: str, embedding: str | None = None) -> tuple[tuple[str, list[float]], str | None]:
    """(embedding column, vector) of a clip's id or of any other text, and the clip itself if it is one.

    A clip is compared by `look` unless `embedding` says otherwise, a text by `words`.
    Raises StoreError for an unknown id or embedding, and for what cannot be compared by it.
    """
    if not isinstance(like, str) or not like.strip():
        raise StoreError(f"like takes the id of a clip, or words; got {like!r}")
    catalog = store.open("catalog")
    known = [field.name for field in catalog.schema if pa.types.is_fixed_size_list(field.type)]
    if embedding is not None and embedding not in known:
        raise StoreError(f"no embedding {embedding!r}{nearest(str(embedding), known)}; embeddings: {', '.join(known)}")
    like = like.strip()
    column = embedding or "look"
    if not re.search(r"\s", like):
        found = scan(catalog, [column], equals("clip_id", like), limit=1)
        if found.num_rows:
            vector = found[column].to_pylist()[0]
            if not any(vector):
                raise StoreError(f"{like} has no {column} to compare by: its prompt has no word that counts")
            return (column, vector), like
        if _ID.fullmatch(like):
            ids = scan(catalog, ["clip_id"])["clip_id"].to_pylist()
            raise StoreError(f"no clip {like!r} to be like{nearest(like, ids)}; like takes a clip's id, or words")
    if embedding not in (None, "words"):
        raise StoreError(f"a text has no {embedding}; leave out embedding, or give like the id of a clip")
    vector = words(like).tolist()
    if not any(vector):
        raise StoreError(f"like {like[:100]!r} has no word that counts")
    return ("words", vector), None
