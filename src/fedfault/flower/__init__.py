"""Federations over Flower: the same algorithms, with each client at a node of its own.

server.py   a ServerApp whose rounds are the engine's, with nodes.py in place of the clients
client.py   a ClientApp that does a client's part of a round with the engine's `train_clients`, as a cohort of one
site.py     a client's model and data; memory.py what it keeps; payload.py what crosses the network
local.py    a Grid in this process, deterministic, for tests and for any Flower strategy or ClientApp

The parts that import flwr need the extra: pip install "fedfault[flower]".
"""
