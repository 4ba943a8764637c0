"""Our backbones inside other libraries; one file a library, which nothing imports but its user. docs/backbones.md shows each."""
