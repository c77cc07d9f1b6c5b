"""The types that flow between the parts of a detector, and two types of plain data.

Most types are dataclasses of tensors. Each is validated when it is created, and every field has its
shape in a comment. Plain data are JSON objects (``json_object.py``) and COCO's run-length encoding
of masks (``rle.py``). The letters of the axes are the same everywhere:

B images, K groups, N queries of a group, C channels, S memory tokens, T objects of an image,
M matched pairs, D denoising queries of a group, L supervised layers, V camera views. In encoders
and attention, where there are no layers to supervise, L are the levels of the feature maps. Other
letters, such as D for detections and P for points, are explained in the file that uses them.

Boolean tensors are named for what True means: `padding`, `blocked`.
"""
