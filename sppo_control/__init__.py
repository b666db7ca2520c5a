"""Sequence-Level PPO for classic control with sparse, binary outcomes."""

__version__ = "0.2.0"
