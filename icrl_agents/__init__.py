"""Agents that learn a new task from interaction alone, with no weight update."""
