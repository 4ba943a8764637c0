"""From disk to batch: studies, images, reports, phantoms."""
