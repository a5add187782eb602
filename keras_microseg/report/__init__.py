"""Reporting: overlays, figures, tables and one HTML file. Needs no network and no Keras."""
