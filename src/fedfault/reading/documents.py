"""The rules that every corpus follows: which texts count as the same, and which go to validation.

Two texts are the same if they have the same letters and digits in the same order, whatever the case, blanks and
punctuation between them. The rules, in this order:

1. Texts without any character but white space are dropped; white space at both ends is cut off.
2. Of texts that are the same the first is kept, whatever topics they have.
3. A source with its own validation (or test) part keeps it, and train loses every text that is also in there.
   Otherwise the texts of each topic with the smallest hashes go to validation: which ones depends on the texts,
   not on their order.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from fedfault.errors import UserError
from fedfault.storage import cache_dir, keep
from fedfault.types.corpus import Corpus, Document

VALIDATION = 0.1  # share of the texts where the source has no split of its own; as much as `data.held_out`
PIECE = 2000  # characters: running text is cut to about the length of a BBC article (2,266 on average)

_OTHER = re.compile(r"[\W_]+")


def hash_text(text: str) -> int:
    """Hash a text to 64 bits, which are equal for texts with the same letters and digits.

    >>> hash_text("Hello, World!") == hash_text("hello world")
    True
    """
    same = _OTHER.sub("", text.lower()) or text.strip()  # "?!" has no letters, but is not the same text as "..."
    return int.from_bytes(hashlib.blake2b(same.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def drop_repeats(documents: Iterable[Document], taken: Collection[int] = ()) -> list[Document]:
    """The documents without empty texts, repeats and texts whose hash is in `taken`, in the given order (rules 1 and 2)."""
    seen, kept = set(taken), []
    for document in documents:
        text = document.text.strip()
        if text and (h := hash_text(text)) not in seen:
            seen.add(h)
            kept.append(document._replace(text=text))
    return kept


def split_off_validation(
    documents: Iterable[Document], fraction: float = VALIDATION
) -> tuple[list[Document], list[Document]]:
    """Split documents into train and validation: the `fraction` of each topic with the smallest hashes validates (rule 3).

    A topic of two or more texts is in both parts; a topic of one text is in train.
    Raises `UserError` if there are fewer than two different texts.

    >>> train, validation = split_off_validation([Document("One.", "a"), Document("Two.", "a"), Document("two", "b")])
    >>> len(train), len(validation)
    (1, 1)
    """
    kept = drop_repeats(documents)
    if len(kept) < 2:
        raise UserError(f"{len(kept)} different text(s): train and validation need at least one each")
    order = sorted(range(len(kept)), key=lambda i: hash_text(kept[i].text))
    members: dict[str, list[int]] = {}  # topic -> its documents, smallest hash first
    for i in order:
        members.setdefault(kept[i].topic, []).append(i)
    held: set[int] = set()
    for own in members.values():
        held.update(own[: min(max(round(fraction * len(own)), 1), len(own) - 1)])
    if not held:  # every text has a topic of its own
        held.add(order[0])
    return [d for i, d in enumerate(kept) if i not in held], [d for i, d in enumerate(kept) if i in held]


def fingerprint_documents(train: Sequence[Document], validation: Sequence[Document]) -> str:
    """Hash all texts, topics and groups, in their order and with their part, to 128 bits in hex."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (train, validation):
        digest.update(f"{len(part)};".encode())
        for document in part:
            for field in document:
                data = field.encode("utf-8", "surrogatepass")
                digest.update(f"{len(data)}:".encode() + data)  # lengths, so that "ab", "c" differs from "a", "bc"
    return digest.hexdigest()


def make_corpus(name: str, source: str, train: Iterable[Document], validation: Iterable[Document] = ()) -> Corpus:
    """Make a corpus by the rules above; without a `validation` part, one is split off train.

    Raises `UserError` if a part would be empty.
    """
    held = drop_repeats(validation)
    if held:
        kept = drop_repeats(train, taken={hash_text(d.text) for d in held})
        if not kept:
            raise UserError(f"{name} ({source}): no text to train on that is not in the validation part too")
    else:
        documents = drop_repeats(train)
        if not documents:
            raise UserError(f"{name} ({source}): no text in it")
        if len(documents) < 2:
            raise UserError(f"{name} ({source}): only one text; train and validation need at least one each")
        kept, held = split_off_validation(documents)
    return Corpus(name, tuple(kept), tuple(held), source, fingerprint_documents(kept, held))


def load_or_make(name: str, key: object, make: Callable[[], Corpus]) -> Corpus:
    """Read the corpus `name` from the cache, or call `make` and store what it returns; another `key` is another entry."""
    whole = repr((Document._fields, key))  # a corpus kept by a version whose documents had other fields is made again
    digest = hashlib.blake2b(whole.encode(), digest_size=12).hexdigest()
    file = cache_dir() / "corpora" / f"{name}-{digest}.json"
    if file.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a damaged file is made again
            found: dict[str, Any] = json.loads(file.read_bytes())
            sides = {side: tuple(Document(*d) for d in found[side]) for side in ("train", "validation")}
            return Corpus(**(found | sides))
    made = make()
    keep(file, json.dumps(made.__dict__).encode())
    return made


def join_and_cut(parts: Iterable[str], joiner: str = "\n\n", size: int = PIECE) -> Iterator[str]:
    """Join neighbouring parts to pieces of at most `size` characters, and cut longer parts where a line ends.

    >>> list(join_and_cut(["ab", "cd", "efghijk"], joiner=" ", size=6))
    ['ab cd', 'efghijk']
    """
    held: list[str] = []
    for part in parts:
        for piece in _cut_text(part, size):
            if held and len(joiner.join([*held, piece])) > size:
                yield joiner.join(held)
                held = []
            held.append(piece)
    if held:
        yield joiner.join(held)


def _cut_text(text: str, size: int) -> Iterator[str]:
    """Cut a text of more than `size` characters into pieces of whole lines."""
    if len(text) <= size:
        yield text
        return
    held: list[str] = []
    length = 0
    for line in text.splitlines():
        if held and length + len(line) > size:
            yield "\n".join(held)
            held, length = [], 0
        held.append(line)
        length += len(line) + 1
    yield "\n".join(held)
