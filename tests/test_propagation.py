"""Context, references, objects: from features to masks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models.colornet import Branches, ColorNet
from models.label_maps import DETAIL, interpolated, stretched, upsampled_argmax
from models.label_propagation import CUSTOM_GAPS, LabelPropagator, context_frames, context_gaps
from models.neighbours import Carried, Memory, NeighbourPropagation
from models.propagation import VideoPropagator, build_propagator, keeping_aspect
from models.upsampling import CLASSES_AT_ONCE
from tests.helpers import golden_json, golden_model
from utils.config import load_settings
from utils.errors import UserError

H, W = 48, 64


@pytest.fixture(scope="module")
def model() -> ColorNet:
    return golden_model()


def propagator(model, *overrides: object, **options):
    settings = load_settings(overrides=["TEST.INFER_WH", f"[{W}, {H}]", *map(str, overrides)])
    return build_propagator(model, settings.TEST, **options)


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    """Seven windows of one texture, a pixel or two apart."""
    noise = np.random.default_rng(0).integers(0, 256, (H // 4, W // 4 + 8, 3))
    texture = F.interpolate(torch.from_numpy(noise).permute(2, 0, 1)[None].float(), scale_factor=4, mode="bicubic")
    texture = texture[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()
    return [texture[:, 2 * t:2 * t + W].copy() for t in range(7)]


def blocks(*ids: int) -> np.ndarray:
    """A mask with a block of 16x12 pixels for each id, in rows of four."""
    mask = np.zeros((H, W), np.uint8)
    for i, object_id in enumerate(ids):
        mask[i // 4 * 12:i // 4 * 12 + 12, i % 4 * 16:i % 4 * 16 + 16] = object_id
    return mask


def test_context_frames_equal_the_golden_ones():
    for key, wanted in golden_json("context_index.json").items():
        reference, frame = map(int, key.split(","))
        assert context_frames(reference, frame, context_gaps(20, False)) == wanted["uniform"], key
        assert context_frames(reference, frame, context_gaps(20, True)) == wanted["custom"], key


def test_context_size_counts_the_recent_frames():
    assert context_frames(0, 9, context_gaps(3, False)) == [0, 6, 7, 8]
    assert context_frames(0, 30, context_gaps(12, True)) == [0, 16, 18, *range(20, 30)]
    with pytest.raises(UserError, match=r"CXT_SIZE.*21"):
        context_gaps(21, True)


class FakeNeighbours:
    """Answers every search with the reference's labels and keeps what it was asked."""

    def __init__(self):
        self.asked: list[tuple[int, Memory, list[Memory]]] = []

    def prepare(self, features):
        return features

    def __call__(self, query, references, recent):
        self.asked.append((int(query[0, 0, 0]), references, list(recent)))
        return Carried(references[-1].labels, torch.full(query.shape[1:], 0.5))


def feature(t: int) -> torch.Tensor:
    return torch.full((1, 2, 2), float(t))


def test_context_holds_the_frames_that_the_gaps_name_and_no_more():
    neighbours = FakeNeighbours()
    labels = LabelPropagator(neighbours, (1, 2, 5))
    labels.step(feature(0), torch.rand(2, 2, 2))
    for t in range(1, 30):
        labels.step(feature(t))
        assert len(labels._history) <= 5
    for t, (reference,), recent in neighbours.asked:
        assert int(reference.features[0, 0, 0]) == 0
        assert [int(memory.features[0, 0, 0]) for memory in recent] == context_frames(0, t, (1, 2, 5))[1:]
    _, _, recent = neighbours.asked[0]
    assert recent[0] is recent[1] is recent[2], "repeats of a frame are one object, so that a search can count them"


