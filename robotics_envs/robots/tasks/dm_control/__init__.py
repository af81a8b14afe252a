"""Tasks of dm_control's suite on its own models."""
