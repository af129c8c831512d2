"""Cards of models and data sets: templates, what fills and checks them, and the upload to the Hub."""

from .cards import demo_card
from .checking import CardError, check_card
from .dataset import dataset_card
from .licenses import DataSource
from .model import model_card, read_results, write_card
from .push import PushRefusedError, plan_push, push_folder
from .speed import Speed, measure_speed

__all__ = [
    "CardError",
    "DataSource",
    "PushRefusedError",
    "Speed",
    "check_card",
    "dataset_card",
    "demo_card",
    "measure_speed",
    "model_card",
    "plan_push",
    "push_folder",
    "read_results",
    "write_card",
]