def test_a_later_object_takes_its_share_of_each_cell_and_keeps_its_own_context():
    neighbours = FakeNeighbours()
    labels = LabelPropagator(neighbours, (1, 2))
    first = torch.tensor([[[1.0, 0.75], [0.5, 0.0]], [[0.0, 0.25], [0.5, 1.0]]])
    labels.step(feature(0), first)
    new = torch.tensor([[[0.0, 0.5], [1.0, 0.0]]])
    at_one, similarity = labels.step(feature(1), new)
    assert similarity.amax((1, 2)).tolist() == [0.5, 0.5, 1], "what is given is certain"
    assert torch.equal(at_one, torch.tensor([[[1.0, 0.375], [0.0, 0.0]], [[0.0, 0.125], [0.0, 1.0]],
                                             [[0.0, 0.5], [1.0, 0.0]]]))
    neighbours.asked.clear()
    assert torch.equal(labels.step(feature(2))[0], torch.cat([first, new]))
    (_, (old,), old_recent), (_, (late,), late_recent) = neighbours.asked
    assert old.labels.shape[0] == 2 and [memory.labels.shape[0] for memory in old_recent] == [2, 2]
    assert torch.equal(old_recent[1].labels, at_one[:2]), "the older classes remember what the new object took"
    assert int(late.features[0, 0, 0]) == 1 and torch.equal(late.labels, new)
    assert [int(memory.features[0, 0, 0]) for memory in late_recent] == [1, 1], "no frame before its first"


def test_a_correction_becomes_a_second_reference_and_forgets_what_was_wrong():
    neighbours = FakeNeighbours()
    labels = LabelPropagator(neighbours, (1, 2))
    cell = lambda *values: torch.tensor(values)[:, None, None].repeat(1, 2, 2)  # all cells alike
    labels.step(feature(0), cell(0.5, 0.25, 0.25))
    labels.step(feature(1))
    # Class 1 is corrected to 0.5, class 3 is new; class 2 keeps its share of what is left, the background has the rest.
    corrected, _ = labels.step(feature(2), cell(0.5, 0.25), [1, 3])
    assert corrected[:, 0, 0].tolist() == pytest.approx([0.25 - 0.25 * 0.25, 0.5, 0.25 * 0.25, 0.25])
    neighbours.asked.clear()
    labels.step(feature(3))
    frames = lambda memories: [int(memory.features[0, 0, 0]) for memory in memories]
    asked = {tuple(frames(references)): (references[-1].labels.shape[0], frames(recent))
             for _, references, recent in neighbours.asked}
    assert asked == {(0, 2): (2, [2, 2]), (0,): (1, [1, 2]), (2,): (1, [2, 2])}, "classes 0 and 1, class 2, class 3"


def test_a_corrected_frame_is_as_given_and_what_follows_takes_it_up(model, frames):
    plain, corrected = propagator(model), propagator(model)
    for video in (plain, corrected):
        video.step(frames[0], blocks(1, 2, 3))
        video.step(frames[1])
    mask = blocks(0, 0, 0, 0, 0, 1, 0, 4)  # object 1 moves, object 4 is new, 2 and 3 are not mentioned
    wrong, right = plain.step(frames[2]), corrected.step(frames[2], mask, correct=True)
    assert np.array_equal(right[mask > 0], mask[mask > 0])
    assert not np.isin(right[mask == 0], (1, 4)).any() and (wrong[mask == 0] == 1).any()
    free = (mask == 0) & (wrong != 1)
    assert (right[free] == wrong[free]).mean() > 0.95, "what the mask does not name stays"
    after, without = corrected.step(frames[3]), plain.step(frames[3])
    here = np.s_[15:21, 18:26]  # inside the moved block, away from its border
    assert (after[here] == 1).all() and not (without[here] == 1).any()
    assert (after == 4).any() and {2, 3} <= set(np.unique(after))


def test_a_correction_of_everything_is_returned_as_given(model, frames):
    video = propagator(model)
    video.step(frames[0], blocks(1, 2))
    mask = blocks(0, 2, 1)
    assert np.array_equal(video.step(frames[1], mask, correct=True), mask)


def test_the_first_frame_needs_labels():
    with pytest.raises(ValueError, match="first frame"):
        LabelPropagator(FakeNeighbours(), (1,)).step(feature(0))


