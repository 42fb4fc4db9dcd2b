import numpy as np
import pytest
import tensorflow as tf

from trainer import data

ONE = tf.distribute.InputContext()


@pytest.fixture(scope="module")
def preprocess(transform_savedmodel):
    return data.Preprocessor(transform_savedmodel)


@pytest.fixture(scope="module")
def examples(training_files):
    return data.read_examples([training_files])


def batches(examples, preprocess, **arguments):
    values = {
        "batch_size": 100,
        "seed": 0,
        "first_epoch": 0,
        "epochs": 1,
        "context": ONE,
        **arguments,
    }
    dataset = data.training_batches(examples, preprocess, **values)
    return [(x.numpy(), y.numpy()) for x, y in dataset]


def keys(images):
    """A hashable name of each image."""
    return [image.tobytes() for image in np.round(images * 255).astype(np.uint8)]


def test_all_examples_are_read_in_order(examples, digits):
    assert keys(digits["train"][0][:2_000] / 255) == list(examples.images())
    np.testing.assert_array_equal(examples.labels, digits["train"][1][:2_000])


def test_images_are_scaled_to_the_unit_interval(examples, preprocess, digits):
    images = preprocess.images(tf.constant(examples.images()[:50])).numpy()
    np.testing.assert_allclose(images, digits["train"][0][:50] / 255, atol=1e-7)


def test_an_epoch_shows_every_image_once_in_a_new_order(examples, preprocess):
    both = batches(examples, preprocess, epochs=2)
    assert len(both) == 40
    first, second = (
        [key for images, _ in part for key in keys(images)] for part in (both[:20], both[20:])
    )
    assert sorted(first) == sorted(second) == sorted(examples.images())
    assert first != second != list(examples.images())


def test_labels_stay_with_their_images(examples, preprocess):
    label_of = dict(zip(examples.images(), examples.labels))
    for images, labels in batches(examples, preprocess):
        assert [label_of[key] for key in keys(images)] == list(labels)


def test_a_resumed_training_sees_what_it_would_have_seen(examples, preprocess):
    whole = batches(examples, preprocess, epochs=3)
    resumed = batches(examples, preprocess, first_epoch=2, epochs=3)
    np.testing.assert_array_equal(whole[40][0], resumed[0][0])
    assert len(resumed) == 20


def test_replicas_and_workers_share_the_batch_of_one_device(examples, preprocess):
    whole = batches(examples, preprocess, batch_size=200)
    replicas = batches(
        examples, preprocess, context=tf.distribute.InputContext(1, 0, num_replicas_in_sync=2)
    )
    np.testing.assert_array_equal(whole[0][0], np.concatenate([replicas[0][0], replicas[1][0]]))
    workers = [
        batches(
            examples, preprocess, context=tf.distribute.InputContext(2, i, num_replicas_in_sync=2)
        )
        for i in range(2)
    ]
    np.testing.assert_array_equal(whole[3][0], np.concatenate([w[3][0] for w in workers]))


def test_fewer_examples_than_a_batch_are_repeated(examples, preprocess):
    few = examples.take(np.arange(7))
    ((images, _),) = batches(few, preprocess, batch_size=16)
    assert len(images) == 16
    assert set(keys(images)) == set(few.images())


def test_labelled_examples_are_appended_anew_in_every_batch(examples, preprocess):
    masked = examples.with_labels(data.mask_labels(examples.labels, 30, seed=1))
    known = set(masked.images()[masked.labels >= 0])
    found = batches(masked, preprocess, labelled_batch_size=10)
    tails = [keys(images[100:]) for images, _ in found]
    assert all(len(images) == 110 for images, _ in found)
    assert all(np.all(labels[100:] >= 0) for _, labels in found)
    assert set().union(*tails) <= known and len(set().union(*tails)) > 25
    assert tails[0] != tails[1]


