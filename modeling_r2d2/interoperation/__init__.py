"""R2D2 inside other libraries."""
