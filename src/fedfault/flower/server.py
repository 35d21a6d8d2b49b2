"""The ServerApp: a run as `fedfault run` makes it, with nodes in the place of clients."""

from __future__ import annotations

import hashlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import replace

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedfault.config.loading import Loaded, load
from fedfault.config.schema import Experiment
from fedfault.data.labelled import list_classes
from fedfault.errors import InUseError, UserError
from fedfault.flower.expected import make_first_broadcast
from fedfault.flower.nodes import Nodes
from fedfault.flower.site import collect_facts
from fedfault.hardware.plan import Hardware
from fedfault.records import RoundRecord, Score
from fedfault.rounds.federation import Federation
from fedfault.rounds.local import LocalWork, count_steps
from fedfault.runs.folder import RunFolder
from fedfault.runs.manifest import find_status
from fedfault.saying import Say
from fedfault.session.claim import locate_run
from fedfault.session.progress import Progress
from fedfault.session.start import start_run
from fedfault.setup.equipment import list_precisions
from fedfault.setup.experiment import Prepared, prepare
from fedfault.types.adapter import Adapter
from fedfault.types.delegating import DelegatingTask
from fedfault.types.task import Served, Task
from fedfault.wire import REGISTERED

POLL = 1.0  # seconds between looks at who has come
ASKED = 60.0  # seconds that who has come is given to answer, at least: a site loads its model first
HANDOVER = 60.0  # seconds within which a ServerApp notices that its SuperLink was killed, and ends


def serve(
    grid: Grid,
    loaded: Loaded,
    progress: Progress,
    *,
    overwrite: bool = False,
    argv: Sequence[str] = (),
    program: str = "fedfault",
) -> RunFolder:
    """Make a run over the nodes of a grid, to its end; one of this very configuration that was stopped goes on.

    argv and program: the command that the manifest names, as `session.start.start_run` takes them.
    """
    path = locate_run(loaded.experiment)
    before: Sequence[RoundRecord] = []
    if (status := find_status(path)) is not None:
        await_former_server(RunFolder(path), progress)
        before = [] if overwrite or status == "begun" else RunFolder(path).read_records()

    def ready(exp: Experiment, say: Say) -> Prepared:
        return connect_nodes(grid, say, prepare(exp, say), before)

    return start_run(loaded, progress, overwrite=overwrite, argv=argv, program=program, ready=ready)


def await_former_server(folder: RunFolder, progress: Progress) -> None:
    """Wait until a ServerApp that outlives its SuperLink lets go of the run. `InUseError` if it does not in time."""
    end, announced = time.monotonic() + HANDOVER, False
    while True:
        try:
            with folder.lock():
                return
        except InUseError:
            if time.monotonic() > end:
                raise
        if not announced:
            progress.say(f"{folder.path} is in use by another process; waiting up to {HANDOVER:g} seconds for its end")
            announced = True
        time.sleep(POLL)


def connect_nodes(grid: Grid, say: Say, p: Prepared, records: Sequence[RoundRecord]) -> Prepared:
    """Return the experiment with the nodes of a grid in the place of its clients; `records` of the run so far.

    Waits until every client has joined, at most flower.join_seconds, then goes on with those that have if they are
    flower.min_clients at least. Raises `UserError` otherwise, or where the federation needs what no server has.
    """
    exp, fed = p.config, p.federation
    check_remote(exp, fed)
    nodes = Nodes(
        grid,
        run=identify_run(exp),
        facts=collect_facts(p),
        experiment=_name_classes(p).model_dump_json(),
        deadline=exp.flower.deadline,
        join_seconds=exp.flower.join_seconds,
        min_clients=exp.flower.min_clients,
        max_update_norm=exp.flower.max_update_norm,
        say=say,
        used={r.round: [c.client for c in r.clients] for r in records},
    )
    await_clients(nodes, fed.total_clients)
    if nodes.own:
        check_sites(exp, fed)
    probes = {name: probe for name, probe in fed.probes.items() if not probe.gradients}
    task = ReportedTask(fed.task, nodes)
    hardware = None if fed.hardware is None else count_own_work(fed.hardware, fed.work, nodes)
    fed = replace(fed, task=task, remote=nodes, memory_elsewhere=True, probes=probes, hardware=hardware)
    return replace(p, federation=fed, data_elsewhere=nodes.own)


def _name_classes(p: Prepared) -> Experiment:
    """Return the experiment as nodes are sent it: with the names of all classes, of which a site may have some."""
    exp = p.config
    if exp.data.task_type != "classification":
        return exp
    data = exp.data.model_copy(update={"label_names": list(list_classes(exp, p.split.corpus))})
    return exp.model_copy(update={"data": data})


def check_remote(exp: Experiment, fed: Federation) -> None:
    """Raise `UserError` for what cannot be done where clients are elsewhere."""
    f, sent = exp.federation, make_first_broadcast(fed)
    wrong = {
        "federation.centralised=true has all data in one place": f.centralised,
        "federation.asynchronous is on the simulated clock, and nodes come when they are done": f.asynchronous
        is not None,
        "personalise trains clients' models where the server is": exp.personalise is not None,
        f"federation.algorithm={f.algorithm.name} needs at the server what clients keep": "x" not in sent,
        f"federation.algorithm={f.algorithm.name} needs at the clients what no message says": not sent.keys().isdisjoint(
            REGISTERED
        ),
        f"federation.aggregation={f.aggregation.name} adds to the frozen weights, which nodes have": (
            "folds" in fed.aggregation.traits
        ),
        f"federation.on_failure={f.on_failure} changes settings that nodes have": f.on_failure
        in ("rollback", "cluster"),
        "clock.mode=measured measures this process, and nodes train": fed.hardware is not None
        and fed.hardware.measured,
    }
    if found := [reason for reason, applies in wrong.items() if applies]:
        raise UserError(f"{'; '.join(found)}: that cannot be done over Flower. Choose another, or use `fedfault run`")


