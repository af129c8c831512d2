"""A tiny model with its processor, in memory and on disk."""

import pytest
import torch

from tests.helpers import tiny_model, tiny_processor


@pytest.fixture(scope="session")
def processor():
    return tiny_processor()


@pytest.fixture(scope="session")
def model():
    torch.manual_seed(0)
    return tiny_model()


@pytest.fixture(scope="session")
def folder(model, processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prd2_folder(processor, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prd2")
    tiny_model(ranker=False).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
