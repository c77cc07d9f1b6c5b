"""Writers of dataset formats, from COCO annotations in memory."""
