import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from helpers import tiny_pipeline

from minisd import AutoencoderKL, DDIMScheduler, UNet, UNetConfig
from minisd.data.postcards import LAYERS, Postcards, masks, render
from minisd.lab.evaluation import EvaluationSettings, evaluate_inpainting
from minisd.lab.evaluation.inpainting import (
    ERROR,
    JUMP,
    SUBJECT,
    boxes_around,
    inpaint,
    other_subjects,
    seam,
)

FEW = EvaluationSettings(n=4, steps=2)


def seeded():
    return torch.Generator().manual_seed(1)


def test_only_the_subject_is_another():
    before = Postcards("test", 300, seed=7).scenes
    after = other_subjects(before, seeded())
    assert (before.subject != after.subject).all()
    assert len(after.subject.unique()) == 12
    assert torch.equal(before.labels[:, 1:], after.labels[:, 1:])
    assert torch.equal(before.seed, after.seed)
    for scene in after:
        replace(scene)  # raises for what this world does not hold
    assert torch.equal(other_subjects(before, seeded()).labels, after.labels)


def test_a_box_holds_both_subjects_in_whole_cells():
    before = Postcards("test", 20, seed=7).scenes
    after = other_subjects(before, seeded())
    boxes = boxes_around(before, after, 8)
    assert boxes.shape == (20, 1, 64, 64) and set(boxes.unique().tolist()) == {0, 1}
    cells = F.avg_pool2d(boxes, 8)
    assert set(cells.unique().tolist()) == {0, 1}
    subject = LAYERS.index("subject")
    for scenes in (before, after):
        assert (boxes[:, 0][masks(scenes) == subject] == 1).all()
    for box in cells[:, 0]:  # nothing but one rectangle, no larger than it must be
        rows, columns = box.any(dim=1).nonzero(), box.any(dim=0).nonzero()
        assert box.sum() == len(rows) * len(columns)
        assert len(rows) == rows[-1] - rows[0] + 1 and len(columns) == columns[-1] - columns[0] + 1
    there = (masks(before) == subject) | (masks(after) == subject)
    there = F.max_pool2d(there[:, None].float(), 8)
    assert torch.equal(there.amax((1, 2)), cells.amax((1, 2)))
    assert torch.equal(there.amax((1, 3)), cells.amax((1, 3)))


def test_the_latents_outside_of_the_box_stay():
    pipe, image = tiny_pipeline(), Postcards("test", 1, size=32).images()[0]
    box = torch.zeros(1, 32, 32)
    box[:, 8:24, 4:16] = 1
    drawn = inpaint(pipe, image, box, "a red tent", FEW, seeded())
    other = inpaint(pipe, image, box, "a night", FEW, seeded())
    assert not torch.allclose(drawn, other, atol=1e-4)
    kept, inside = pipe.encode_image((image + 1) / 2, seeded()), torch.zeros(1, 1, 8, 8)
    inside[..., 2:6, 1:4] = 1
    for z in (drawn, other):
        assert torch.equal(z * (1 - inside), kept * (1 - inside))
        assert (z - kept)[inside.expand_as(z) == 1].abs().min() > 0


def test_the_seam_is_the_jump_across_the_edge():
    masks = torch.zeros(2, 1, 6, 6)
    masks[0, :, 2:4, 1:5] = 1
    masks[1, :, :, 3:] = 1  # it ends where the picture does: there is no edge
    flat = torch.where(masks == 1, 0.5, -0.5).expand(-1, 3, -1, -1)
    assert torch.allclose(seam(flat, masks), torch.tensor([0.5, 0.5]))
    assert torch.equal(seam(flat, masks), seam(-flat, masks))
    ramp = (torch.arange(6) / 10).expand(2, 3, 6, 6)  # 4 pairs side by side, 8 one above the other
    assert torch.allclose(seam(ramp, masks), torch.tensor([4 * 0.05 / 12, 0.05]))
    elsewhere = ramp.clone()
    elsewhere[0, :, 0] = elsewhere[1, :, :, 0] = 9
    assert torch.allclose(seam(elsewhere, masks), seam(ramp, masks))
    one = ramp.clone()
    one[:, 1] = 0  # the mean of the channels
    assert torch.allclose(seam(one, masks), seam(ramp, masks) * 2 / 3)


