"""Who takes part in a round, one file each: `fedfault list selection`.

A selection is a function registered with `@register("selection")`. Its keyword arguments are its options, and it returns a
`scheduling.Selection`, whose `choose(candidates, stream)` says which of the `Candidates` take part, as positions. The
candidates are the clients that are there, in a random order, with their sizes, the loss that each reported when it was last
asked, the round of that, and the seconds that it is expected to take. Its contract:

* As many are chosen as are wanted, or all where fewer are there, and none twice.
* Before anybody has been asked, and where a loss is not known, there is still an answer: that is the cold start. A client
  that was asked and did not answer has the median loss of those who did, so that it is not asked for ever.
* Neither the unit of time nor that of loss matters, and chance comes from the stream alone.
* What it decides by stands in `needs`, and what it does to averages in `inclusion` or `traits`.

`fedfault.testing.check("selection", builder)` holds a component to it.
"""