@pytest.mark.parametrize("classes", [1, 5, CLASSES_AT_ONCE, 2 * CLASSES_AT_ONCE + 3])
def test_argmax_is_that_of_the_full_size_map(classes):
    labels = torch.rand((classes, 6, 8), generator=torch.Generator().manual_seed(classes))
    whole = F.interpolate(labels[None], (45, 61), mode="bilinear", align_corners=True)[0].argmax(0)
    assert torch.equal(upsampled_argmax(labels, (45, 61)), whole)


def test_equal_shares_go_to_the_first_class():
    assert upsampled_argmax(torch.ones(2 * CLASSES_AT_ONCE, 4, 4), (4, 4)).max() == 0


def test_first_frame_is_as_given_and_identical_frames_keep_the_mask(model, frames):
    video = propagator(model, "TEST.KNN", 1)
    mask = blocks(0, 3, 200, 255)  # ids need not be contiguous
    assert np.array_equal(video.step(frames[0], mask), mask)
    still = video.step(frames[0])
    assert set(np.unique(still)) == {0, 3, 200, 255}
    inner = np.s_[4:8, 20:28]
    assert (still[inner] == 3).all() and still.dtype == np.uint8


def test_a_later_mask_gives_new_objects_only(model, frames):
    plain, helped, late = (propagator(model) for _ in range(3))
    for video in (plain, helped, late):
        video.step(frames[0], blocks(1, 1, 2))
    ground_truth = blocks(2, 2, 2, 2, 1)  # no new id: it must not help
    for t in (1, 2, 3):
        expected = plain.step(frames[t])
        assert np.array_equal(helped.step(frames[t], ground_truth), expected)
        appearing = late.step(frames[t], blocks(1, 0, 0, 0, 0, 0, 0, 7) if t == 2 else None)
        if t == 1:
            assert np.array_equal(appearing, expected)
        else:
            assert 7 in appearing and 7 not in expected
        if t == 2:
            assert (appearing[15:21, 53:59] == 7).all(), "the given mask replaces the prediction where it is"


def test_any_number_of_objects(model, frames):
    mask = np.repeat(np.repeat(np.arange(48, dtype=np.uint8).reshape(6, 8) + 100, 8, 0), 8, 1)  # one id a feature cell
    video = propagator(model, "TEST.KNN", 1)
    video.step(frames[0], mask)
    assert len(np.unique(video.step(frames[0]))) > 40


def test_a_video_may_start_without_objects(model, frames):
    video = propagator(model)
    assert not video.step(frames[0], np.zeros((H, W), np.uint8)).any()
    assert not video.step(frames[1]).any()
    assert (video.step(frames[2], blocks(0, 4)) == 4).any()


def test_two_videos_at_a_time_do_not_touch_each_other(model, frames):
    alone = [propagator(model), propagator(model)]
    masks = blocks(1, 2), blocks(0, 0, 5)
    wanted = [[video.step(frame, mask if t == 0 else None) for t, frame in enumerate(frames)]
              for video, mask in zip(alone, masks)]
    together = [propagator(model), propagator(model)]
    for t, frame in enumerate(frames):
        for video, mask, expected in zip(together, masks, wanted):
            assert np.array_equal(video.step(frame, mask if t == 0 else None), expected[t])


def test_stretching_brings_back_what_faded_and_not_what_is_hardly_there():
    cells = lambda *values: torch.tensor(values).view(1, 1, -1)
    labels = torch.cat([cells(0.9, 0.55, 0.9), cells(0.1, 0.45, 0.1)])  # the object is weaker everywhere
    assert stretched(labels).argmax(0).tolist() == [[0, 1, 0]]
    traces = torch.cat([cells(1.0, 0.8, 1.0), cells(0.0, 0.2, 0.0)])
    assert stretched(traces).argmax(0).tolist() == [[0, 0, 0]]
    torch.testing.assert_close(stretched(traces), torch.cat([cells(1.0, 0.6, 1.0), cells(0.0, 0.4, 0.0)]))
    whole = torch.cat([cells(1.0, 0.3, 0.0), cells(0.0, 0.7, 1.0)])
    torch.testing.assert_close(stretched(whole), whole)


