"""What every loader shares: when two texts are the same, what is held back for validation, what a corpus is called.

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


def text_hash(text: str) -> int:
    """64 bits that are the same for texts with the same letters and digits.

    >>> text_hash("Hello, World!") == text_hash("hello world")
    True
    """
    same = _OTHER.sub("", text.lower()) or text.strip()  # "?!" has no letters, but is not the same text as "..."
    return int.from_bytes(hashlib.blake2b(same.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def distinct(documents: Iterable[Document], taken: Collection[int] = ()) -> list[Document]:
    """Rules 1 and 2: stripped, without empty texts, repeats and texts whose hash is taken; in the given order."""
    seen, kept = set(taken), []
    for document in documents:
        text = document.text.strip()
        if text and (h := text_hash(text)) not in seen:
            seen.add(h)
            kept.append(document._replace(text=text))
    return kept


def split(documents: Iterable[Document], fraction: float = VALIDATION) -> tuple[list[Document], list[Document]]:
    """Train and validation: of every topic the `fraction` with the smallest hashes is validation (rule 3).

    A topic of two or more texts is on both sides, a topic of one text trains.
    Raises `UserError` if there are fewer than two different texts.

    >>> train, validation = split([Document("One.", "a"), Document("Two.", "a"), Document("two", "b")])
    >>> len(train), len(validation)
    (1, 1)
    """
    kept = distinct(documents)
    if len(kept) < 2:
        raise UserError(f"{len(kept)} different text(s): train and validation need at least one each")
    order = sorted(range(len(kept)), key=lambda i: text_hash(kept[i].text))
    members: dict[str, list[int]] = {}  # topic -> its documents, smallest hash first
    for i in order:
        members.setdefault(kept[i].topic, []).append(i)
    held: set[int] = set()
    for own in members.values():
        held.update(own[: min(max(round(fraction * len(own)), 1), len(own) - 1)])
    if not held:  # every text has a topic of its own
        held.add(order[0])
    return [d for i, d in enumerate(kept) if i not in held], [d for i, d in enumerate(kept) if i in held]


def fingerprint(train: Sequence[Document], validation: Sequence[Document]) -> str:
    """128 bits in hex, of all texts, topics and groups, their order and their side."""
    digest = hashlib.blake2b(digest_size=16)
    for part in (train, validation):
        digest.update(f"{len(part)};".encode())
        for document in part:
            for field in document:
                data = field.encode("utf-8", "surrogatepass")
                digest.update(f"{len(data)}:".encode() + data)  # lengths, so that "ab", "c" differs from "a", "bc"
    return digest.hexdigest()


def corpus(name: str, source: str, train: Iterable[Document], validation: Iterable[Document] = ()) -> Corpus:
    """A corpus by the rules above; without a `validation` part, one is split off train."""
    held = distinct(validation)
    if held:
        kept = distinct(train, taken={text_hash(d.text) for d in held})
        if not kept:
            raise UserError(f"{name} ({source}): no text to train on that is not in the validation part too")
    else:
        documents = distinct(train)
        if not documents:
            raise UserError(f"{name} ({source}): no text in it")
        if len(documents) < 2:
            raise UserError(f"{name} ({source}): only one text; train and validation need at least one each")
        kept, held = split(documents)
    return Corpus(name, tuple(kept), tuple(held), source, fingerprint(kept, held))


def cached(name: str, key: object, make: Callable[[], Corpus]) -> Corpus:
    """The corpus that `make` gives, kept in the cache for as long as `key` stays what it is."""
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


def pieces(parts: Iterable[str], joiner: str = "\n\n", size: int = PIECE) -> Iterator[str]:
    """Neighbouring parts joined to at most `size` characters; a longer part is cut where a line ends.

    >>> list(pieces(["ab", "cd", "efghijk"], joiner=" ", size=6))
    ['ab cd', 'efghijk']
    """
    held: list[str] = []
    for part in parts:
        for piece in _cut(part, size):
            if held and len(joiner.join([*held, piece])) > size:
                yield joiner.join(held)
                held = []
            held.append(piece)
    if held:
        yield joiner.join(held)


def _cut(text: str, size: int) -> Iterator[str]:
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
