"""What a run is made of, for its manifest: model, data, tokenizer and further files, each with its fingerprint."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fedfault.config.schema import Experiment
from fedfault.diagnosis.calibration import AUTO
from fedfault.setup.experiment import Prepared
from fedfault.storage import expand_home


def describe_sources(p: Prepared) -> dict[str, Any]:
    """What the manifest says about the inputs: model, data, tokenizer, files of traces, thresholds and general text."""
    corpus = p.split.corpus
    return {
        **{name: said for probe in p.federation.probes.values() for name, said in probe.provenance.items()},
        "model": {
            "name": p.backbone.name,
            "source": p.backbone.source,
            **({"revision": p.backbone.revision} if p.backbone.revision else {}),
            "fingerprint": p.backbone.fingerprint,
            "precision": p.backbone.precision,
            "quantization": p.backbone.quantization,
            "parameters": p.parameters,
            "trainable": p.model.layout.size,
            "targets": sorted({n.rpartition(".")[2] for n in p.model.targets.lora})
            or list(p.model.targets.full_modules),
            **({} if p.template is None else {"chat_template": p.template.name}),
            **({"pooling": p.model.scorer.pooling, "outputs": p.model.scorer.outputs} if p.model.scorer else {}),
        },
        "corpus": {
            "name": corpus.name,
            "source": corpus.source,
            "fingerprint": corpus.fingerprint,
            "documents": {"train": len(corpus.train), "validation": len(corpus.validation)},
            "read": {
                **asdict(corpus.tally),
                "too_short": p.split.too_short,
                "cut": p.split.cut,
                "unanswered": p.split.unanswered,
            },
        },
        "tokenizer": {"source": p.backbone.source, "fingerprint": _fingerprint_tokens(p)},
        **{
            what: {"source": path, "fingerprint": _fingerprint_files(expand_home(path, what))}
            for what, path in _list_files(p.config)
        },
    }


def _fingerprint_tokens(p: Prepared) -> str:
    """Hash the vocabulary, the separator and the tokens of the run's own texts: what the tokenizer does, not how it is kept.

    The same tokenizer written by another version of its library has the same fingerprint.
    """
    digest = hashlib.blake2b(digest_size=16)
    vocabulary = p.backbone.tokenizer.get_vocab()
    digest.update(repr((p.backbone.separator, sorted(vocabulary.items()))).encode("utf-8", "surrogatepass"))
    for name, part in sorted(p.split.validation.items()):
        digest.update(name.encode("utf-8", "surrogatepass") + part.ids.numpy().tobytes())
    digest.update(p.split.tokens.ids.tobytes() + p.split.tokens.lengths.tobytes())
    return digest.hexdigest()


def _list_files(exp: Experiment) -> list[tuple[str, str]]:
    """List the further files that the numbers of a run depend on: what each is, and its path as the settings have it."""
    found = [("trace", exp.clock.trace), ("chat_template", exp.model.chat_template)]
    found += (
        [("calibration", exp.detectors.calibration)]
        if exp.detectors.calibration not in ("packaged", AUTO, "none")
        else []
    )
    general = exp.evaluation.general
    found += [("general", general)] if general not in ("base_samples", "wikitext", "none") else []
    return [(what, path) for what, path in found if path is not None and expand_home(path, what).exists()]


def _fingerprint_files(root: Path) -> str:
    """Hash a file, or all files of a folder with their places in it."""
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(p for p in root.rglob("*") if p.is_file()) if root.is_dir() else [root]:
        data = file.read_bytes()
        digest.update(f"{file.relative_to(root)}:{len(data)}:".encode("utf-8", "surrogatepass") + data)
    return digest.hexdigest()
