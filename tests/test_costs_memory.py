"""Peak memory of an image, and what training keeps of it, as TensorFlow keeps it."""

import math

import keras
import pytest

from kerastl.costs import model_cost
from tests.models import slowly, small_model

layers = keras.layers
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="measures with TensorFlow")


def test_peak_of_a_chain_is_its_largest_neighbouring_pair():
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(10, 1, name="wide")(inputs)
    x = layers.Dropout(0.5)(layers.Conv2D(2, 1, name="narrow")(x))
    model = keras.Model(inputs, layers.Flatten()(x))
    assert model_cost(model).peak_activation_bytes == 8 * 8 * (10 + 2) * 4


def test_peak_holds_a_shortcut_until_it_is_read():
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(3, 1)(layers.Conv2D(3, 1)(inputs))
    with_shortcut = keras.Model(inputs, layers.Add()([x, inputs]))
    without = keras.Model(inputs, layers.ReLU()(x))
    one = 8 * 8 * 3 * 4
    assert model_cost(without).peak_activation_bytes == 2 * one
    assert model_cost(with_shortcut).peak_activation_bytes == 3 * one


def test_peak_keeps_outputs_to_the_end():
    inputs = keras.Input((8, 8, 3))
    first = layers.Conv2D(3, 1)(inputs)
    last = layers.Conv2D(3, 1)(layers.Conv2D(3, 1)(first))
    assert model_cost(keras.Model(inputs, [first, last])).peak_activation_bytes == 3 * 8 * 8 * 3 * 4


def test_training_keeps_nothing_of_the_frozen_part():
    model = small_model()
    everything = model_cost(model).training_activation_bytes
    # input of each convolution and of BatchNorm, ReLU's output (the second convolution's input: once), Dense in and out
    assert everything == 4 * (8 * 8 * 3 + 8 * 8 * 4 + 8 * 8 * 4 + 4 + 2)
    for name in ("first", "norm"):
        model.get_layer(name).trainable = False
    assert model_cost(model).training_activation_bytes == 4 * (8 * 8 * 4 + 4 + 2)
    model.trainable = False
    assert model_cost(model).training_activation_bytes == 0


def test_frozen_layer_behind_a_trainable_one_keeps_what_the_gradient_passes_through():
    inputs = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.Conv2D(4, 1, name="unfrozen")(inputs))
    frozen = layers.Conv2D(4, 1, name="frozen")
    model = keras.Model(inputs, frozen(x))
    frozen.trainable = False
    assert model_cost(model).training_activation_bytes == 4 * 8 * 8 * (3 + 4)  # ReLU's output still, for its own slope


def tensors_kept_by_tensorflow(model, shape) -> int:
    """Bytes of the forward pass's feature maps that TensorFlow's backward pass reads, by the graph of one step."""
    import tensorflow as tf

    marks = {}

    def step(images):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in model.trainable_variables])
            loss = tf.reduce_sum(model(images, training=True))
        marks["forward"] = len(tf.compat.v1.get_default_graph().get_operations())
        return tape.gradient(loss, [variable.value for variable in model.trainable_variables])

    graph = tf.function(step, autograph=False).get_concrete_function(tf.TensorSpec((1, *shape), tf.float32)).graph
    operations = graph.get_operations()
    image_dependent = set()
    for operation in operations[: marks["forward"]]:
        is_image = operation.type == "Placeholder" and operation.outputs[0].shape.rank == 4
        if is_image or any(tensor.op.name in image_dependent for tensor in operation.inputs):
            image_dependent.add(operation.name)
    kept = {}
    for operation in operations[marks["forward"] :]:
        if operation.type in ("Shape", "ShapeN", "Size", "Rank", "BroadcastGradientArgs"):
            continue
        for tensor in operation.inputs:
            while tensor.op.type in ("Identity", "Reshape") and tensor.op.name in image_dependent:
                tensor = tensor.op.inputs[0]
            # Statistics of BatchNorm are a few numbers for each channel, whatever the batch, and no feature maps
            is_statistic = any(part in tensor.name for part in ("/moments/", "/batchnorm/mul:", "/batchnorm/Rsqrt:"))
            if tensor.op.name in image_dependent and tensor.shape.rank == 4 and not is_statistic:
                kept[tensor.name] = math.prod(tensor.shape.as_list()) * tensor.dtype.size
    return sum(kept.values())


@on_tensorflow
@pytest.mark.parametrize("frozen_fraction", [0, 0.5])
@pytest.mark.parametrize(
    "name",
    ["MobileNetV2", *slowly("ResNet50", "EfficientNetB0", "DenseNet121", "VGG16")],
)
def test_training_activation_bytes_are_what_tensorflow_keeps(name, frozen_fraction):
    model = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(96, 96, 3))
    for layer in model.layers[: int(frozen_fraction * len(model.layers))]:
        layer.trainable = False
    measured = tensors_kept_by_tensorflow(model, (96, 96, 3))
    assert model_cost(model).training_activation_bytes == pytest.approx(measured, rel=0.01)
