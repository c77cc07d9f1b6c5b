"""Readers of dataset formats: each translates its files to COCO annotations in memory.

They are not registered by `groupdetr.data.formats.register_format`, but tried after the formats
that are, and after the layouts of COCO.
"""
