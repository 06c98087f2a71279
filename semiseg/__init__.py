"""semiseg: semi-supervised semantic segmentation, one paper per file, hosts explicit, components as arguments."""

__version__ = "0.1.0"
