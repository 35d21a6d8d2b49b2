"""An NVFlare job as a stranger writes it: FedAvg on numpy in its simulator, watched. Needs an environment with NVFlare.

python tests/monitor/nvflared.py WORKSPACE RESULTS NAME[:broken]
"""

from __future__ import annotations

import sys

import numpy as np
from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReservedKey
from nvflare.app_common.abstract.fl_model import FLModel
from nvflare.app_common.app_constant import AppConstants
from nvflare.app_common.utils.fl_model_utils import FLModelUtils
from nvflare.app_common.workflows.fedavg import FedAvg
from nvflare.job_config.api import FedJob

from fedfault.monitor.nvflare import WatchEvents

TARGET, SIZE = 3.0, 8


class Server(FedAvg):
    """FedAvg that starts from zeros and keeps nothing."""

    def load_model(self):
        return FLModel(params={"w": np.zeros(SIZE)})

    def save_model(self, model):
        pass


class Client(Executor):
    """Pulls every weight towards 3 with noise of its own, or from round 3 on away from it; its loss is the distance."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.broken = broken

    def execute(self, task_name, shareable, fl_ctx, abort_signal):
        model = FLModelUtils.from_shareable(shareable)
        w, t = np.asarray(model.params["w"]), int(shareable.get_header(AppConstants.CURRENT_ROUND, 0))
        g = np.random.default_rng([t, *fl_ctx.get_prop(ReservedKey.IDENTITY_NAME, "").encode()])
        rate = -0.6 if self.broken and t > 2 else 0.3
        new = w + rate * (TARGET - w) + 0.05 * g.normal(size=SIZE)
        metrics = {"val_loss": float(np.abs(w - TARGET).mean())}
        return FLModelUtils.to_shareable(
            FLModel(params={"w": new}, metrics=metrics, meta={"NUM_STEPS_CURRENT_ROUND": 4})
        )


def main(workspace: str, results: str, name: str, broken: bool) -> None:
    job = FedJob(name=name)
    job.to_server(Server(num_clients=3, num_rounds=8, persistor_id=""))
    job.to_server(WatchEvents(name, results), id="fedfault")
    for k in range(3):
        job.to(Client(broken), f"site-{k + 1}", tasks=["train"])
    job.simulator_run(workspace, threads=3)


if __name__ == "__main__":
    workspace, results, name = sys.argv[1:]
    main(workspace, results, *name.split(":")[:1], name.endswith(":broken"))
