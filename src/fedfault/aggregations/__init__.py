"""How LoRA adapters become one, one file each: `fedfault list aggregation`.

An aggregation is a function registered with `@register("aggregation")`. Its keyword arguments are its options, and it
returns a `types.algorithm.Aggregation`. Its contract:

* `combine(uploads)` is pure and gives an adapter of the same layout and precision, and what is added to the frozen weights.
* One client is that client, and clients that agree are any one of them. The order of clients does not matter.
* Only proportions of weights count, a client without weight does not count, and what is trained in full is the plain
  weighted mean. A rule that takes another location has the trait `robust` instead, and `tolerates` says how many of K
  clients, however far they are, cannot carry the model away.
* A client of smaller rank trains and sends the slices of its rank alone. No slice may end with zeros in A and in B, where it
  would never train again. A round without training changes nothing; `shrinks` says why it does where ranks differ.
* `traits` say what an algorithm's server may not stand. An aggregation that does such a thing and does not say it is found
  out: with every algorithm that it may be combined with, clients that agree must give the weights of a plain average.

`fedfault.testing.check("aggregation", builder)` holds a component to it.
"""
