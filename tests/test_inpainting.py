from dataclasses import replace

import torch
import torch.nn.functional as F
from helpers import tiny_pipeline

from minisd import AutoencoderKL
from minisd.data.postcards import LAYERS, Postcards, masks, render
from minisd.evaluation import EvaluationSettings
from minisd.inpainting import boxes_around, evaluate_inpainting, inpaint, other_subjects

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


def test_the_latents_outside_of_the_box_stay(monkeypatch):
    pipe, latents = tiny_pipeline(), []
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda z: latents.append(z) or decode(z))
    image, box = Postcards("test", 1, size=32).images()[0], torch.zeros(1, 32, 32)
    box[:, 8:24, 4:16] = 1
    drawn = inpaint(pipe, image, box, "a red tent", FEW, seeded())
    assert drawn.shape == (1, 3, 32, 32) and drawn.abs().max() <= 1
    other = inpaint(pipe, image, box, "a night", FEW, seeded())
    assert not torch.allclose(drawn, other, atol=1e-4)
    kept, inside = pipe.encode_image((image + 1) / 2, seeded()), torch.zeros(1, 1, 8, 8)
    inside[..., 2:6, 1:4] = 1
    for z in latents:
        assert torch.equal(z * (1 - inside), kept * (1 - inside))
        assert (z - kept)[inside.expand_as(z) == 1].abs().min() > 0


def perfect(monkeypatch, change):
    """Paint the scene that was asked for, as real as can be; `change` may spoil it."""
    data = Postcards("test", 4, seed=7)
    asked = iter(other_subjects(data.scenes, torch.Generator().manual_seed(0)))
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, images: images)
    monkeypatch.setattr(AutoencoderKL, "decode", lambda self, images: (images + 0.02).clamp(-1, 1))

    def paint(pipeline, image, box, prompt, settings, generator):
        scene = next(asked)
        assert scene.subject in prompt and scene.colour in prompt
        return change(image, box, render(scene))[None]

    monkeypatch.setattr("minisd.inpainting.inpaint", paint)


def test_a_perfect_painter_has_perfect_scores(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    perfect(monkeypatch, lambda image, box, wanted: box * wanted + (1 - box) * image)
    subject, everything, error = evaluate_inpainting(tmp_path, FEW).values()
    assert subject.startswith("100.00%") and everything.startswith("100.00%")
    assert error.startswith("0.0000 of 1, 0.00 times")


def test_a_painter_that_does_not_listen_is_found_out(tmp_path, monkeypatch):
    tiny_pipeline().save_pretrained(tmp_path)
    perfect(monkeypatch, lambda image, box, wanted: -image)
    subject, everything, error = evaluate_inpainting(tmp_path, FEW).values()
    assert not subject.startswith("100.00%") and everything.startswith("0.00%")
    assert float(error.split()[3]) > 10


def test_a_pipeline_is_scored_from_its_folder(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path)
    scores = evaluate_inpainting(tmp_path, FEW)
    assert list(scores)[0] == "inpainting, another subject, 4 postcards"
    assert evaluate_inpainting(tmp_path, FEW) == scores
