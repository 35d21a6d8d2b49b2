"""Rank schedulers, which decide the LoRA rank that each client trains with, one file each: `fedfault list scheduler`.

A scheduler is a function registered with `@register("scheduler")`. Its keyword arguments are its options, and it returns a
`scheduling.Scheduler` of up to three pure functions on plain numbers, without torch: `assign(memory, situation)` returns an
`Allocation`, `init(num_clients)` the memory before the first round and `observe(memory, reports)` the memory after a round.
The `Situation` lists the clients drawn for a round with their smallest and largest ranks, their times and the budget, which
is r_bar for each client if the scheduler sets `r_bar`. The ranks lie within a client's bounds and sum to the budget; a
client whose bounds leave no rank has rank 0 and is in `excluded`; a sentence in `events` says what was adapted.
`allocation.bounds.find_bounds` and `make_allocation` see to that. The first round has an empty history, neither the order
nor the unit of times may matter, and chance comes from `seeds.rng(situation.seed, ...)` alone.

`fedfault.testing.check("scheduler", builder)` holds a component to it.
"""
