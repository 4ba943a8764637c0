"""Phrase grounding: one strict benchmark for any model that has an image and a text tower. See docs/grounding.md."""
