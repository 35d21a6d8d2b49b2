"""Federated optimisation algorithms, one file each: `fedfault list algorithm`.

An algorithm is a function registered with `@register("algorithm")`. Its keyword arguments are its options, and it returns a
`types.algorithm.Algorithm`, most often `replace(fedavg(), ...)`. Its contract:

* All functions are pure: what comes in stays as it is, and all that outlives a round is in `State`, so that a run that goes
  on from a checkpoint is the uninterrupted one to the bit. Nothing is random but what the engine draws.
* `client(got, memory, train)` works on K clients at once and calls `train`; what it sends has the clients' weights in "n".
  Neither the order of clients nor how many train at once may matter.
* `server(state, got, average)` moves `state.adapter`. Clients that have not moved leave it as it is.
* The server's step names the traits of aggregations that it stands (`@stands`), and everything else is refused. Where
  clients agree, what it stands gives the weights that a plain average gives. FedAvg's step stands everything.
* A personal or a further model of the server is said by `personal` and `models`, an invariant that can break by `wrong`.

`fedfault.testing.check("algorithm", builder)` holds a component to it.
"""
