"""Diagonal linear recurrences: `linear_scan` (api) and the forms that serve it (reference, xla)."""

from jattn.ops.scan.api import linear_scan
