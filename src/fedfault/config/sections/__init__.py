"""The sections of a configuration, a file each for those that belong together; `config.schema` puts them together."""
