"""A budget of time: the facts that it chooses and what they can tell, and the pace that says how many they are."""
