"""Model files read without their engines: ONNX, OpenVINO IR, TFLite."""
