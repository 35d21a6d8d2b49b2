"""A Flower Grid in this process: strategies and ClientApps run unchanged, in milliseconds, to the same numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

RAISED = 2  # Flower's code for a ClientApp that raised


class LocalGrid(Grid):
    """Nodes 1, 2, ... with a Context each, asked one after the other in the order of their ids.

    node_configs: of each node; Flower's simulation gives partition-id and num-partitions. Replies come in the order of the
    nodes, so that strategies which sum in the order of arrival give the same bits; an exception of the ClientApp is an error
    reply, as in Flower. `offline` nodes are not listed, and do not answer.

    >>> grid = LocalGrid(ClientApp(), LocalGrid.partitions(2))
    >>> list(grid.get_node_ids())
    [1, 2]
    """

    def __init__(self, app: ClientApp, node_configs: Iterable[Mapping[str, Any]]) -> None:
        self.app = app
        self.contexts = {
            node: Context(run_id=1, node_id=node, node_config=dict(config), state=RecordDict(), run_config={})
            for node, config in enumerate(node_configs, 1)
        }
        self.offline: set[int] = set()
        self._asked: dict[str, Message] = {}
        self._count = 0
        if vars(TaskIdentity).get("_task_id") is None:  # messages can only be made by a task
            TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 0, 1

    @staticmethod
    def partitions(n: int) -> list[dict[str, Any]]:
        """Return the node configurations of a simulation of n nodes."""
        return [{"partition-id": k, "num-partitions": n} for k in range(n)]

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """Is None: there is one run."""
        return None

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Create a message as `Message` does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """List the nodes that are online, in order."""
        return [node for node in self.contexts if node not in self.offline]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages in, and return their ids."""
        ids = []
        for message in messages:
            self._count += 1
            message.metadata.__dict__["_message_id"] = str(self._count)
            self._asked[str(self._count)] = message
            ids.append(str(self._count))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the replies to these messages, in the order of the nodes; each can be had once."""
        asked = [self._asked.pop(one) for one in message_ids if one in self._asked]
        asked = [m for m in asked if m.metadata.dst_node_id not in self.offline]
        return [self._answer(m) for m in sorted(asked, key=lambda m: m.metadata.dst_node_id)]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Send messages and return the replies, at once."""
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        context = self.contexts[message.metadata.dst_node_id]
        try:
            return self.app(message=message, context=context)
        except Exception as e:
            return Message(Error(code=RAISED, reason=str(e)), reply_to=message)
