"""Dataclasses of tensors: what flows between the parts of a detector.

Each is validated when it is created. Every field has its shape in a comment. The letters of the
axes are the same everywhere:

B images, K groups, N queries of a group, C channels, S memory tokens, T objects of an image,
M matched pairs, D denoising queries of a group, L supervised layers, V camera views. In encoders
and attention, where there are no layers to supervise, L are the levels of the feature maps. Other
letters, such as D for detections and P for points, are explained in the file that uses them.

Boolean tensors are named for what True means: `padding`, `blocked`.
"""
