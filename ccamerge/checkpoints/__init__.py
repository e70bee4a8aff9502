"""Parameters in files: which formats there are, what is wrapped around them, and what is tied."""

from ccamerge.checkpoints.reading import CheckpointError, load_into, load_state, save_state

__all__ = ["CheckpointError", "load_into", "load_state", "save_state"]
