"""semiseg: semi-supervised semantic segmentation, one paper per file, hosts explicit, seams as arguments."""

__version__ = "0.1.0"
