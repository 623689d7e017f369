"""Which facts are asked where not all can be: as many as fit into a time, or those that a first look prefers."""