@pytest.mark.parametrize("n", [2, 3])
def test_parts_of_cells_are_carried_as_if_each_were_a_map_of_its_own(model, frames, n):
    video = propagator(model, "TEST.SUBCELLS", n, "TEST.CXT_SIZE", 2)
    masks = {0: blocks(0, 1, 2), 2: blocks(0, 0, 0, 0, 0, 3), 4: blocks(2, 1)}  # the first, a new object, a correction
    predictions = [video.predict(x, masks.get(t), correct=t == 4) for t, x in enumerate(video.encode(frames))]
    named = {0: [0, 1, 2], 2: [3], 4: [1, 2]}
    given = {t: torch.cat([F.interpolate(torch.from_numpy(mask == i)[None, None].float(), (n * H // 8, n * W // 8),
                                         mode="bilinear", align_corners=True)[0] for i in named[t]])
             for t, mask in masks.items()}
    for down in range(n):
        for right in range(n):
            search = NeighbourPropagation(knn=10, radius=12, temperature=0.05)
            single = LabelPropagator(search, context_gaps(2, False))
            for t, x in enumerate(video.encode(frames)):
                own = given[t][:, down::n, right::n] if t in given else None
                labels, similarity = single.step(x, own, named.get(t))
                torch.testing.assert_close(predictions[t].labels[:, down::n, right::n], labels)
                torch.testing.assert_close(predictions[t].similarity, similarity)


def test_between_cells_their_means_are_resized_and_half_of_their_detail_is_added():
    means = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0))
    detail = torch.tensor([[1.0, -1], [-1, 1]]).repeat(5, 7) * torch.tensor([0.1, -0.05, -0.05])[:, None, None]
    labels = means.repeat_interleave(2, 1).repeat_interleave(2, 2) + detail
    smooth = F.interpolate(means[None], size=(10, 14), mode="bilinear")[0]
    torch.testing.assert_close(interpolated(labels, 2), smooth + DETAIL * detail)
    assert interpolated(labels, 1) is labels


