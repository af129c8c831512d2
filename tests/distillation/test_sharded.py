"""A student sharded by FSDP2 over two gloo processes, and the teacher that follows it."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from modeling_r2d2 import R2D2ForPreTraining
from modeling_r2d2.distillation import DistillationState, FeatureGuidedSettings, MomentumTeacher, TargetGuidedSettings
from modeling_r2d2.distillation import state as state_module
from modeling_r2d2.model.losses_r2d2 import HardNegatives
from tests.distillation.test_processes import IMAGE, PAIRS, TEXT, batches
from tests.processes import in_two_processes
from tests.tiny import tiny_config


def run(rows: slice, sharded: bool) -> dict:
    """Three steps of SGD with both ways of distillation; the teacher at the end."""
    torch.manual_seed(0)
    model = R2D2ForPreTraining(tiny_config(fgd_prototypes=48))
    teacher = MomentumTeacher(model)
    if sharded:
        mesh = init_device_mesh("cpu", (2,))
        for layer in (*model.vision_model.encoder.layers, *model.text_model.encoder.layer):
            fully_shard(layer, mesh=mesh)
        # FSDP2 takes no scalars: the temperature stays whole, and its gradient is averaged by hand
        fully_shard(model, mesh=mesh, ignored_params={model.temperature})
        assert isinstance(model.text_projection.weight, DTensor)
    settings = TargetGuidedSettings(queue_size=10), FeatureGuidedSettings()
    state = DistillationState(model, *settings, batch=PAIRS, teacher=teacher)
    for step, whole in enumerate(batches()):
        kept = (torch.arange(PAIRS)[:, None] + torch.arange(2)) % 4
        state_module.draw_kept = lambda *args, kept=kept, **kwargs: kept[rows].sort(dim=1).values
        batch = {name: value[rows] for name, value in whole.items()}
        targets = state.targets(batch, step, model.current_temperature(), alpha=0.4)
        negatives = HardNegatives(IMAGE[rows], TEXT[rows], torch.ones(PAIRS).bool()[rows])
        model(**batch, teacher=targets, hard_negatives=negatives).loss.backward()
        if sharded:
            dist.all_reduce(model.temperature.grad)
            model.temperature.grad /= dist.get_world_size()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.02 * parameter.grad
                parameter.grad = None
        state.commit(model, 0.9)
    return state.state_dict()


def worker(number: int) -> dict:
    return run(slice(4 * number, 4 * number + 4), sharded=True)


def test_teacher_follows_a_sharded_student(monkeypatch):
    workers = in_two_processes(worker)
    monkeypatch.setattr(state_module, "draw_kept", state_module.draw_kept)  # put back after `run`
    one = run(slice(0, PAIRS), sharded=False)
    for held in workers:
        for name, value in held.items():
            torch.testing.assert_close(value, one[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")
