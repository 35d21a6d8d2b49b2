"""What hostile clients do, one file each: `fedfault list attack`.

An attack is a function registered with `@register("attack")`. Its keyword arguments are its options, and it returns a
`types.attack.Attack`. Its contract:

* What is forged has the shape of what was trained, is finite, and depends on nothing but the round's changes and the
  generator. Where nobody is honest in a round, it is made of the attackers' own changes.
* Poisoned documents are as many as there were, each has a text, and their topics are topics of the corpus.
* The texts that an attack is not about stay as they are, and so do its inputs.

`fedfault.testing.check("attack", builder)` holds a component to it.
"""