def test_masked_labels_are_balanced_seeded_and_true(examples):
    masked = data.mask_labels(examples.labels, 100, seed=3)
    kept = masked >= 0
    np.testing.assert_array_equal(np.bincount(masked[kept]), [10] * 10)
    np.testing.assert_array_equal(masked[kept], examples.labels[kept])
    np.testing.assert_array_equal(masked, data.mask_labels(examples.labels, 100, seed=3))
    assert not np.array_equal(masked, data.mask_labels(examples.labels, 100, seed=4))


def test_more_labels_than_there_are_is_an_error(examples):
    with pytest.raises(ValueError, match="labels=2001, but only 2000"):
        data.mask_labels(examples.labels, 2_001, seed=0)


def test_validation_is_disjoint_and_seeded(examples):
    train, validation = data.split_validation(examples, 0.05, seed=0)
    assert (len(train), len(validation)) == (1_900, 100)
    assert sorted([*train.images(), *validation.images()]) == sorted(examples.images())
    again = data.split_validation(examples, 0.05, seed=0)[1]
    assert list(again.images()) == list(validation.images())
    assert list(data.split_validation(examples, 0.05, seed=1)[1].images()) != list(again.images())


def test_streaming_shows_what_is_not_set_aside_in_a_new_order(examples, training_files, preprocess):
    stream, validation = data.open_stream([training_files], 0.05, 0, seed=0)
    assert (len(stream), len(validation)) == (1_900, 100)
    dataset = data.training_batches(
        stream, preprocess, batch_size=100, seed=0, first_epoch=0, epochs=2, context=ONE
    )
    found = [keys(images.numpy()) for images, _ in dataset]
    assert len(found) == 38
    seen = sorted(key for batch in found[:19] for key in batch)
    assert sorted([*seen, *validation.images()]) == sorted(examples.images())
    assert found[0] != found[19]
    resumed = data.training_batches(
        stream, preprocess, batch_size=100, seed=0, first_epoch=1, epochs=2, context=ONE
    )
    assert keys(next(iter(resumed))[0].numpy()) == found[19]


@pytest.mark.parametrize("budget", [30, None])
def test_streaming_shows_the_labels_of_the_budget_and_no_others(
    examples, training_files, preprocess, budget
):
    stream, validation = data.open_stream([training_files], 0.05, budget, seed=0)
    assert (validation.labels >= 0).any() == (budget is None)
    dataset = data.training_batches(
        stream,
        preprocess,
        batch_size=100,
        labelled_batch_size=10 if budget else 0,
        seed=0,
        first_epoch=0,
        epochs=1,
        context=ONE,
    )
    label_of = dict(zip(examples.images(), examples.labels))
    shown = set()
    for images, labels in dataset:
        truth = [label_of[key] for key in keys(images.numpy())]
        seen = labels.numpy() >= 0
        np.testing.assert_array_equal(labels.numpy()[seen], np.array(truth)[seen])
        assert seen.sum() == (10 if budget else 100)
        shown |= {key for key, known in zip(keys(images.numpy()), seen) if known}
    assert shown.isdisjoint(validation.images())
    assert len(shown) == (1_900 if budget is None else 30)


def test_an_image_takes_its_pixels_and_no_second_copy(examples):
    train, validation = data.split_validation(examples, 0.05, seed=0)
    assert train.pixels is validation.pixels is examples.pixels
    assert examples.pixels.nbytes == 784 * len(examples)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="no file matches"):
        data.read_examples([str(tmp_path / "*.gz")])


def test_a_model_sees_the_labels_of_its_budget_and_none_of_the_images_set_aside(examples):
    training, validation = data.split_validation(examples, 0.1, seed=0)
    seen, held_out = data.hide_labels(training, validation, 100, seed=0)
    kept = seen.labels >= 0
    assert kept.sum() == 100
    np.testing.assert_array_equal(seen.labels[kept], training.labels[kept])
    assert (held_out.labels == -1).all()
    for part in data.hide_labels(training, validation, 0, seed=0):
        assert (part.labels == -1).all()
    everything, too = data.hide_labels(training, validation, None, seed=0)
    np.testing.assert_array_equal(everything.labels, training.labels)
    np.testing.assert_array_equal(too.labels, validation.labels)
