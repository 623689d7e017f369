"""Strategies that train other weights than all: adapters, and models of which a part stays as it is."""
