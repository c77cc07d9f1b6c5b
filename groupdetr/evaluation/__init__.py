"""Evaluation of detections: COCO AP, the nuScenes detection score, and matching instability."""
