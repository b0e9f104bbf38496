"""`fit`: what `model.fit` does, with the frozen part run once."""

import keras

from kerastl.data import batches as inputs
from kerastl.errors import ArgumentError
from kerastl.features.plan import make_plan, options_of
from kerastl.features.reading import rows_of
from kerastl.models import compiling, several_outputs
from kerastl.training.session import Session


def fit(model: keras.Model, x=None, y=None, *, cache="auto", views: int = 1, **fit_arguments):
    """Train as `model.fit` does, with the frozen part of the model run once instead of in every epoch.

    On any compiled Functional or Sequential model. What is frozen before the first layer that trains runs over the images
    once; its outputs are kept, and only the rest of the model sees them in every epoch. Losses, metrics, class and sample
    weights, callbacks (`self.model` is the whole model) and the `History` are those of `model.fit`.

    A model with several outputs of one shape (`add_auxiliary_heads`) takes one `y`, which is given to every output, and
    class weights; labels per output, as `model.fit` wants them, are taken as well, without caching.

    Args:
        model: a compiled model.
        x: what `model.fit` takes.
        y: what `model.fit` takes.
        cache: "auto" does so where it is worth it and safe (arrays, and datasets of `load_images`; not where random layers
            in front of the backbone would be drawn only once), and prints in one line what it does; `True` insists; `False`
            is `model.fit` itself; a folder keeps the features for the next run; `CacheOptions` say more.
        views: augmented versions kept of each training image, the first one plain; one is drawn per image and epoch. They
            are made by the random layers in front of the backbone.
        **fit_arguments: all other arguments of `model.fit`.

    Returns:
        The `History` of `model.fit`.

    Raises:
        CompileError: the model is not compiled, or its optimizer doesn't hold exactly the trainable variables.
        ArgumentError: nothing is trainable; `cache=True` or a folder where something stands in the way (it says what).
        DataError: images of another size than the model takes.
        StoreError: the folder holds something else, or there is no room.
    """
    compiling.check_ready(model)
    check_first_batch(model, x, y)
    options = options_of(cache)
    if inputs.is_tf_dataset(x):
        fit_arguments.setdefault("shuffle", False)  # it shuffles itself, or not; Keras warns about its own default
    plain = {"x": x, "y": y, **fit_arguments}
    if options is None and views == 1:
        return model.fit(**several_outputs.fit_arguments(model, plain))
    arguments = dict(fit_arguments)
    train, validation = _rows_for_fit(x, y, arguments)
    obstacle = next((name for name in _STEP_ARGUMENTS if arguments.get(name) is not None), None)
    if obstacle and options is not None and options.insist:
        raise ArgumentError(f"`{obstacle}` uses a part of the data, which caching can't follow. Pass `cache=False`.")
    epochs = arguments.get("epochs", 1) - arguments.get("initial_epoch", 0)
    one_label = several_outputs.takes_one_label(model) or not several_outputs.has_several(model)
    train = None if obstacle or not one_label else train
    plan = make_plan(model, train, validation, epochs=[max(epochs, 1)], options=options, views=views)
    if arguments.get("verbose", "auto") != 0:
        print(plan)
    if not plan.chosen:
        return model.fit(**several_outputs.fit_arguments(model, plain))
    with Session(model, plan, train, validation, options, arguments.get("verbose", "auto") != 0) as session:
        return session.fit(
            plan.cuts[0], **{key: value for key, value in arguments.items() if key not in _DATA_ARGUMENTS}
        )


# Arguments of `fit` that say what the data is; the features' batches say it themselves.
_DATA_ARGUMENTS = (
    *("validation_data", "validation_split", "sample_weight", "batch_size", "validation_batch_size", "shuffle"),
    *("steps_per_epoch", "validation_steps"),
)
_STEP_ARGUMENTS = ("steps_per_epoch", "validation_steps")


def _rows_for_fit(x, y, arguments):
    """Return the rows to train and to validate on, as `fit` would read its arguments; `None` for what can't be re-read."""
    validation, split = arguments.get("validation_data"), arguments.get("validation_split", 0.0)
    data = x if y is None else (x, y, arguments.get("sample_weight"))
    if y is not None and split and validation is None:
        data, validation = inputs.split_validation(data, split)
    batch_size = arguments.get("batch_size")
    train = rows_of(data, batch_size=batch_size, shuffle=arguments.get("shuffle"))
    if validation is None:
        return train, None
    held = rows_of(validation, batch_size=arguments.get("validation_batch_size") or batch_size, shuffle=False)
    return (None if held is None else train), held


def check_first_batch(model, x, y=None):
    """Check a first batch of images against the model; return it, or `None` where looking would use data up.

    Raises:
        DataError: images of another size than the model takes.
    """
    batch = inputs.first_batch(x, y)
    if batch is not None and batch[0].ndim == 4:
        inputs.check_images(model, batch[0])
    return batch
