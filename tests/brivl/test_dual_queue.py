"""The authors' training: losses, keys, gradients and queues of one process and of two, and what trains."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from modeling_r2d2 import BriVLForPreTraining, BriVLModel
from modeling_r2d2.distillation import DualQueueContrastiveCallback, DualQueueSettings, DualQueueState
from modeling_r2d2.distillation.teacher import MomentumTeacher, take_weights
from modeling_r2d2.integrations.brivl_names import BriVLNames
from modeling_r2d2.model.batch_norms_r2d2 import batch_norms
from tests.brivl import golden
from tests.brivl.golden import CASES, arrays, meta
from tests.processes import in_two_processes

ATOL, ATOL_GRADIENT = 1e-5, 5e-5


def close(actual, expected, atol=ATOL):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def student_of(case: str, training: bool = False) -> BriVLModel:
    """All of it trains; in training mode every dropout is 0, as in the record."""
    model = golden.model(case).freeze_lower_layers(False).train(training)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
            if hasattr(getattr(module, "config", None), name):
                setattr(module.config, name, 0.0)
    return model


def state_of(case: str, student: BriVLModel, batch: int, pointer: int = 0) -> DualQueueState:
    """With the momentum copies, and the queues, as they were recorded."""
    sizes, recorded = meta(case)["sizes"], arrays(case)
    teacher = MomentumTeacher(student)
    take_weights(teacher.model, golden.model(case, momentum=True).state_dict())
    settings = DualQueueSettings(queue_size=sizes["queue_size"], temperature=sizes["temperature"])
    state = DualQueueState(student, settings, batch, teacher=teacher)
    images, texts = recorded["moco_img_queue"].t(), recorded["moco_text_queue"].t()
    for start in range(0, len(images), batch):
        rows = slice(start, start + batch)
        state.queue.push(images[rows], texts[rows], state.queue.new_ids(batch))
    state.queue._written += pointer  # where the next keys are written
    return state


def batch_of(case: str, boxes: str = "full", rows: slice = slice(None)) -> dict:
    recorded = arrays(case)
    pairs = recorded["moco_pairs"]
    found = {
        "pixel_values": recorded["pixel_values"][pairs],
        "input_ids": recorded["input_ids"][pairs],
        "attention_mask": recorded["text_mask"][pairs],
        "boxes": recorded["moco_boxes_full"] if boxes == "full" else recorded["boxes"][pairs],
        "box_mask": recorded["box_mask"][pairs]
        if boxes == "varied"
        else torch.ones(len(pairs), recorded["boxes"].shape[1]),
    }
    return {name: each[rows] for name, each in found.items()}


def step(state: DualQueueState, student: BriVLModel, batch: dict, momentum: float) -> torch.Tensor:
    """As the authors order it: the momentum copies follow, then the keys are made. Theirs keep running statistics of
    their own, which evaluation mode reads; ours average them."""
    own = {name: buffer.clone() for name, buffer in state.teacher.model.named_buffers()}
    state.teacher.update(student, momentum)
    take_weights(state.teacher.model, {name: own[name] for name in own if "running" in name})
    state.keys(batch)
    output = student(**batch)
    return state.loss(output.image_embeds, output.text_embeds)


def gradients(case: str, student: BriVLModel, kind: str):
    """(name, ours, recorded) of every recorded gradient."""
    own = dict(student.named_parameters())
    names = BriVLNames(_names(case))
    for key, recorded in arrays(case).items():
        if not key.startswith(f"{kind}_grad/"):
            continue
        name = key.partition("/")[2]
        yield name, torch.cat([own[target].grad for target in names.of(name)]), recorded


def _names(case: str) -> list[str]:
    return list(torch.load(golden.GOLDEN / case / "checkpoint.pth", weights_only=True)["learnable"])


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kind", ["moco", "moco_varied", "moco_train"])
def test_a_step(case, kind):
    recorded, momentum = arrays(case), meta(case)["sizes"]["momentum"]
    student = student_of(case, training=kind == "moco_train")
    state = state_of(case, student, len(recorded["moco_pairs"]), int(recorded["moco_ptr_before"]))
    batch = batch_of(case, "varied" if kind == "moco_varied" else "full")
    loss = step(state, student, batch, momentum)
    close(loss.detach(), recorded[f"{kind}_loss"])
    images, texts = state._local
    close(images, recorded[f"{kind}_image_key"])
    close(texts, recorded[f"{kind}_text_key"])
    loss.backward()
    compared = list(gradients(case, student, kind))
    assert len(compared) > 5
    for name, ours, theirs in compared:
        torch.testing.assert_close(
            ours, theirs, atol=ATOL_GRADIENT, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )
    if kind == "moco":
        state._enqueue()
        for own, name in ((state.queue.images, "img"), (state.queue.texts, "text")):
            close(own, recorded[f"moco_{name}_queue_after"].t())
        updated = convert_momentum(case, "moco_momentum_after")
        for name, tensor in updated.items():
            close(state.teacher.model.state_dict()[name], tensor, 1e-6)
    if kind == "moco_train":  # the student's running statistics; the teacher's are averaged here, its own in theirs
        held = student.state_dict()
        names = BriVLNames(_names(case))
        for key, tensor in recorded.items():
            name = key.partition("/")[2]
            if key.startswith("moco_train_after/imgencoder."):
                close(held[names.of(name)[0]], tensor)


def convert_momentum(case: str, kind: str) -> dict:
    names = BriVLNames(_names(case))
    found = {}
    for key, tensor in arrays(case).items():
        if key.startswith(f"{kind}/"):
            found[names.of(key.partition("/")[2].replace("_mom.", "."))[0]] = tensor
    return found


@pytest.mark.parametrize("case", CASES)
def test_three_steps(case):
    """Without an optimizer: the queue and the momentum copies move on."""
    recorded, momentum = arrays(case), meta(case)["sizes"]["momentum"]
    student = student_of(case)
    state = state_of(case, student, len(recorded["moco_pairs"]))
    for number in range(3):
        loss = step(state, student, batch_of(case), momentum)
        close(loss.detach(), recorded[f"moco_step{number}_loss"])
    for name, tensor in convert_momentum(case, "moco_steps_momentum_after").items():
        close(state.teacher.model.state_dict()[name], tensor, 1e-6)


def _worker(number: int, case: str) -> dict:
    count = len(arrays(case)["moco_pairs"])
    student = student_of(case)
    state = state_of(case, student, count, int(arrays(case)["moco_ptr_before"]))
    half = slice(number * count // 2, (number + 1) * count // 2)
    loss = step(state, student, batch_of(case, rows=half), meta(case)["sizes"]["momentum"])
    state._enqueue()
    return {"loss": loss.detach(), "img": state.queue.images, "text": state.queue.texts}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_with_half_of_the_batch_each(case):
    recorded = arrays(case)
    for number, found in enumerate(in_two_processes(_worker, case)):
        close(found["loss"], recorded[f"world2_rank{number}_loss"])
        for name in ("img", "text"):
            close(found[name], recorded[f"world2_{name}_queue_after"].t())


def test_the_authors_rule_of_what_trains():
    """Frozen parts stand still, their batch norms too; all else trains, as theirs does."""
    case = "brivl_76"
    model = golden.model(case).train()
    assert model.config.freeze_lower_layers
    names = BriVLNames(_names(case))
    theirs = {own for name in meta(case)["trained_by_the_authors"] for own in names.of(name)}
    ours = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert ours - {"temperature"} == theirs
    for name, norm in batch_norms(model).items():
        assert norm.training == (f"{name}.weight" in theirs), name
    assert model.text_model.bert.encoder.layer[0].training  # its dropout acts, as theirs does
    batch = batch_of(case)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model(**batch, return_loss=True).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    frozen = [name.removesuffix(".weight") for name, p in model.named_parameters() if not p.requires_grad]
    assert changed
    assert not [name for name in changed if name.rpartition(".")[0] in frozen]
    model.freeze_lower_layers(False)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(norm.training for norm in batch_norms(model).values())


def test_a_run_goes_on_with_the_authors_teacher(tmp_path):
    case = "brivl_120"
    student = BriVLForPreTraining(golden.config(case))
    student.load_state_dict(golden.model(case).state_dict())
    copies = golden.model(case, momentum=True).state_dict()
    batch = batch_of(case)
    rows = [{name: each[i] for name, each in batch.items()} for i in range(4)]
    callback = DualQueueContrastiveCallback(queue_size=20, momentum=0.9, temperature=0.2, teacher=copies)
    arguments = TrainingArguments(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, learning_rate=0.0, report_to=[],
        remove_unused_columns=False, use_cpu=True, save_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model=student, args=arguments, train_dataset=rows, callbacks=[callback])
    trainer.train()
    name = "vision_projection.2.bias"
    start = copies[name].lerp(golden.model(case).state_dict()[name], 0.1)  # before its first keys
    after = start.lerp(student.state_dict()[name], 0.1)
    close(callback.state.teacher.model.state_dict()[name], after, 1e-6)
