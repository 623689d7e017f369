"""Strategies that train on other facts, in another order, or in other forms; updates are as many."""
