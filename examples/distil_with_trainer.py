"""Two-way distillation in transformers' own Trainer: distil_with_trainer.py PAIRS.jsonl OUTPUT [STEPS]"""

import sys

from transformers import Trainer, TrainingArguments

from modeling_r2d2 import R2D2Config, R2D2ForPreTraining, R2D2Processor, TwoWayDistillationCallback
from modeling_r2d2.processing import PretrainingDataset, R2D2PretrainingCollator, TextMasking
from modeling_r2d2.processing.datasets import load_pairs
from modeling_r2d2.processing.tokenization import build_character_tokenizer

data, output, steps = sys.argv[1], sys.argv[2], int((*sys.argv, 100)[3])
pairs = load_pairs(data)  # lines such as {"image": "0001.jpg", "text": "一只小狗在草地上"}
tokenizer = build_character_tokenizer(pairs.all_texts())
processor = R2D2Processor.build(tokenizer, image_size=64)
width = {"hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
vision, text = {**width, "image_size": 64, "patch_size": 8}, {**width, "vocab_size": len(tokenizer)}
model = R2D2ForPreTraining(R2D2Config(vision_config=vision, text_config=text, cross_encoder_config=width))
settings = {"max_steps": steps, "per_device_train_batch_size": 8, "remove_unused_columns": False, "report_to": "none"}
train_data = PretrainingDataset(pairs, processor, masking=TextMasking(tokenizer), shuffle=True)
arguments = TrainingArguments(output, dataloader_drop_last=True, logging_steps=10, **settings)
collator = R2D2PretrainingCollator(processor)
Trainer(model, arguments, collator, train_data, callbacks=[TwoWayDistillationCallback()]).train()
model.save_pretrained(output)
processor.save_pretrained(output)
