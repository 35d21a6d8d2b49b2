"""`WatchEvents`: a component of an NVFlare server that listens to its events, with the detectors behind it. No torch."""

from __future__ import annotations

from typing import Any

from fedfault.diagnosis.watch import describe_finding
from fedfault.errors import UserError, join_names
from fedfault.monitor import Monitor
from fedfault.monitor.measured import Round

try:
    from nvflare.apis.event_type import EventType
    from nvflare.apis.fl_component import FLComponent
    from nvflare.apis.fl_constant import ReservedKey
    from nvflare.apis.fl_context import FLContext
    from nvflare.app_common.abstract.fl_model import FLModel, ParamsType
    from nvflare.app_common.abstract.model import ModelLearnableKey
    from nvflare.app_common.app_constant import AppConstants
    from nvflare.app_common.app_event_type import AppEventType
    from nvflare.app_common.utils.fl_model_utils import FLModelUtils
except ImportError as e:
    raise UserError(f"{e.name} is not installed; pip install nvflare") from e

import numpy as np

STEPS = "NUM_STEPS_CURRENT_ROUND"  # of the meta data of a client's model: what NVFlare weighs it by


class WatchEvents(FLComponent):  # type: ignore[misc]  # nvflare has no types
    """Watches a FedAvg of NVFlare from its server: `job.to_server(WatchEvents("mine"), id="fedfault")`.

    Round t of the run folder is the model after t rounds of NVFlare, which counts from 0. Clients evaluate the model that
    they are sent: the losses that they report in a round are of the model before it, so that a round is judged one later.
    Findings and the verdict go into the server's log, and into the run folder RESULTS_DIR/EXPERIMENT.
    """

    def __init__(
        self, experiment: str = "nvflare", results_dir: str = "results", loss: str = "", calibration: str = ""
    ) -> None:
        """loss: the name of the loss among a client's metrics, by default the one that ends in `loss`.

        Plain values, as NVFlare writes them into the configuration of a job; see `Monitor`.
        """
        super().__init__()
        self.experiment, self.results_dir, self.loss, self.calibration = experiment, results_dir, loss, calibration
        self._monitor: Monitor | None = None
        self._numbers: dict[str, int] = {}  # of the clients, as they first answered
        self._sent: dict[str, np.ndarray] = {}
        self._got: dict[int, dict[str, np.ndarray]] = {}  # updates of the round, by client
        self._sizes: dict[int, float] = {}
        self._losses: dict[int, float] = {}  # of the model that was sent
        self._held: tuple[int, dict[str, Any]] | None = None  # a round that waits for its losses

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Follow the events of a round."""
        if event_type == EventType.START_RUN:
            self._monitor = Monitor(
                self.experiment, results_dir=self.results_dir, calibration=self.calibration or None,
                say=lambda text: self.log_info(fl_ctx, f"fedfault: {text}"),
            )  # fmt: skip
        elif event_type == AppEventType.BEFORE_TRAIN_TASK:
            self._sent = _read_params(FLModelUtils.from_shareable(fl_ctx.get_prop(AppConstants.TRAIN_SHAREABLE)))
        elif event_type == AppEventType.AFTER_CONTRIBUTION_ACCEPT:
            self._take_result(fl_ctx)
        elif event_type == AppEventType.AFTER_SHAREABLE_TO_LEARNABLE:
            self._end_round(fl_ctx)
        elif event_type == EventType.END_RUN and self._monitor is not None:
            self._log_held(fl_ctx)
            verdict = self._monitor.finish()
            self.log_info(fl_ctx, f"fedfault: {verdict['state']}. {verdict['sentence']} {verdict['sure']}")

    def _take_result(self, fl_ctx: FLContext) -> None:
        """Measure what a client has sent, if it was accepted."""
        shareable = fl_ctx.get_prop(AppConstants.TRAINING_RESULT)
        if shareable is None or not fl_ctx.get_prop(AppConstants.AGGREGATION_ACCEPTED, True):
            return
        result = FLModelUtils.from_shareable(shareable)
        name = str(shareable.get_peer_prop(ReservedKey.IDENTITY_NAME, ""))
        client = self._numbers.setdefault(name, len(self._numbers))
        params = _read_params(result)
        if result.params_type != ParamsType.DIFF:
            params = {
                n: v - self._sent[n] for n, v in params.items() if n in self._sent and v.shape == self._sent[n].shape
            }
        self._got[client] = params
        self._sizes[client] = float((result.meta or {}).get(STEPS, 1.0))
        metrics = result.metrics or {}
        names = [self.loss] if self.loss else [n for n in metrics if n.lower().endswith("loss")]
        if len(names) == 1 and names[0] in metrics and np.ndim(metrics[names[0]]) == 0:
            self._losses[client] = float(metrics[names[0]])

    def _end_round(self, fl_ctx: FLContext) -> None:
        """Judge the round before with the losses that this one has brought, and keep this one."""
        t = int(fl_ctx.get_prop(AppConstants.CURRENT_ROUND, 0))
        self._held = self._held or (t, {})
        self._log_held(fl_ctx)
        made = _keep_numbers(fl_ctx.get_prop(AppConstants.GLOBAL_MODEL)[ModelLearnableKey.WEIGHTS])
        names, measured = sorted(self._sent), self._measure_clients()
        if names and set(made) >= set(names):
            measured["server_update"] = np.concatenate([(made[n] - self._sent[n]).ravel() for n in names])
        self._held = (t + 1, measured)
        self._got, self._sizes = {}, {}

    def _measure_clients(self) -> dict[str, Any]:
        """What the clients of the round have changed; where one sent other parameters none is measured, and it is named."""
        who, names = sorted(self._got), sorted(self._sent)
        if not (who and names):
            return {}
        found: dict[str, Any] = {"clients": who, "weights": [self._sizes[k] for k in who]}
        shapes = {n: value.shape for n, value in self._sent.items()}
        odd = [k for k in who if {n: value.shape for n, value in self._got[k].items()} != shapes]
        if odd:
            sites = {k: site for site, k in self._numbers.items()}
            named = join_names(f"client {k} ({sites[k]})" for k in odd)
            return found | {"events": [f"updates not measured, as parameters are not those that were sent: {named}"]}
        return found | {"updates": np.stack([np.concatenate([self._got[k][n].ravel() for n in names]) for k in who])}

    def _log_held(self, fl_ctx: FLContext) -> None:
        """Tell the monitor of the round that waits, with the losses that clients had of its model."""
        assert self._monitor is not None
        if self._held is None:
            return
        (t, measured), losses = self._held, self._losses
        self._held, self._losses = None, {}
        if losses:
            sizes = [self._sizes.get(k, 1.0) for k in losses]
            measured |= {"client_losses": losses, "loss": float(np.average(list(losses.values()), weights=sizes))}
        try:
            found = self._monitor._log(t, Round(**measured))
        except (UserError, OSError) as error:  # the job that is watched goes on
            self.log_warning(fl_ctx, f"fedfault: round {t} is not recorded: {error}")
            return
        for finding in found:
            self.log_warning(fl_ctx, f"fedfault: {describe_finding(finding)}")


def _read_params(model: FLModel) -> dict[str, np.ndarray]:
    """The parameters of a model by name."""
    return _keep_numbers(model.params or {})


def _keep_numbers(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays as float64; tensors too, and what holds no numbers is left out."""
    arrays = {name: np.asarray(v.detach().cpu() if hasattr(v, "detach") else v) for name, v in params.items()}
    return {name: a.astype(np.float64) for name, a in arrays.items() if np.issubdtype(a.dtype, np.number)}
