"""A run in Flower's own simulation: every client a virtual node, its part done by Ray workers in processes of their own."""

from __future__ import annotations

import os
from collections.abc import Sequence

from fedfault.config.loading import Loaded
from fedfault.errors import UserError
from fedfault.runs.folder import RunFolder
from fedfault.session.progress import Progress


def simulate(
    loaded: Loaded, progress: Progress, *, workers: int, overwrite: bool = False, argv: Sequence[str] = ()
) -> RunFolder:
    """Run an experiment over as many virtual nodes as it has clients, `workers` of them at a time.

    The folder, the results and the report are those of `fedfault run`. Raises `UserError` where Flower or Ray is missing.
    """
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray  # noqa: F401
        from flwr.app import Context
        from flwr.serverapp import Grid, ServerApp
        from flwr.simulation import run_simulation

        from fedfault.flower.client import app
        from fedfault.flower.server import serve
    except ImportError as e:
        raise UserError(f'{e.name} is not installed; pip install "fedfault[flower]"') from e
    server, done, failed = ServerApp(), list[RunFolder](), list[UserError]()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        try:
            done.append(serve(grid, loaded, progress, overwrite=overwrite, argv=argv))
        except UserError as e:  # Flower would log it as a crash
            failed.append(e)

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": workers}}
    run_simulation(server, app, loaded.experiment.federation.total_clients, backend_config=resources)
    if failed:
        raise failed[0]
    return done[0]
