"""What is measured of every round, tensors in and floats out: the folder is the list of probes.

A probe is a function, registered as `@register("probe")`, that returns a `types.task.Probe`. Its contract:

* `measure(finished)` reads a finished round and changes nothing in it, nor in the task; it draws no random number that
  training would miss. With it or without it a run is the same to the bit.
* It returns finite floats: by name, a number for each client of the cohort, or a matrix of the clients. What is not defined
  is absent; of a single client it is NaN.
* What costs forward passes is `sparse`: it is measured only in rounds that are evaluated.
* Its switch in the configuration, `metrics.NAME`, is there with it. It is described by the first line of the docstring and
  on unless `@register("probe", on=False)` says otherwise. `order=N` is its place among the switches in configurations and
  among the numbers in records: lower ones first, those without one behind them by name.

`fedfault.testing.check("probe", builder)` holds a component to it.
"""