def perfect(monkeypatch, change):
    """Paint the scene that was asked for, as real as can be; `change` may spoil it.

    The decoder makes all pictures lighter. Who paints alone, paints black.
    """
    data = Postcards("test", 4, seed=7)
    asked = iter(other_subjects(data.scenes, torch.Generator().manual_seed(0)))
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, images: images)
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, images: (images + 0.02).clamp(-1, 1))

    def paint(pipeline, image, box, prompt, settings, generator):
        scene = next(asked)
        assert scene.subject in prompt and scene.colour in prompt
        return change(image, box, render(scene))[None]

    monkeypatch.setattr("minisd.lab.evaluation.inpainting.inpaint", paint)
    monkeypatch.setattr(
        "minisd.lab.evaluation.inpainting.draw", lambda *_, **__: torch.zeros(4, 3, 64, 64)
    )


def fitting(image, box, wanted):
    return box * wanted + (1 - box) * image


def scored(folder):
    """The scores, and two lists of values: of the error outside of the mask, and of the jump."""
    scores = evaluate_inpainting(folder, FEW)
    errors, jumps = (
        [score.value for name, score in scores.items() if name.startswith(start)]
        for start in (ERROR, JUMP)
    )
    return scores, errors, jumps


def test_a_perfect_painter_has_perfect_scores(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    perfect(monkeypatch, fitting)
    scores, (after, before, least, times), (ours, original, _, alone) = scored(tmp_path)
    assert scores[SUBJECT].value == scores["inpainting, all attributes"].value == 1
    assert after == 0 and 0 < least <= 0.01
    assert (before, times) == pytest.approx((least, 1), rel=1e-5)
    assert abs(ours - original) < 0.011 and alone > 3 * ours


def test_a_painter_that_does_not_listen_is_found_out(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    perfect(monkeypatch, lambda image, box, wanted: -image)
    scores, (after, before, _, times), (*_, rougher, _) = scored(tmp_path)
    assert scores[SUBJECT].value < 1 and scores["inpainting, all attributes"].value == 0
    assert after == 0 and before > 0.1 and times > 10  # the paste hides it, the score does not
    assert rougher > 3


def test_who_leaves_the_surroundings_alone_but_does_not_fit_them_has_a_seam(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    perfect(monkeypatch, lambda image, box, wanted: torch.where(box == 1, -image, image))
    _, (*_, times), (_, _, rougher, _) = scored(tmp_path)
    assert times == pytest.approx(1, rel=1e-5) and rougher > 3


def test_pixels_that_are_not_put_back_are_counted(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    perfect(monkeypatch, fitting)
    monkeypatch.setattr(
        "minisd.lab.evaluation.inpainting.paste", lambda images, image, mask: images
    )
    _, (after, before, *_), _ = scored(tmp_path)
    assert after == before > 0


def test_a_pipeline_is_scored_from_its_folder(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    scores = evaluate_inpainting(tmp_path, FEW)
    assert list(scores)[:2] == [SUBJECT, "inpainting, all attributes"]
    assert len(scores) == 10
    assert all(score.n == 4 and math.isfinite(score.value) for score in scores.values())
    for name, score in scores.items():
        if name.endswith(("over that of the autoencoder", "over that of the original")):
            assert score.low <= score.value <= score.high
    assert evaluate_inpainting(tmp_path, FEW) == scores


def test_a_model_without_prompts_cannot_inpaint(tmp_path):
    config = UNetConfig(14, channels=(8, 8), attention=(False, False))
    UNet(config).save_pretrained(tmp_path)
    DDIMScheduler().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="inpainting needs a text-to-image model"):
        evaluate_inpainting(tmp_path, FEW)
