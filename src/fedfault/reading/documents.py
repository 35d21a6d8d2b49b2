"""The rules that every corpus follows: which texts count as the same, and which go to validation.

Two texts are the same if they have the same characters in the same order, whatever their case and whatever blanks and
line ends stand at one place: `2 - 5` is not `2 + 5`, and a word with another vowel sign or a smile is another text. Two
conversations are the same if their turns are. The rules, in this order:

1. Texts without any character but white space are dropped; white space at both ends is cut off.
2. Of texts that are the same the first is kept, whatever topics they have; `keep_repeats` keeps all.
3. A source with its own validation (or test) part keeps it, and train loses every text that is also in there.
   Otherwise the texts of each topic with the smallest hashes go to validation, copies together, and so do conversations
   that begin with one prompt: which ones depends on the texts, not on their order.

How many each rule drops is counted, and so are the texts in train that differ from one in validation in signs alone, and
the conversations in validation whose prompt is in train.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from fedfault.errors import UserError
from fedfault.reading.sides import Sides, name_sides
from fedfault.storage import cache_dir, keep, recall
from fedfault.types.corpus import Corpus, Document, Tally

VALIDATION = 0.1  # share of the texts where the source has no split of its own; as much as `data.held_out`
PIECE = 2000  # characters: running text is cut to about the length of a BBC article (2,266 on average)

_OTHER = re.compile(r"[\W_]+")


def hash_text(text: str) -> int:
    """Hash a text to 64 bits, which are equal for texts that are the same: in all characters but case and blanks.

    >>> hash_text("Two  plus\\nfive") == hash_text("two plus five")
    True
    >>> hash_text("2 + 5") == hash_text("2 - 5")
    False
    """
    return _hash_characters(fold_text(text))


def fold_text(text: str) -> str:
    """Write a text as all texts that are the same: in small letters, with a blank where white space is."""
    return " ".join(unicodedata.normalize("NFC", text).lower().split())


def hash_letters(text: str) -> int:
    """Hash a text to 64 bits, which are equal for texts with the same letters and digits, whatever is between them.

    >>> hash_letters("Hello, World!") == hash_letters("hello world")
    True
    """
    return _hash_characters(_OTHER.sub("", text.lower()) or text.strip())  # "?!" has no letters, and is not "..."


def _hash_characters(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")


def drop_repeats(documents: Iterable[Document]) -> list[Document]:
    """The documents without empty texts and repeats, in the given order (rules 1 and 2)."""
    return _sift_documents(documents).kept


class _Sifted(NamedTuple):
    """The documents that rules 1 to 3 keep, and how many were dropped, by the names that `Tally` has for them."""

    kept: list[Document]
    hashes: list[int]  # of their texts
    dropped: Counter[str]


def _sift_documents(
    documents: Iterable[Document],
    taken: Collection[int] = (),
    *,
    keep_repeats: bool = False,
    hash_of: Callable[[str], int] = hash_text,
) -> _Sifted:
    """Keep the documents that have text, no earlier text again, and no text whose hash is `taken` by the other side."""
    first: dict[int, str] = {}  # hash of a text -> the topic that it is kept with
    kept: list[Document] = []
    hashes: list[int] = []
    dropped: Counter[str] = Counter()
    for document in documents:
        dropped["read"] += 1
        text = document.text.strip()
        if not text:
            dropped["empty"] += 1
        elif (h := hash_of(text)) in taken:
            dropped["shared"] += 1
        elif h in first and not keep_repeats:
            dropped["repeated"] += 1
            dropped["relabelled"] += first[h] != document.topic
        else:
            first.setdefault(h, document.topic)
            kept.append(document._replace(text=text))
            hashes.append(h)
    return _Sifted(kept, hashes, dropped)


def split_off_validation(
    documents: Sequence[Document],
    hashes: Sequence[int],
    fraction: float = VALIDATION,
    openings: Mapping[str, str] | None = None,
) -> tuple[list[Document], list[Document]]:
    """Split documents into train and validation: the `fraction` of each topic with the smallest hashes validates (rule 3).

    A topic of two or more texts is in both parts; a topic of one text is in train. Copies of a text, which have one hash,
    stay together. So do conversations that begin with one prompt, by `openings` (text -> prompt), of which no more than
    the fraction validates where that can be; only where no topic has two prompts they are split like other texts.
    Raises `UserError` if there are fewer than two different texts.

    >>> documents = [Document("One.", "a"), Document("Two.", "a"), Document("two.", "b")]
    >>> train, validation = split_off_validation(documents, [hash_text(d.text) for d in documents])
    >>> len(train), len(validation)
    (2, 1)
    """
    openings = openings or {}
    kept: dict[int, Document] = {}  # the first of each text
    prompts: dict[int, list[int]] = {}  # of a prompt -> the texts that begin with it; text without one is its own
    ranks: dict[int, tuple[int, int]] = {}
    for h, document in zip(hashes, documents, strict=True):
        if h not in kept:
            kept[h] = document
            ranks[h] = hash_letters(document.text), h
            opening = openings.get(document.text)
            prompts.setdefault(h if opening is None else hash_text(opening), []).append(h)
    if len(kept) < 2:
        raise UserError("only one text; train and validation need at least one each")
    for prompt, own in prompts.items():
        if len(own) > 1:  # by the prompt itself: of many texts the smallest hash would be small
            ranks[own[0]] = hash_letters(openings[kept[own[0]].text]), prompt
    each = [[h] for h in kept]
    held = _hold_fraction(kept, prompts.values(), ranks, fraction) or _hold_fraction(kept, each, ranks, fraction)
    if not held:  # every text has a topic of its own
        held.add(min(kept, key=ranks.__getitem__))
    sides: tuple[list[Document], list[Document]] = ([], [])
    for h, document in zip(hashes, documents, strict=True):
        sides[h in held].append(document)
    return sides


def _hold_fraction(
    kept: Mapping[int, Document], groups: Iterable[list[int]], ranks: Mapping[int, tuple[int, int]], fraction: float
) -> set[int]:
    """Hold back whole groups of texts, those of the lowest rank, up to the fraction of each topic that has two groups."""
    members: dict[str, list[list[int]]] = {}  # topic -> its groups, the lowest rank first
    for group in sorted(groups, key=lambda own: ranks[own[0]]):
        members.setdefault(kept[group[0]].topic, []).append(group)
    held: set[int] = set()
    for own in members.values():
        if len(own) < 2:
            continue
        n = sum(map(len, own))
        wanted, taken = min(max(round(fraction * n), 1), n - 1), 0
        for group in own:
            if taken + len(group) <= wanted:
                held.update(group)
                taken += len(group)
        if not taken:
            smallest = min(own, key=len)
            held.update(smallest)
    return held


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


def make_corpus(
    name: str,
    source: str,
    train: Iterable[Document],
    validation: Iterable[Document] = (),
    *,
    sides: Sides | None = None,
    keep_repeats: bool = False,
    hash_of: Callable[[str], int] = hash_text,
    openings: Mapping[str, str] | None = None,
) -> Corpus:
    """Make a corpus by the rules above; without a `validation` part, one is split off train.

    `sides` are the files that were read; texts of one hash by `hash_of` are the same; `openings` has the prompt of each text
    that is a conversation.

    Raises `UserError` if a part would be empty.
    """
    held, taken, lost = _sift_documents(validation, keep_repeats=keep_repeats, hash_of=hash_of)
    kept, hashes, dropped = _sift_documents(train, set(taken), keep_repeats=keep_repeats, hash_of=hash_of)
    if not kept:
        why = "no text to train on that is not in the validation part too" if held else "no text in it"
        raise UserError(f"{name} ({source}): {why}")
    if lost["read"] and not held:
        raise UserError(
            f"{name} ({source}): no text in the {lost['read']:,} rows of the validation part; fill or remove it"
        )
    if not held:
        try:
            kept, held = split_off_validation(kept, hashes, openings=openings)
        except UserError as e:
            raise UserError(f"{name} ({source}): {e}") from None
    letters = {hash_letters(d.text) for d in held}
    begun, tried = ([hash_text(openings[d.text]) for d in side] if openings else [] for side in (kept, held))
    trained = set(begun)
    lost_in_all = dropped + lost
    trained_on, validated_on, left_out = name_sides(sides) if sides else ("", "", "")
    tally = Tally(
        train_files=trained_on,
        validation_files=validated_on,
        left_out=left_out,
        train=dropped["read"],
        validation=lost["read"],
        empty=lost_in_all["empty"],
        repeated=lost_in_all["repeated"],
        relabelled=lost_in_all["relabelled"],
        shared=dropped["shared"],
        near=sum(hash_letters(d.text) in letters for d in kept),
        repeats_kept=keep_repeats,
        prompts=sum(prompt in trained for prompt in tried),
        unheld=len({d.topic for d in kept} - {d.topic for d in held}),
    )
    return Corpus(name, tuple(kept), tuple(held), source, fingerprint_documents(kept, held), tally=tally)


def load_or_make(name: str, key: object, make: Callable[[], Corpus]) -> Corpus:
    """Read the corpus `name` from the cache, or call `make` and store what it returns; another `key` is another entry."""
    # a corpus that another version has kept, whose documents had other fields, is made again
    fields = [[field.name for field in dataclasses.fields(kind)] for kind in (Corpus, Tally)]
    whole = repr((Document._fields, fields, key))
    digest = hashlib.blake2b(whole.encode(), digest_size=12).hexdigest()
    file = cache_dir() / "corpora" / f"{name}-{digest}.json"
    if (kept := recall(file)) is not None:
        found: dict[str, Any] = json.loads(kept)
        sides = {side: tuple(Document(*d) for d in found[side]) for side in ("train", "validation")}
        return Corpus(**(found | sides | {"tally": Tally(**found["tally"])}))
    made = make()
    keep(file, json.dumps({**made.__dict__, "tally": dataclasses.asdict(made.tally)}).encode())
    return made


def join_and_cut(parts: Iterable[str], joiner: str = "\n\n", size: int = PIECE) -> Iterator[str]:
    """Join neighbouring parts to pieces of at most `size` characters, and cut longer parts where a line ends.

    >>> list(join_and_cut(["ab", "cd", "efghijk"], joiner=" ", size=6))
    ['ab cd', 'efghijk']
    """
    held: list[str] = []
    for part in parts:
        for piece in cut_text(part, size):
            if held and len(joiner.join([*held, piece])) > size:
                yield joiner.join(held)
                held = []
            held.append(piece)
    if held:
        yield joiner.join(held)


def cut_text(text: str, size: int = PIECE) -> Iterator[str]:
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
