"""Data sets, one file each: `fedfault list corpus`.

A corpus is a function registered with `@register("corpus")`. Its keyword arguments are its options, among them `path` (and
`text_columns`, `topic_column`, `group_column`) if it reads the user's files, which `data.path` and so on set. It returns a
`types.corpus.Corpus`: documents with a topic each, split into train and validation, without empty texts, without repeats,
and with no text of train in validation. `reading.documents.make_corpus` sees to all of that. What cannot be read, such as a
missing file, column or package, is a `UserError` that says what to do; nothing is downloaded when the module is imported.
The first line of the docstring tells size, source and licence.

`fedfault.testing.check("corpus", builder)` holds a component to it.
"""
