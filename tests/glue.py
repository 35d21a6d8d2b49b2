"""Files as GLUE has them, of made-up sentences."""

from __future__ import annotations

from tiny import WORDS

HEADERS = {
    "SST-2": "sentence\tlabel",
    "MRPC": "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String",
    "STS-B": "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
    "RTE": "index\tsentence1\tsentence2\tlabel",
}


def sentence(i: int) -> str:
    """Different texts for different i, of three to six words."""
    return " ".join(WORDS[(i // 14**k) % 14] for k in range(3 + i % 4))


def line(task: str, i: int) -> str:
    a, b = sentence(i), sentence(i + 7)
    return {
        "SST-2": f"{a} \t{i % 2}",
        "MRPC": f"{int(i % 3 > 0)}\t1\t2\t{a}\t{b}",
        "STS-B": f"{i}\tg\tf\t2012\t1\tn\tn\t{a}\t{b}\t{(i * 7) % 51 / 10:.3f}",
        "RTE": f"{i}\t{a}\t{b}\t{'entailment' if i % 2 else 'not_entailment'}",
    }[task]


def glue(folder, task: str, n: int = 60):
    """A task's files as the original archive has them."""
    (folder / task).mkdir()
    for name, numbers in (("train", range(n)), ("dev", range(1000, 1000 + n // 2))):
        rows = [HEADERS[task], *(line(task, i) for i in numbers)]
        (folder / task / f"{name}.tsv").write_text("\n".join(rows) + "\n")
    return str(folder)