def check_sites(exp: Experiment, fed: Federation) -> None:
    """Raise `UserError` for what cannot be done where clients have data and models of their own."""
    chosen = exp.federation.scheduler.name
    if "size" in fed.selection.needs:
        raise UserError(
            f"federation.selection={exp.federation.selection.name} needs the sizes of all clients before they have "
            "joined; choose uniform, or use `fedfault run`"
        )
    if fed.hardware is not None and fed.hardware.scheduler.needs_gain:
        raise UserError(
            f"federation.scheduler={chosen} asks how much each client's held-out loss fell from the whole model, which "
            "no site has: choose fixed, exact or cvx, or use `fedfault run`"
        )
    if exp.privacy.unit is not None:
        raise UserError(
            "privacy rests on draws and noise that one process keeps secret, which sites cannot share; leave it out, or use "
            "`fedfault run`"
        )
    if exp.attacks:
        raise UserError(
            "attacks are simulated where all clients are in one process; leave them out: a hostile site needs no setting"
        )
    if found := {*list_precisions(exp)} - {exp.model.quantization}:
        raise UserError(
            f"tiers.quantization={', '.join(sorted(found))}: sites load the model as model.quantization="
            f"{exp.model.quantization} says, all alike. Leave it out, or use `fedfault run`"
        )


def count_own_work(hw: Hardware, work: LocalWork, nodes: Nodes) -> Hardware:
    """Return the hardware with the work of the clients' own data; of who has not joined, what the server took it for."""
    steps, tokens = hw.steps.copy(), hw.tokens.copy()
    for k, size in nodes.sizes.items():
        steps[k], times = count_steps(size.examples, work)
        tokens[k] = times * size.read
    return replace(hw, steps=steps, tokens=tokens)


def await_clients(nodes: Nodes, N: int) -> None:
    """Wait for the clients, `join_seconds` of the nodes. Raises `UserError` when too few have come in time.

    Nodes are asked again when half of what is left is over: one that hangs must not keep out those that come later.
    """
    seconds = nodes.join_seconds
    end, left, events = time.monotonic() + seconds, seconds, list[str]()
    while True:
        events += nodes.admit_nodes(min(left, max(left / 2, ASKED)))
        left = end - time.monotonic()
        if len(nodes.ids) >= N or left <= 0:
            break
        time.sleep(min(POLL, left))
    missing = ", ".join(str(k) for k in range(N) if k not in nodes.ids)
    if len(nodes.ids) < nodes.min_clients:
        few = f"{len(nodes.ids)} of {N} clients have joined in {seconds:g} seconds, missing {missing}"
        raise UserError("; ".join([few, *events]))
    if missing:
        nodes.say(f"have not joined, and take no part in this run: client {missing}")


def identify_run(exp: Experiment) -> str:
    """Return a name for what clients keep between rounds: the same for an experiment and its continuation."""
    return hashlib.sha256(exp.model_dump_json(exclude={"logging"}).encode()).hexdigest()[:16]


class ReportedTask(DelegatingTask):
    """The server's task: data sizes are those that nodes report, scores those on data that the server has itself."""

    def __init__(self, inner: Task, nodes: Nodes) -> None:
        super().__init__(inner)
        self._nodes = nodes

    def examples(self, client: int) -> int:
        """See `types.task.Task`; 0 for a client that has not joined."""
        return self._nodes.sizes[client].examples if client in self._nodes.sizes else 0

    def tokens(self, client: int) -> int:
        """See `types.task.Task`; 0 for a client that has not joined."""
        return self._nodes.sizes[client].tokens if client in self._nodes.sizes else 0

    def evaluate(self, adapter: Adapter, personal: Adapter | None = None) -> dict[str, Score]:
        """See `types.task.Task`; without clients' own sets where those are at their sites."""
        return self.evaluate_each([Served(adapter, personal)])[0]

    def evaluate_each(self, models: Sequence[Served]) -> list[dict[str, Score]]:
        """See `types.task.Task`; without clients' own sets, as `evaluate`."""
        if not self._nodes.own:
            return self.inner.evaluate_each(models)
        found = self.inner.evaluate_each([Served(model.adapter) for model in models])
        return [{name: s for name, s in own.items() if not name.startswith("client/")} for own in found]


def write_command(config: str, settings: str) -> list[str]:
    """Write the words after `flwr` that run a deployment with this configuration and these settings again.

    >>> write_command("server.yaml", "seed=1 federation.num_rounds=3")[-1]
    "config='server.yaml' settings='seed=1 federation.num_rounds=3'"
    """
    about = " ".join(f"{key}={_quote(value)}" for key, value in (("config", config), ("settings", settings)))
    return ["run", "deploy/fedfault-app", "--run-config", about]


def _quote(value: str) -> str:
    """Quote a text as Flower reads it, which knows two signs for it and no escape."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def make_server_app() -> ServerApp:
    """The ServerApp of a deployment: run-config `config` names the experiment, `settings` are key=value, by blanks."""
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        config, settings = str(context.run_config["config"]), str(context.run_config.get("settings", ""))
        loaded = load(config, shlex.split(settings))
        folder = serve(grid, loaded, Progress(), argv=write_command(config, settings), program="flwr")
        print(f"report: {folder.path / 'report.html'}", flush=True)

    return made


app = make_server_app()
