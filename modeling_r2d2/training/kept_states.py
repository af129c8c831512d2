"""What frozen towers make of a set, kept in a folder: embeddings of all pictures and texts, and the pictures' states.

| file | what it holds |
|---|---|
| `store.json` | whose they are: towers, preprocessing, pictures, texts |
| `PRECISION-NUMBER.states` | the image tower's states, a record for each picture, as an index keeps them |
| `pictures-PRECISION-NUMBER.safetensors` | embeddings of a part of the pictures, and which of them cannot be read |
| `texts-NUMBER.safetensors` | embeddings of a part of the texts |

A part's file is written after its states lie on the disk, so an interrupted run goes on behind its last whole part.
Of several processes each encodes its share of the parts into the one folder, which all of them see.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import DataLoader

from ..inference.encoding import encode_texts, evaluating, name_of
from ..inference.finite import require_finite
from ..inference.identity import ModelIdentity
from ..inference.packing import Precision, pack, unpack
from ..model.modeling_r2d2 import R2D2Model, normalize
from ..model.processing_r2d2 import R2D2Processor
from ..processing.collation import R2D2PretrainingCollator, SampleEncoder
from ..processing.datasets.pair_sets import Pairs
from ..processing.files.images import ImageReadError
from ..processing.files.progress import bar
from ..processing.files.record_files import RecordsWriter, are_damaged, read_records, record_dtype, record_layout
from ..processing.files.writing import clean_leftovers, foreign_entries, refuse_no_folder, save_safetensors, write_text

logger = logging.getLogger(__name__)

_IDENTITY = "store.json"
_OURS = re.compile(r"store\.json|(pictures-\w+|texts)-\d{8}\.safetensors|(float32|float16|int8)-\d{8}\.states")
#: Pictures that a tower encodes at a time, and of a part; texts of a part; bytes of a file; bytes that stay free.
_BATCH, _IMAGE_PART, _TEXT_PART, _FILE, _SPARE = 32, 256, 4096, 1 << 31, 1 << 28


class Images:
    """The distinct pictures of a set as the image tower takes them, not augmented.

    Args:
        pairs: as the processor reads them.
        rows: (I,) a pair of each picture.
        processor: whose size and normalisation they get.
    """

    def __init__(self, pairs: Pairs, rows: np.ndarray, processor: R2D2Processor) -> None:
        self.pairs, self.rows = pairs, rows
        self.encoder, self.collator = SampleEncoder(processor), R2D2PretrainingCollator(processor)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> np.ndarray | ImageReadError:
        """(H, W, 3) uint8, or why it cannot be read."""
        try:
            return self.encoder.prepare(self.pairs[int(self.rows[number])])["image"]
        except ImageReadError as error:
            return error

    def inputs(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """`pixel_values` (B, 3, H, W) of some.

        Raises:
            ImageReadError: one cannot be read.
        """
        found: list[np.ndarray] = []
        for number in numbers:
            image = self[number]
            if isinstance(image, ImageReadError):
                raise image
            found.append(image)
        return {"pixel_values": self.collator.pixels(found)}

    def digest(self) -> str:
        """Of what tells all of them from others, see `Pairs.identity`."""
        held = hashlib.blake2b(digest_size=16)
        for row in bar(self.rows.tolist(), doing="listing pictures"):
            held.update(repr(self.pairs.identity(row)).encode("utf-8", "surrogatepass"))
        return held.hexdigest()


class StatesStore:
    """What the towers of a model make of pictures and texts, in a folder; made by `fill`, then read.

    Args:
        folder: it is made, and is this package's alone.
        model: whose towers do not train.
        processor: of the model.
        images: of the set.
        texts: of the set.
        precision: of the states; None: they are not kept.
    """

    def __init__(
        self,
        folder: Path,
        model: R2D2Model,
        processor: R2D2Processor,
        images: Images,
        texts: Sequence[str],
        precision: Precision | None = "float32",
    ) -> None:
        self.folder, self.model, self.processor = folder, model, processor
        self.images, self.texts, self.precision = images, texts, precision
        self.processes = PartialState()
        self.layout = record_layout(self._packed(self._states(np.zeros((1, *self._side, 3), np.uint8))[0]))
        self.per_file = max(_FILE // self.record_bytes, 1)

    # -- making ---------------------------------------------------------------------------------

    def fill(self, workers: int = 0, replace: bool = False) -> None:
        """Encode what is not there yet; says beforehand how much room the states take, or that there is none, in which
        case they are not kept.

        Args:
            workers: processes that read pictures.
            replace: what another model, or other data, have left in the folder may go.

        Raises:
            FileExistsError: something else is in the folder.
            ValueError: it belongs to another model or other data, and is not to be replaced.
            NotFiniteError: an embedding is not finite.
            OSError: the disk is full.
        """
        self._claim(replace)
        self._measure_room()
        self._wait()
        self._encode_images(workers)
        for number, part in self._missing("texts"):
            texts = [self.texts[place] for place in part]
            embeds = encode_texts(self.model, self.processor, texts, _BATCH, keep_states=False, device="cpu").embeds
            save_safetensors({"embeds": embeds}, self._part("texts", number))
        self._wait()

    def _claim(self, replace: bool) -> None:
        """Refuse a folder that is not this store's; the first process makes it so."""
        refuse_no_folder(self.folder)
        model = ModelIdentity.of(self.model, self.processor, towers_alone=True)
        texts = hashlib.blake2b("\0".join(self.texts).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        own = {
            "towers": model.weights,
            "preprocessing": model.preprocessing,
            "pictures": self.images.digest(),
            "texts": texts,
        }
        held = self._held()
        if held is None and self.folder.is_dir() and (names := foreign_entries(self.folder)):
            raise FileExistsError(
                f"{self.folder} holds something else ({', '.join(names[:3])}), and what frozen towers make of the data "
                "is kept there: move it away, or choose another --output"
            )
        different = [] if held is None else [name for name, value in own.items() if held.get(name) != value]
        if different and not replace:
            raise ValueError(
                f"{self.folder} keeps what frozen towers made, but of other {' and '.join(different)}: remove that "
                "folder, choose another --output, or let --overwrite replace it"
            )
        self._wait()  # nobody writes before all have seen what is there
        if self.processes.is_main_process and own != held:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self.folder.iterdir() if different else ():
                if _OURS.fullmatch(path.name) and path.is_file() and not path.is_symlink():
                    path.unlink()
            write_text(self.folder / _IDENTITY, json.dumps(own, indent=1) + "\n")
        if self.processes.is_main_process:
            clean_leftovers(self.folder)

    def _held(self) -> dict[str, Any] | None:
        try:
            held = json.loads((self.folder / _IDENTITY).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return None
        return held if isinstance(held, dict) and "towers" in held else None

    def _measure_room(self) -> None:
        """Say how much the states take, and give them up where the disk has not so much; the first process decides."""
        decided = [self.precision]
        if self.processes.is_main_process and self.precision is not None:
            count, each = len(self.images), self.record_bytes
            amount = f"the states of {count:,} pictures, {_megabytes(each)} each, {_megabytes(count * each)}"
            missing = sum(len(part) for _, part in self._missing("pictures", of_all=True))
            free = shutil.disk_usage(self.folder).free
            if missing * self.record_bytes + _SPARE > free:
                logger.warning(
                    f"no room in {self.folder} for {amount}: {_megabytes(free)} are free; they are made anew for "
                    "each batch, which takes longer and changes nothing else"
                )
                decided = [None]
            elif missing:
                logger.info(f"keeping {amount}, in {self.folder}")
        if self.processes.num_processes > 1:
            broadcast_object_list(decided)
        self.precision = decided[0]

    def _encode_images(self, workers: int) -> None:
        parts = list(self._missing("pictures"))
        numbers = [number for _, part in parts for number in part]
        given: Any = self.images  # which has a length and items, as a data set of torch's
        batches = [list(part)[at : at + _BATCH] for _, part in parts for at in range(0, len(part), _BATCH)]
        read: Iterator = iter(DataLoader(given, batch_sampler=batches, num_workers=workers, collate_fn=list))
        writer = RecordsWriter(self.layout, self.per_file, self.states_path)
        with evaluating(self.model), bar(doing="encoding pictures", total=len(numbers)) as shown:
            for number, part in parts:
                embeds = torch.zeros(len(part), self.model.config.projection_dim)
                broken: dict[int, str] = {}
                for at, batch in zip(range(0, len(part), _BATCH), islice(read, -(-len(part) // _BATCH)), strict=True):
                    whole = [place for place, each in enumerate(batch) if not isinstance(each, ImageReadError)]
                    broken |= {part[at + n]: str(e) for n, e in enumerate(batch) if isinstance(e, ImageReadError)}
                    if whole:
                        states, found = self._states(np.stack([batch[place] for place in whole]))
                        embeds[[at + place for place in whole]] = found
                        if self.precision is not None:
                            kept = states.new_zeros(len(batch), *states.shape[1:])  # of those that are broken zeros
                            kept[whole] = states
                            writer.write(part[at], self._packed(kept))
                    shown.update(len(batch))
                require_finite(embeds, f"picture embeddings of {name_of(self.model)}")
                writer.sync()
                noted = {"broken": json.dumps(broken)}
                save_safetensors({"embeds": embeds}, self._part("pictures", number), noted)

    def _states(self, pixels: np.ndarray) -> tuple[Tensor, Tensor]:
        """States (B, N, E) and embeddings (B, D) of pictures (B, H, W, 3), on the CPU."""
        given = self.images.collator.pixels(list(pixels)).to(self.model.device, self.model.dtype)
        with evaluating(self.model):
            output = self.model.get_image_features(given, return_dict=True)
        return output.last_hidden_state.float().cpu(), normalize(output.pooler_output.float()).cpu()

    def _packed(self, states: Tensor) -> dict[str, Tensor]:
        return pack({"states": states}, self.precision or "float32")

    def _missing(self, kind: str, of_all: bool = False) -> Iterator[tuple[int, range]]:
        """The parts that are not there yet, of this process or of all."""
        total, size = (len(self.texts), _TEXT_PART) if kind == "texts" else (len(self.images), _IMAGE_PART)
        for number, start in enumerate(range(0, total, size)):
            own = of_all or number % self.processes.num_processes == self.processes.process_index
            if own and not self._part(kind, number).is_file():
                yield number, range(start, min(start + size, total))

    def _wait(self) -> None:
        self.processes.wait_for_everyone()

    # -- reading --------------------------------------------------------------------------------

    @property
    def record_bytes(self) -> int:
        """What the states of one picture take."""
        return record_dtype(self.layout).itemsize

    def states_path(self, number: int) -> Path:
        """Where a file of states lies."""
        return self.folder / f"{self.precision}-{number:08}.states"

    def embeds(self) -> tuple[Tensor, Tensor, dict[int, str]]:
        """Embeddings (I, D) of the pictures, (T, D) of the texts, and which pictures cannot be read, with the reason.

        Raises:
            ValueError: a file is damaged.
        """
        found: dict[str, list[Tensor]] = {"pictures": [], "texts": []}
        broken: dict[int, str] = {}
        for kind, total, size in (("pictures", len(self.images), _IMAGE_PART), ("texts", len(self.texts), _TEXT_PART)):
            for number in range(-(-total // size)):
                path = self._part(kind, number)
                try:
                    with safe_open(path, "pt") as file:
                        found[kind].append(file.get_tensor("embeds"))
                        noted = json.loads((file.metadata() or {}).get("broken", "{}"))
                except (OSError, SafetensorError) as error:
                    raise ValueError(f"{path} is damaged ({error}): remove it, and run the same again") from error
                broken |= {int(place): reason for place, reason in noted.items()}
        return torch.cat(found["pictures"]), torch.cat(found["texts"]), broken

    def _part(self, kind: str, number: int) -> Path:
        name = kind if kind == "texts" else f"{kind}-{self.precision or 'alone'}"
        return self.folder / f"{name}-{number:08}.safetensors"

    @property
    def _side(self) -> tuple[int, int]:
        width, height = self.images.encoder.size
        return height, width


def _megabytes(size: float) -> str:
    return f"{size / 1e6:,.0f} MB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


class KeptStates:
    """The states of a set's pictures, read from the files of a store.

    Args:
        store: filled, with states.
        slots: (I,) int64, the store's number of each picture.
    """

    def __init__(self, store: StatesStore, slots: np.ndarray) -> None:
        self.folder, self.path, self.slots = store.folder, store.states_path, slots
        self.layout, self.dtype, self.per_file = store.layout, record_dtype(store.layout), store.per_file
        self._unread = np.ones(int(slots.max()) + 1, dtype=bool)
        self._files: dict[int, np.ndarray] = {}

    def inputs(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """`image_states` (B, N, E) of some.

        Raises:
            ValueError: a file is damaged; every record is checked when it is read first.
        """
        places = self.slots[np.asarray(numbers)]
        try:
            records = read_records(self.dtype, self.per_file, self._data, places)
        except (OSError, IndexError, ValueError) as error:
            raise ValueError(f"{self.folder} is damaged ({error}): remove it, and run the same again") from error
        fresh = self._unread[places]
        if fresh.any():
            for place in places[fresh][are_damaged(records[fresh])][:1]:
                raise ValueError(
                    f"{self.path(int(place) // self.per_file)} was changed after it was written (record {place}): "
                    f"remove {self.folder}, and run the same again"
                )
            self._unread[places] = False
        packed = {str(name): torch.from_numpy(records[str(name)].copy()) for name, *_ in self.layout[:-1]}
        return {"image_states": unpack(packed, torch.float32, "cpu")["states"]}

    def _data(self, number: int) -> np.ndarray:
        if number not in self._files:
            self._files[number] = np.memmap(self.path(number), np.uint8, "r")
        return self._files[number]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # each process maps the files for itself


__all__ = ["Images", "KeptStates", "StatesStore"]
