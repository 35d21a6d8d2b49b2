"""What breaks a run, found in its records: the folder is the list of detectors.

A detector is a function without required arguments, registered as `@register("detector")`, that returns a
`records.Detector`. Its contract:

* `follow(records, scale)` is a generator that gives for every record in turn its reading, or None. It is a pure function of
  the records, and the reading of a round does not depend on later rounds: a run that goes on is judged as in the end.
* It is silent on no history, on a short one and on a healthy one, and does without what was not measured.
* `reads` names what has to be measured (`records.is_recorded`): without it there is no reading, and a run that lacks it is
  told so.
* A reading has a statistic (larger is worse, never NaN; infinite where no threshold is needed), an effect in a unit that a
  reader knows, and finite evidence. `explain` says it in one plain sentence.
* The threshold is not the detector's business: IID control runs set it for all detectors together, `default_threshold` is
  for runs without controls.
* A detector is suspicious when a statistic is above the threshold (not at it) with an effect of at least `min_effect`, and
  raises an alarm when that holds in two of the last three readings; an infinite statistic alarms at once.
* `advice` and `remedies` name settings that exist; a run of another program gets advice in the words that
  `diagnosis/plain.py` has for them. What a run changes by itself at an alarm is `remedies`, and nothing else
  has to be edited for it.

`fedfault.testing.check("detector", builder)` holds a component to it.
"""
