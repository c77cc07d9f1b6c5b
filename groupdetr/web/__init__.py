"""The local web page of `groupdetr ui`: detections in images, and errors in a validation set."""
