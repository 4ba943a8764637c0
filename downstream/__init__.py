"""Tasks that start from a checkpoint of elvis: each folder is one task and uses public names of elvis only."""
