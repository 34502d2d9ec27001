# SPDX-License-Identifier: Apache-2.0
"""Run by the environment's own python: a Keras model, and TensorFlow's own post-training quantization of it.

python keras_quantize.py make FOLDER       weights.npz, inputs.npy, theirs.npz: what they compute, and their codes
python keras_quantize.py ours FOLDER       the same of the model with the weights of ours.npz, as ours_computed.npz
"""

import os
import sys
from pathlib import Path

os.environ |= {"TF_USE_LEGACY_KERAS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}

import numpy as np
import tensorflow as tf
import tf_keras

FOLDER = Path(sys.argv[2])


def built() -> tf_keras.Model:
    tf_keras.utils.set_random_seed(7)
    layers = [
        tf_keras.layers.Input((64,), batch_size=4),
        tf_keras.layers.Dense(96, activation="relu"),
        tf_keras.layers.Dense(32, activation="relu"),
        # TensorFlow leaves matrices of fewer than 1024 weights in floats.
        tf_keras.layers.Dense(40),
    ]
    return tf_keras.Sequential(layers)


def converted(model: tf_keras.Model, inputs: np.ndarray, kind: str) -> bytes:
    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if kind == "integer":
        converter.representative_dataset = lambda: ([part] for part in inputs.reshape(-1, 4, 64))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def computed(file: bytes, inputs: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    resolver = tf.lite.experimental.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    interpreter = tf.lite.Interpreter(model_content=file, experimental_op_resolver_type=resolver)
    interpreter.allocate_tensors()
    (entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()
    found = []
    for part in inputs.reshape(-1, 4, 64):
        interpreter.set_tensor(entry["index"], part)
        interpreter.invoke()
        found.append(interpreter.get_tensor(end["index"]).copy())
    codes = {}
    for item in interpreter.get_tensor_details():
        if item["dtype"] == np.int8 and len(item["shape"]) == 2 and item["quantization_parameters"]["scales"].size:
            try:
                codes["x".join(map(str, item["shape"]))] = interpreter.get_tensor(item["index"]).copy()
                codes["scale " + "x".join(map(str, item["shape"]))] = item["quantization_parameters"]["scales"]
            except ValueError:
                continue
    return np.concatenate(found), codes


def everything(model: tf_keras.Model, inputs: np.ndarray) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {"float": model.predict(inputs, batch_size=4, verbose=0)}
    for kind in ("dynamic", "integer"):
        found[kind], codes = computed(converted(model, inputs, kind), inputs)
        found |= {f"{kind} {name}": array for name, array in codes.items()}
    return found


if sys.argv[1] == "make":
    model, inputs = built(), np.random.default_rng(3).normal(0, 1, (64, 64)).astype(np.float32)
    np.savez(FOLDER / "weights.npz", *model.get_weights())
    np.save(FOLDER / "inputs.npy", inputs)
    np.savez(FOLDER / "theirs.npz", **everything(model, inputs))
else:
    model, inputs = built(), np.load(FOLDER / "inputs.npy")
    stored = np.load(FOLDER / "ours.npz")
    model.set_weights([stored[name] for name in stored.files])
    np.savez(FOLDER / "ours_computed.npz", **everything(model, inputs))
