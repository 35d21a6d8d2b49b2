"""Partitions of the documents among clients, one file each: `fedfault list partition`.

A partition is a function registered with `@register("partition")`. Its keyword arguments are its options, among them
`min_samples`, and it returns a `types.corpus.Partition`: a function that is given the documents, the number of clients and
a `numpy.random.Generator`, its only source of chance, and returns a `Deal`. Chance is used: who gets which part is drawn,
so that another seed gives another split. The deal's `clients` are one sorted array of
positions a client; together they are all documents, each at exactly one client, and no client has fewer than `min_samples`.
A request that cannot be met is a `UserError` that says what would work (`dealing.owners.check_request` does for sizes).
A partition that changes texts puts them into `texts` and counts the lost words in `removed`; the documents stay as they are.

`fedfault.testing.check("partition", builder)` holds a component to it.
"""
