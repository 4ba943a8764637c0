"""Objectives, one file each; every file registers itself in `elvis.registry.OBJECTIVES`."""
