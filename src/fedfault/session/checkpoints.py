"""The model of one round out of a run's checkpoints, as the folder that a finished run has for its last one."""

from __future__ import annotations

from pathlib import Path

from fedfault.backbones.export import export_adapter
from fedfault.data.labelled import list_classes
from fedfault.runs.folder import RunFolder
from fedfault.session.provenance import check_same_inputs, tell_where_data_were
from fedfault.session.settings import find_own_settings, load_own
from fedfault.setup.experiment import prepare


def export_round(path: Path, round: int, target: Path) -> None:
    """Write the server's adapter after a round of a run to the folder `target`, in PEFT's format.

    Raises `UserError` for a round without a checkpoint, and where model or data are no longer those of the run.
    """
    folder = RunFolder.open(path)
    folder.check_checkpoint(round)
    manifest = folder.read_manifest()
    with tell_where_data_were(manifest):
        p = prepare(load_own(folder, manifest, find_own_settings(manifest, round)).experiment)
    check_same_inputs(manifest, p)
    state, _ = folder.load(p.federation.task.layout, p.model.device, round)
    card = f"The server's adapter after round {round} of the run {p.config.experiment_name}.\n"
    labels = list_classes(p.config, p.split.corpus)
    export_adapter(target, p.backbone, p.model, state.adapter, card, state.base, labels)
