"""A small Keras network as a .keras file, as a SavedModel, and as a .tflite file."""

from pathlib import Path

import keras
import tensorflow as tf

image = keras.Input((32, 32, 3), name="image")
x = keras.layers.Conv2D(16, 3, activation="relu")(image)
x = keras.layers.GlobalAveragePooling2D()(x)
model = keras.Model(image, keras.layers.Dense(10, activation="softmax", name="scores")(x))
model.save("cnn.keras")
model.export("saved-model")
Path("cnn.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
print("edgeserve convert cnn.keras --calibrate random")
print("edgeserve convert saved-model --calibrate random")
print("edgeserve convert cnn.tflite --calibrate random")
