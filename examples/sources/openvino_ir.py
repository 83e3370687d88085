"""A small convolutional network written with OpenVINO's operators, saved as IR: cnn.xml and cnn.bin."""

import numpy as np
import openvino as ov
from openvino import opset13 as ops

random = np.random.default_rng(0)


def convolution(x: ov.Node, channels: int, width: int) -> ov.Node:
    kernel = random.normal(0, (9 * channels) ** -0.5, (width, channels, 3, 3)).astype(np.float32)
    return ops.relu(ops.convolution(x, ops.constant(kernel), [1, 1], [1, 1], [1, 1], [1, 1]))


image = ops.parameter([-1, 3, 32, 32], np.float32, name="image")
features = convolution(convolution(image, 3, 16), 16, 32)
means = ops.reduce_mean(features, ops.constant([2, 3]), keep_dims=False)
head = random.normal(size=(32, 10)).astype(np.float32)
scores = ops.matmul(means, ops.constant(head), False, False)
scores.output(0).set_names({"scores"})
ov.save_model(ov.Model([scores], [image], "cnn"), "cnn.xml", compress_to_fp16=False)
print("edgeserve convert cnn.xml --calibrate random")