def test_frames_may_be_views_and_encoded_together(model, frames):
    video = propagator(model)
    mirrored = frames[0][:, ::-1]  # negative strides
    together = video.encode([mirrored, frames[1]])
    assert together.shape == (2, 256, H // 8, W // 8)
    torch.testing.assert_close(together[0], video.encode([mirrored.copy()])[0])
    torch.testing.assert_close(together.norm(dim=1), torch.ones(2, H // 8, W // 8))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_precision_is_the_encoders(model, frames, precision):
    exact, half = (propagator(model, precision=p).encode(frames[:1]) for p in ("fp32", precision))
    assert half.dtype == torch.float32 and not torch.equal(exact, half)
    assert F.cosine_similarity(exact, half).min() > 0.99


class MeanColors:
    """An encoder that is no network: the colours of cells of four pixels, as unit vectors."""

    def encode(self, rgb):
        assert rgb.dtype == torch.float32 and rgb.min() >= 0 and rgb.max() < 1.001
        return F.normalize(F.avg_pool2d(rgb, 4) + 0.01, dim=1)


def test_anything_that_encodes_frames_can_carry_masks(frames):
    settings = load_settings(overrides=["TEST.INFER_WH", f"[{W}, {H}]", "TEST.KNN", "1"]).TEST
    video = build_propagator(MeanColors(), settings)
    assert video.encode(frames[:2]).shape == (2, 3, H // 4, W // 4)
    mask = blocks(0, 3, 4)
    assert np.array_equal(video.step(frames[0], mask), mask)
    assert (video.step(frames[0]) == mask).mean() > 0.9


@pytest.mark.parametrize("wrong, words", [
    (lambda features: 2 * features, "unit length"), (lambda features: features * torch.nan, "unit length"),
    (lambda features: features[0], "N = 1"), (lambda features: features[:, :, :0], "N = 1")])
def test_features_that_the_search_cannot_take_are_refused(frames, wrong, words):
    encoder = MeanColors()
    encoder.encode = lambda rgb: wrong(MeanColors().encode(rgb))
    with pytest.raises(ValueError, match=words):
        build_propagator(encoder, load_settings().TEST).encode(frames[:1])


def test_a_feature_without_its_head_is_refused(frames):
    local = ColorNet(size="S", has_global=False, stem_kernel=3, feature_dim=128).eval()
    for key in ("cls", "merge"):
        with pytest.raises(UserError, match="is_dul"):
            propagator(local, "TEST.KEY", key)
    assert propagator(local, "TEST.KEY", "color").encode(frames[:1]).shape == (1, 128, H // 8, W // 8)


FRAME = np.zeros((H, W, 3), np.uint8)


@pytest.mark.parametrize("frame", [
    FRAME.astype(np.float32), FRAME + 0.5, FRAME.astype(np.uint16), FRAME.astype(np.int64), FRAME[..., 0],
    FRAME[..., :1], np.zeros((H, W, 4), np.uint8), FRAME[:0], torch.zeros(H, W, 3, dtype=torch.uint8), None])
def test_frames_are_uint8_rgb(model, frame):
    with pytest.raises(ValueError, match=r"uint8 \[H,W,3\]; got"):
        propagator(model).step(frame, blocks(1))


@pytest.mark.parametrize("correct", [False, True])
def test_a_refused_mask_leaves_the_video_as_it_was(model, frames, correct):
    wrong = (np.zeros((H, W + 1), np.uint8), np.zeros((W, H), np.uint8), np.zeros((H, W), np.int64),
             np.zeros((H, W), bool), np.zeros((H, W, 1), np.uint8), [[0, 1]])
    plain, video = propagator(model), propagator(model)
    for t, mask in enumerate((blocks(1, 2), None, blocks(0, 3, 1), None)):
        for other in wrong:
            with pytest.raises(ValueError, match="mask"):
                video.step(frames[t], other, correct=correct and t > 0)
        after, wanted = (each.step(frames[t], mask, correct=correct) for each in (video, plain))
        assert np.array_equal(after, wanted)


def test_a_search_that_fails_leaves_the_video_as_it_was(model, frames, monkeypatch):
    plain, video = propagator(model), propagator(model)
    for each in (plain, video):
        each.step(frames[0], blocks(1))
    with monkeypatch.context() as patch:
        patch.setattr(NeighbourPropagation, "__call__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            video.step(frames[1], blocks(0, 2))
    for t, mask in ((1, blocks(0, 2)), (2, None)):
        assert np.array_equal(video.step(frames[t], mask), plain.step(frames[t], mask))


def test_the_first_frame_needs_a_mask_and_all_have_its_size(model, frames):
    video = propagator(model)
    with pytest.raises(ValueError, match="first frame"):
        video.step(frames[0][:8])
    video.step(frames[0], blocks(1))
    with pytest.raises(UserError, match=f"{W}x{H - 8} and {W}x{H}"):
        video.step(frames[1][8:])
    with pytest.raises(UserError, match="one size"):
        video.encode([frames[1], frames[2][8:]])


def test_reset_starts_another_video(model, frames):
    video, fresh = propagator(model), propagator(model)
    video.step(frames[3], blocks(1, 2, 3))
    video.step(frames[4], blocks(0, 0, 0, 9))
    video.reset()
    with pytest.raises(ValueError, match="first frame"):
        video.step(frames[0])
    tall = lambda image: np.ascontiguousarray(image.swapaxes(0, 1))
    for t, mask in enumerate((blocks(0, 5), None, None)):
        given = None if mask is None else tall(mask)
        assert np.array_equal(video.step(tall(frames[t]), given), fresh.step(tall(frames[t]), given))


def test_a_deleted_object_is_background_and_the_others_do_not_notice(model, frames):
    plain, video = propagator(model), propagator(model)
    for each in (plain, video):
        each.step(frames[0], blocks(1, 2, 3))
        each.step(frames[1], blocks(0, 0, 0, 0, 0, 6))
        each.step(frames[2])
    with pytest.raises(ValueError, match="got \\[0, 5\\]"):
        video.delete([0, 2, 5])
    video.delete([2, 6])
    wanted, mask = plain.step(frames[3]), video.step(frames[3])
    assert set(np.unique(mask)) == {0, 1, 3}
    away = ~np.isin(wanted, (2, 6))
    assert (mask[away] == wanted[away]).mean() > 0.98 and (mask[~away] == 0).mean() > 0.9
    again = video.step(frames[4], blocks(0, 0, 0, 0, 0, 0, 2))
    assert (again[15:21, 34:46] == 2).all(), "the id is free again"
    video.delete([1, 2, 3])
    assert not video.step(frames[5]).any()


def test_deleted_labels_go_to_the_background_in_every_frame_kept():
    neighbours = FakeNeighbours()
    labels = LabelPropagator(neighbours, (1, 2))
    cell = lambda *values: torch.tensor(values)[:, None, None].repeat(1, 2, 2)
    labels.step(feature(0), cell(0.5, 0.25, 0.25))
    labels.step(feature(1), cell(0.5))  # class 3
    labels.delete([1])
    neighbours.asked.clear()
    assert labels.step(feature(2))[0][:, 0, 0].tolist() == [0.75, 0.25, 0.5]
    (_, (first,), recent), (_, (late,), _) = neighbours.asked
    assert first.labels[:, 0, 0].tolist() == [0.75, 0.25] and late.labels[:, 0, 0].tolist() == [0.5]
    assert recent[1].labels[:, 0, 0].tolist() == [0.375, 0.125]


class ListsToTensors(TorchDispatchMode):
    """Counts what would be a blocking copy to a GPU: tensors made of lists, and indexing by such tensors."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        if function.overloadpacket in (torch.ops.aten.lift_fresh, torch.ops.aten.index, torch.ops.aten.index_put_):
            self.seen.append((function.overloadpacket, result.dtype))
        return result


def test_a_frame_makes_no_tensor_of_a_list_and_the_mask_leaves_as_uint8(model, frames):
    video = VideoPropagator(Branches(model, "merge"), size=(W, H), gaps=[1, 2],
                            neighbours=FakeNeighbours())  # the search has lists of its own
    video.step(frames[0], blocks(1, 2))
    video.step(frames[1], blocks(0, 0, 0, 7))  # two groups of references
    features = video.encode(frames[2:4])
    video.index_mask(video.predict(features[0]), frames[2])
    with ListsToTensors() as lists:
        prediction = video.predict(features[1])
    assert not lists.seen
    with ListsToTensors() as lists:
        video.index_mask(prediction, frames[3])
    assert lists.seen == [(torch.ops.aten.index, torch.uint8)], "the ids, by a tensor that is on the device"


@pytest.mark.parametrize(("frame", "short_side", "expected"), [
    ((854, 480), 480, (864, 480)), ((1280, 720), 480, (864, 480)), ((720, 1280), 480, (480, 864)),
    ((1920, 1080), 640, (1152, 640)), ((100, 100), 33, (48, 48)), ((480, 480), 480, (480, 480))])
def test_sizes_keep_the_aspect(frame, short_side, expected):
    assert keeping_aspect(*frame, short_side) == expected


def test_without_a_fixed_size_frames_keep_their_aspect(model, frames):
    video = propagator(model, "TEST.INPUT_SIZE", 32)
    assert video.encode(frames[:1]).shape[2:] == (H // 8, W // 8)
    free = build_propagator(model, load_settings(overrides=["TEST.INFER_WH", "[0,0]", "TEST.INPUT_SIZE", "32"]).TEST)
    assert free.encode(frames[:1]).shape[2:] == (32 // 8, 48 // 8)


def test_custom_gaps_are_the_published_ones():
    assert len(CUSTOM_GAPS) == 20 and CUSTOM_GAPS[9:] == (10, 12, 14, 16, 18, 20, 23, 26, 30, 34, 39)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_gives_the_masks_of_the_cpu(model, frames):
    on_gpu = ColorNet(size="S", has_global=True, stem_kernel=3, feature_dim=128).eval()
    on_gpu.load_state_dict(model.state_dict())
    videos = propagator(model), propagator(on_gpu.cuda())
    for t, frame in enumerate(frames):
        mask = blocks(1, 2, 3) if t == 0 else None
        cpu, gpu = (video.step(frame, mask) for video in videos)
        assert (cpu == gpu).mean() >= 0.999
